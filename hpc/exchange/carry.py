"""Networks that are carried over a cut: a centre, a message of before that arrives after."""

import copy
from collections.abc import Mapping

import torch
from torch.optim import Optimizer

from hpc.exchange.form import Key, keyed
from structlearn.pruning import Pruner
from structlearn.structure import Plan


class Carry:
    """Does to other networks of the same structure what a cut does to the rank's own.

    Each goes through a twin of the network that is cut by the same plan. To select the same entries would not do: a
    method may have to mend more (ScaLP gives the units that are left other scalings, and weights that fit them; and an
    optimiser's averages with the weights).

    Args:
        pruner: of the network, before the cut.
        optimizer: of the network, before the cut.
        plan: which cut.
    """

    def __init__(self, pruner: Pruner, optimizer: Optimizer, plan: Plan) -> None:
        self._before, self._plan = copy.deepcopy((pruner, optimizer)), plan

    @torch.no_grad()
    def __call__(self, values: Mapping[Key, torch.Tensor]) -> dict[Key, torch.Tensor]:
        """Tensors of a network of before, by their keys, as they are after; what is not given counts as the rank's own."""
        pruner, optimizer = copy.deepcopy(self._before)
        twin = keyed(pruner.structure.model, optimizer)
        for key, value in values.items():
            twin[key].copy_(value)
        pruner.cut(self._plan, optimizer)
        twin = keyed(pruner.structure.model, optimizer)
        return {key: twin[key] for key in values}
