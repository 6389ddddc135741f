"""Widths by one factor, so that a network has as many parameters as asked for."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING

import numpy as np

from structlearn.structure import Plan

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from structlearn.structure import Structure

HALVINGS = 60


class Count:
    """How many parameters a network has when its sets of units have other sizes."""

    def __init__(self, structure: Structure) -> None:
        self._shapes = {name: list(each.shape) for name, each in structure.model.named_parameters()}
        self._entries: dict[str, list[tuple[str, int, np.ndarray[tuple[int], np.dtype[np.int64]]]]] = {}
        for name, coupled in structure.sets.items():
            for place in coupled.places:
                if place.tensor in self._shapes:
                    units = place.units.cpu().numpy()
                    each = np.bincount(units[units >= 0], minlength=coupled.size)
                    known = self._entries.setdefault(place.tensor, [])
                    known.append((name, place.axis, np.concatenate([[0], np.cumsum(each)])))

    def __call__(self, sizes: Mapping[str, int]) -> int:
        """With the first so many units of each set."""
        total = 0
        for name, shape in self._shapes.items():
            left = list(shape)
            for owner, axis, entries in self._entries.get(name, []):
                left[axis] -= int(entries[-1] - entries[sizes[owner]])
            total += prod(left)
        return total


def matched(structure: Structure, parameters: int, hold: Iterable[str]) -> tuple[Plan, float]:
    """What to cut so that a network has nearly so many parameters: (the plan, the factor on all widths).

    Each set of units keeps the factor's share of them, rounded down or up, one at least. From all rounded down, where
    there are too few parameters, sets are rounded the other way, those first that have most parameters a unit, each if
    that comes nearer, until none does. So what is left is at most half of what one unit of some set has.

    Args:
        structure: Of the network.
        parameters: How many.
        hold: Sets that stay as they are, or layers whose units do.

    Raises:
        ValueError: there is no such set, or the network is too large with one unit in each of the others.
    """
    full, count = structure.widths, Count(structure)
    held = _held(structure, hold)

    def rounded(factor: float) -> dict[str, int]:
        return {name: size if name in held else max(1, int(factor * size)) for name, size in full.items()}

    if count(full) <= parameters:
        return Plan(), 1.0
    if (least := count(rounded(0.0))) > parameters:
        kept = f" besides {', '.join(sorted(held))}, which are held," if held else ""
        raise ValueError(
            f"with MaxMin the network cannot have {parameters} parameters: with one unit in each hidden layer{kept} it "
            f"has {least}; hold fewer layers, or take keep='width'"
        )
    low, high = 0.0, 1.0
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if count(rounded(middle)) <= parameters else (low, middle)
    sizes = rounded(low)
    now = count(sizes)
    least_sizes = dict(sizes)
    worth = {name: count({**sizes, name: size + 1}) - now for name, size in sizes.items() if size < full[name]}
    order = sorted(worth.keys() - held, key=lambda each: -worth[each])
    nearer = True
    while nearer:
        nearer = False
        for name in order:
            other = {**sizes, name: 2 * least_sizes[name] + 1 - sizes[name]}  # up if it is down, down if it is up
            if abs(count(other) - parameters) < abs(now - parameters):
                sizes, now, nearer = other, count(other), True
    return Plan({name: tuple(range(size)) for name, size in sizes.items() if size < full[name]}), low


def _held(structure: Structure, hold: Iterable[str]) -> set[str]:
    """The names of the sets that are meant."""
    held = set()
    for name in hold:
        found = {
            each.name
            for each in structure.sets.values()
            if name == each.name or any(p.role == "out" and p.tensor.rpartition(".")[0] == name for p in each.places)
        }
        if not found:
            raise ValueError(
                f"hold: no hidden layer {name!r} has units that could be cut; use some of: "
                f"{', '.join(structure.widths)}"
            )
        held |= found
    return held
