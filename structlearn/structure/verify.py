"""A trial cut on a copy: does a network compute the same without units that do nothing?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from structlearn.structure.plan import Plan
from structlearn.structure.structure import Structure
from structlearn.structure.trace import copied
from structlearn.structure.tracker import tensors

if TYPE_CHECKING:
    from collections.abc import Sequence

TOLERANCE = 1e-3
"""Relative to the largest number of the answer: rounding of float32 in a deep network is a hundred times less."""


def verify(model: nn.Module, example: Tensor | tuple[Any, ...], seed: int = 0) -> None:
    """Cut a copy of a network, and compare what it says before and after: at random, then to one unit of each set.

    For networks whose forward pass has sizes written down in it (`x.view(-1, 400)`, `x[:, :64]` of what could be cut),
    which nobody can see from outside. It takes four forward passes of the example, in evaluation.

    Args:
        model: The network. It is left alone.
        example: A batch, or a tuple of arguments, as it is called with.
        seed: Of the random plan.

    Raises:
        ValueError: the network cannot be cut.
    """
    trial = copied(model)
    arguments = example if isinstance(example, tuple) else (example,)
    structure = Structure(trial, example)
    _stir(trial, seed)
    answers = _compare(structure, random_plan(structure, np.random.default_rng(seed)), arguments)
    if not any(bool(each.any()) for each in answers):
        raise ValueError("this network's answer to the example is 0 whatever its weights; give one that it answers to")
    _compare(structure, Plan(dict.fromkeys(structure.sets, (0,))), arguments)


@torch.no_grad()
def _compare(structure: Structure, plan: Plan, arguments: tuple[Any, ...]) -> list[Tensor]:
    """Silence what a plan removes, and apply it; what the network answered before."""
    trial = structure.model
    silence(outgoing(structure, plan))
    before = tensors(trial(*arguments))
    structure.apply(plan)
    try:
        after = tensors(trial(*arguments))
    except Exception as error:
        raise ValueError(_wrong(f"it fails when its layers are smaller ({error})")) from error
    for one, other in zip(before, after, strict=True):
        if one.shape != other.shape:
            raise ValueError(_wrong(f"its answer has the shape {tuple(other.shape)}, not {tuple(one.shape)}"))
        if not one.is_floating_point() or not one.numel():
            continue
        scale = float(one.abs().max())
        if not float((one - other).abs().max()) <= max(TOLERANCE, 32 * torch.finfo(one.dtype).eps) * scale:
            raise ValueError(_wrong("its answer changes when units are cut that do nothing"))
    return before


@torch.no_grad()
def _stir(model: nn.Module, seed: int) -> None:
    """Other weights: what starts as 0 (an output layer, a branch's last scale) hides all that comes before it."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.is_floating_point() and parameter.numel():
            noise = torch.randn(parameter.shape, generator=generator).to(parameter)
            parameter.add_(noise * max(float(parameter.square().mean().sqrt()), 0.1) / 4)


def random_plan(structure: Structure, chance: np.random.Generator, *, every: float = 0.9, least: float = 0.0) -> Plan:
    """With the probability `every`, a set keeps some of its units, at least this part of them, in any order."""
    keep = {}
    for name, size in structure.widths.items():
        if chance.random() < every:
            left = int(chance.integers(max(1, int(least * size)), size + 1))
            keep[name] = tuple(int(unit) for unit in chance.permutation(size)[:left])
    return Plan(keep)


def outgoing(structure: Structure, plan: Plan) -> list[tuple[Tensor, int, Tensor]]:
    """(tensor, axis, entries) of all weights that take something from units which a plan removes."""
    named = structure.tensors()
    found = []
    for name, keep in plan.keep.items():
        each = structure.sets[name]
        for place in each.places:
            if place.role == "in":
                gone = torch.ones(each.size, dtype=torch.bool, device=place.units.device)
                gone[list(keep)] = False
                entries = ((place.units >= 0) & gone[place.units]).nonzero().flatten()
                found.append((named[place.tensor], place.axis, entries))
    return found


@torch.no_grad()
def silence(entries: Sequence[tuple[Tensor, int, Tensor]]) -> None:
    """Set what :func:`outgoing` gave to zero: nobody takes anything from these units."""
    for tensor, axis, which in entries:
        tensor.index_fill_(axis, which, 0.0)


def _wrong(what: str) -> str:
    return (
        f"this network cannot be cut: {what}; its forward pass has a size of a hidden layer written down in it: take "
        f"sizes from tensors there (x.shape, x.flatten(1)), or train it without pruning"
    )
