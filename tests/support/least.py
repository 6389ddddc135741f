"""A small pruner for tests: the unit with the smallest outgoing weights goes from each set, the others are sorted."""

from typing import Any

import torch

from structlearn.pruning import Pruner, Verdict


class Least(Pruner):
    """Cuts one unit of each set at each plan, down to ``least``."""

    sorts = True

    def __init__(self, structure: Any, least: int = 2, **keys: Any) -> None:
        super().__init__(structure, **keys)
        self.least = least

    def _penalty(self) -> torch.Tensor:
        return next(self.structure.model.parameters()).new_zeros(())

    def _verdict(self, name: str, judged: Any) -> Verdict:
        norms = self.structure.reduce("in", lambda _, tensor: tensor.square())[name]
        return Verdict(norms, (norms <= norms.min()) & (len(norms) > self.least))
