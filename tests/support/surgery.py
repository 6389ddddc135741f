"""Random plans, and networks whose units do nothing: what a cut must not change."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from structlearn.structure import Plan, Structure

if TYPE_CHECKING:
    import numpy as np


def random_plan(structure: Structure, chance: np.random.Generator, *, every: float = 0.7) -> Plan:
    """Each set with this probability: some of its units, at least one, in any order."""
    return Plan(
        {
            name: tuple(int(unit) for unit in chance.permutation(size)[: chance.integers(1, size + 1)])
            for name, size in structure.widths.items()
            if chance.random() < every
        }
    )


def outgoing(structure: Structure, plan: Plan) -> list[tuple[Tensor, int, Tensor]]:
    """(tensor, axis, entries) of all weights that take something from units which the plan removes."""
    named = structure.tensors()
    found = []
    for name, keep in plan.keep.items():
        gone = torch.ones(structure.sets[name].size, dtype=torch.bool)
        gone[list(keep)] = False
        for place in structure.sets[name].places:
            if place.role == "in":
                entries = ((place.units >= 0) & gone[place.units]).nonzero().flatten()
                found.append((named[place.tensor], place.axis, entries))
    return found


@torch.no_grad()
def silence(entries: list[tuple[Tensor, int, Tensor]]) -> None:
    """Nobody takes anything from these units: they have no effect."""
    for tensor, axis, which in entries:
        tensor.index_fill_(axis, which, 0.0)


def stir(model: nn.Module, seed: int = 0) -> nn.Module:
    """Normalisations with scales, shifts and statistics as after training; in evaluation."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, _NormBase):
            for values in (module.running_mean, module.bias):
                if values is not None:
                    values.data.normal_(generator=generator)
            for values in (module.running_var, module.weight):
                if values is not None:
                    values.data.uniform_(0.5, 1.5, generator=generator)
    return model.eval()
