"""Partitions of weights into groups, over many tensors at once."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from structlearn.structure.wide import line, wide

if TYPE_CHECKING:
    from collections.abc import Sequence


class Entries(NamedTuple):
    """What a group has of a tensor is one or more of these entries, with all that is behind each."""

    axes: tuple[int, ...]
    """The entries are those of these axes, the last of them the quickest."""
    parts: int = 1
    """If there are several, axis 0 is first split into (parts, the rest), so that `axes` count one axis more."""


class Groups:
    """A partition of weights into groups: each entry of some axes of a weight, with all behind it, is in one of them.

    Args:
        entries: For each weight, which.
        index: For each weight, int64 [its entries]: the group of each entry.
        count: How many groups there are; those of sets without such weights are empty.
        sizes: [groups], float64: how many numbers are in each.
    """

    def __init__(self, entries: Sequence[Entries], index: Sequence[Tensor], count: int, sizes: Tensor) -> None:
        self.entries, self.index, self.count, self.sizes = list(entries), list(index), count, sizes
        self._all = torch.cat(self.index)

    def sums(self, tensors: Sequence[Tensor]) -> Tensor:
        """[groups]: the sum over each group, of tensors shaped as the weights are; float32 or wider."""
        lines = torch.cat([_sums(wide(tensor), own) for tensor, own in zip(tensors, self.entries, strict=True)])
        return lines.new_zeros(self.count).index_add(0, self._all, lines)

    def norms(self, tensors: Sequence[Tensor]) -> Tensor:
        """[groups]: the 2-norm of each group; differentiable, with the gradient 0 where it is 0."""
        sums = self.sums([wide(tensor).square() for tensor in tensors])
        return torch.where(sums > 0, sums, 1.0).sqrt() * (sums > 0)

    def spread(self, values: Tensor, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Each group's value, for each of the tensors in a shape that broadcasts to its own."""
        parts = values[self._all].split([len(each) for each in self.index])
        return [_spread(part, own, tensor) for part, own, tensor in zip(parts, self.entries, tensors, strict=True)]


def _sums(tensor: Tensor, entries: Entries) -> Tensor:
    if entries.parts > 1:
        tensor = tensor.unflatten(0, (entries.parts, -1))
    if len(entries.axes) == 1:
        return line(tensor, entries.axes[0])
    others = [axis for axis in range(tensor.dim()) if axis not in entries.axes]
    return (tensor.sum(others) if others else tensor).flatten()


def _spread(values: Tensor, entries: Entries, tensor: Tensor) -> Tensor:
    """The values of the entries, in a shape that broadcasts to the tensor's."""
    whole = tensor if entries.parts == 1 else tensor.unflatten(0, (entries.parts, -1))
    values = values.view([size if axis in entries.axes else 1 for axis, size in enumerate(whole.shape)])
    if entries.parts == 1:
        return values
    return values.expand(-1, whole.shape[1], *[-1] * (whole.dim() - 2)).flatten(0, 1)
