"""A plan as indices, for every tensor that it changes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Mapping

    from structlearn.structure.coupling import Axis
    from structlearn.structure.labels import Labels
    from structlearn.structure.plan import Plan


class Cut:
    """What a plan does to tensors: which entries of which axes stay, and where they go.

    Args:
        plan: The plan.
        version: How many cuts there were, this one included.
        axes: All axes that may be cut, as they are before.
        sets: Each set's units, before.
        parameters: The network's parameters by name.
    """

    def __init__(
        self,
        plan: Plan,
        version: int,
        axes: list[Axis],
        sets: dict[str, range],
        parameters: Mapping[str, nn.Parameter],
    ) -> None:
        self.plan, self.version = plan, version
        self.name_of = {parameter: name for name, parameter in parameters.items()}
        """The name of each parameter."""
        self.factors: dict[str, Tensor] = {}
        """What tensors were multiplied with after the cut, where a pruner has changed their scale (ScaLa's sigmas)."""
        count = max((numbers.stop for numbers in sets.values()), default=0)
        source = np.arange(count)  # for the place that a unit had: which unit is there now; -1: the place is gone
        for name, units in plan.keep.items():
            start = sets[name].start
            source[start : start + len(units)] = start + np.array(units)
            source[start + len(units) : sets[name].stop] = -1
        number = np.cumsum(source >= 0) - 1  # of a place that stays, when those before it are gone
        self._index: dict[str, dict[int, Tensor]] = {}
        self._moved: dict[torch.device, dict[int, Tensor]] = {}
        self.units: list[Labels] = []
        """For each of the axes, the units of its entries afterwards."""
        seen: dict[bytes, tuple[Tensor | None, Labels]] = {}
        for each in axes:
            key = each.units.tobytes()
            if key not in seen:
                seen[key] = _gathered(each.units, source, number)
            index, now = seen[key]
            self.units.append(now)
            if index is not None:
                self._index.setdefault(each.tensor, {})[each.axis] = index

    @property
    def names(self) -> list[str]:
        """The parameters and buffers that change."""
        return list(self._index)

    def select(self, name: str, value: Tensor) -> Tensor:
        """`value`, of the shape that tensor `name` had, as that tensor now is: momentum, a mask, a centre.

        It may have axes of length one, which stay so, where it broadcasts to that shape. A new tensor, in the same
        memory format; `value` itself where nothing changes.
        """
        last = {4: torch.channels_last, 5: torch.channels_last_3d}.get(value.dim(), torch.contiguous_format)
        keeps = not value.is_contiguous() and value.is_contiguous(memory_format=last)
        indices = {axis: index for axis, index in self._index.get(name, {}).items() if value.shape[axis] > 1}
        for axis, index in sorted(indices.items(), key=lambda pair: len(pair[1]) / value.shape[pair[0]]):
            value = value.index_select(axis, self._on(index, value.device))
        return value.contiguous(memory_format=last) if keeps and indices else value

    def carry(self, name: str, value: Tensor) -> Tensor:
        """`value`, an older version of tensor `name` itself, as it is after the cut: a message, an average, a centre.

        As :meth:`select`; then in the scale that the tensor has now. (Momentum and the like are not in that scale.)
        """
        selected = self.select(name, value)
        factor = self.factors.get(name)
        return selected if factor is None else selected * factor.to(selected)

    def _on(self, index: Tensor, device: torch.device) -> Tensor:
        if device.type == "cpu":
            return index
        there = self._moved.setdefault(device, {})
        if id(index) not in there:
            there[id(index)] = index.to(device)
        return there[id(index)]


def _gathered(units: Labels, source: Labels, number: Labels) -> tuple[Tensor | None, Labels]:
    """(which entries of an axis stay, in order; the units they then belong to). No index where nothing changes.

    A unit may have several entries (a flattened channel; both halves behind MaxMin): each goes where the same entry of
    the unit was that stood in its new place.
    """
    inside = units >= 0
    coming = np.where(inside, source[units], -1)
    stays = ~inside | (coming >= 0)
    order = np.argsort(units, kind="stable")
    ranked = units[order]
    nth = np.empty(len(units), np.int64)
    nth[order] = np.arange(len(units)) - np.searchsorted(ranked, ranked)
    taken = np.arange(len(units))
    moved = inside & stays
    taken[moved] = order[np.searchsorted(ranked, coming[moved]) + nth[moved]]
    index = taken[stays]
    now = np.where(inside, number[units], -1)[stays]
    if len(index) == len(units) and (index == np.arange(len(units))).all():
        return None, now
    return torch.from_numpy(index), now
