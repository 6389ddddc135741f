"""Coupled sets: the units of a network, and all the places where each of them is."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from structlearn.structure.labels import FREE, Labels

if TYPE_CHECKING:
    from structlearn.structure.trace import Traced
    from structlearn.structure.tracker import Role


@dataclass
class Place:
    """An axis of a parameter or buffer that has entries of a set's units.

    Attributes:
        tensor: Its name in the network.
        axis: Which axis.
        role: "out": here the units are made (the rows of a weight, a bias). "in": here they are used (the columns of
            the next weight): with these entries zero, a unit does nothing. "along": what goes with a unit on its way
            (a normalisation's scale and running mean, a switch, a depthwise filter).
        units: [length of the axis], int64: the number of the unit that each entry belongs to; -1 where it is none of
            this set's.
    """

    tensor: str
    axis: int
    role: Role
    units: Tensor


@dataclass
class Coupled:
    """Units that are alike: each has entries in the same axes of the same tensors, and goes from all of them at once.

    Attributes:
        name: The first layer that makes them.
        size: How many they are.
        places: Where they are, in the order in which the forward pass comes by.
    """

    name: str
    size: int
    places: list[Place] = field(default_factory=list)


@dataclass
class Axis:
    """One axis of one tensor, and which units its entries belong to, numbered through all sets; -1: never cut."""

    tensor: str
    axis: int
    role: Role
    units: Labels


def resolve(traced: Traced) -> tuple[list[Axis], dict[str, range]]:
    """Number the units: (all axes that may be cut, in the order of the forward pass; each set's units).

    Units are in one set where they have equally many entries in the same axes: no other criterion is needed to permute
    them among each other, or to cut any of them.
    """
    order = {key: place for place, key in enumerate(traced.roles)}
    keys = [(name, axis) for name, axes in traced.labels.items() for axis in axes]
    keys.sort(key=lambda key: order.get(key, len(order)))
    roots = [traced.same.find(traced.labels[name][axis]) for name, axis in keys]
    if not keys:
        return [], {}
    found, first, inverse = np.unique(np.concatenate(roots), return_index=True, return_inverse=True)
    chance = np.random.default_rng(0)
    marks = np.repeat(chance.integers(1, 2**63, len(keys), np.uint64), [len(each) for each in roots])
    signature = np.zeros(len(found), np.uint64)
    np.add.at(signature, inverse, marks)  # a sum of random numbers: two sums are equal only if their terms are
    signature[found < FREE] = 0
    _, members = np.unique(signature, return_inverse=True)
    since = np.full(members.max() + 1, len(inverse))
    np.minimum.at(since, members, first)
    ranked = np.lexsort(
        (first, since[members])
    )  # sets as the forward pass meets them; units as the first axis has them
    ranked = ranked[found[ranked] >= FREE]
    numbers = np.full(len(found), -1)
    numbers[ranked] = np.arange(len(ranked))
    axes: list[Axis] = []
    known: dict[bytes, Labels] = {}  # a layer's weight, bias and normalisation share one array
    start = 0
    for (name, axis), own in zip(keys, roots, strict=True):
        units = numbers[inverse[start : start + len(own)]]
        start += len(own)
        if (units >= 0).any():
            axes.append(
                Axis(name, axis, traced.roles.get((name, axis), "along"), known.setdefault(units.tobytes(), units))
            )
    return axes, _named(axes, members[ranked])


def _named(axes: list[Axis], members: Labels) -> dict[str, range]:
    """Each set's units, by the name of the first layer that makes one of them."""
    starts = np.flatnonzero(np.diff(members, prepend=-1)) if len(members) else np.array([], np.int64)
    ends = [*starts[1:], len(members)][: len(starts)]
    maker = [""] * len(starts)
    held: dict[int, Labels] = {}
    for each in sorted(axes, key=lambda axis: axis.role != "out"):
        if id(each.units) not in held:
            held[id(each.units)] = _sets_of(each.units, starts)
        for place in held[id(each.units)]:
            maker[place] = maker[place] or each.tensor.rpartition(".")[0] or each.tensor
    found: dict[str, range] = {}
    for name, start, end in zip(maker, starts, ends, strict=True):
        count = sum(other.partition("/")[0] == name for other in found)
        found[f"{name}/{count}" if count else name] = range(int(start), int(end))
    return found


def coupled(axes: list[Axis], sets: dict[str, range], device: torch.device) -> dict[str, Coupled]:
    """The sets with their places, as callers see them. Places with equal units share the tensor."""
    found = {name: Coupled(name, len(numbers)) for name, numbers in sets.items()}
    names = list(sets)
    starts = np.array([numbers.start for numbers in sets.values()])
    held: dict[int, list[tuple[Coupled, Tensor]]] = {}
    for each in axes:
        if id(each.units) not in held:
            held[id(each.units)] = [
                (found[names[at]], _inside(each.units, sets[names[at]]).to(device))
                for at in _sets_of(each.units, starts)
            ]
        for owner, units in held[id(each.units)]:
            owner.places.append(Place(each.tensor, each.axis, each.role, units))
    return found


def _inside(units: Labels, numbers: range) -> Tensor:
    """Numbered from the first unit of a set; -1 for those of others."""
    own = units - numbers.start
    own[(own < 0) | (own >= len(numbers))] = -1
    return torch.from_numpy(own)


def _sets_of(units: Labels, starts: Labels) -> Labels:
    """The numbers of the sets that have entries in an axis, in their order."""
    present = np.zeros(len(starts) + 1, bool)
    present[np.searchsorted(starts, units[units >= 0], side="right") - 1] = True
    return np.flatnonzero(present)
