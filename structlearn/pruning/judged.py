"""The sets of units that have been judged so far, and how strongly the others are connected to what is left."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from structlearn.structure.wide import line, wide

if TYPE_CHECKING:
    from collections.abc import Callable

    from structlearn.penalties.layers import Side
    from structlearn.structure import Place, Structure


class Strengths(NamedTuple):
    """Of the units of one set, each [units]."""

    sums: Tensor
    """Over all weights of each unit; float32 or wider."""
    counts: Tensor
    """How many those are; int64."""


class Judged:
    """Which units stay, of the sets that have been judged; made anew for each plan.

    Args:
        structure: Of the network.
    """

    def __init__(self, structure: Structure) -> None:
        self._structure, self._tensors = structure, structure.tensors()
        self._stays: dict[str, Tensor] = {}
        self._lines: dict[tuple[str, int], Strengths] = {}
        self._places: dict[str, list[tuple[str, Place]]] = {}
        for name, coupled in structure.sets.items():
            for place in coupled.places:
                self._places.setdefault(place.tensor, []).append((name, place))

    def add(self, name: str, stays: Tensor) -> None:
        """Of the set `name` only the units `stays`, [units], bool, are left."""
        self._stays[name] = stays

    def strengths(self, name: str, side: Side, magnitude: Callable[[str, Tensor], Tensor]) -> Strengths:
        """Sums over the weights of each unit, without those from and to units that go.

        Args:
            name: Of the set.
            side: "in": outgoing weights; "out": incoming ones. Biases do not count.
            magnitude: Of a tensor's name and value (half precision as float32): what is summed, of the same shape. The
                same in all calls.
        """
        size = self._structure.sets[name].size
        some = next(iter(self._tensors.values()))
        sums = some.new_zeros(size + 1, dtype=torch.float32)  # the last takes what is another set's
        counts = some.new_zeros(size + 1, dtype=torch.int64)
        for place in self._structure.sets[name].places:
            if place.role == side and self._tensors[place.tensor].dim() > 1:
                line = self._line(place.tensor, place.axis, magnitude)
                units = place.units.remainder(size + 1)
                sums = sums + line.sums.new_zeros(size + 1).index_add_(0, units, line.sums)  # the wider type of both
                counts.index_add_(0, units, line.counts)
        return Strengths(sums[:-1], counts[:-1])

    def _line(self, name: str, axis: int, magnitude: Callable[[str, Tensor], Tensor]) -> Strengths:
        """Of each entry of an axis. Kept: behind a concatenation, many sets ask for one tensor."""
        if (name, axis) not in self._lines:
            tensor = wide(self._tensors[name])
            values, present = magnitude(name, tensor), tensor.new_ones([1] * tensor.dim(), dtype=torch.int64)
            for other, place in self._places[name]:
                if place.axis != axis and other in self._stays:
                    mask = self._stays[other][place.units] | (place.units < 0)
                    mask = mask.view([-1 if each == place.axis else 1 for each in range(tensor.dim())])
                    values, present = values * mask, present * mask
            sums = line(values, axis)
            counts = present.sum() * (tensor.numel() // (present.numel() * len(sums)))
            self._lines[name, axis] = Strengths(sums, counts.expand(len(sums)))
        return self._lines[name, axis]
