"""A network in slices, each of which travels by itself: views of its tensors' numbers."""

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from itertools import accumulate, pairwise
from types import MappingProxyType

import torch


def slices_of(
    values: Sequence[torch.Tensor],
    slices: int | Sequence[int],
    beside: Mapping[int, Sequence[torch.Tensor]] = MappingProxyType({}),
) -> list[list[torch.Tensor]]:
    """The numbers of many tensors in slices: each a list of flat views into them.

    Views: what is written into them is written into the tensors. A tensor is seen in the order of its memory, so
    that one with channels last stays whole; all ranks lay theirs out alike.

    Args:
        values: the tensors.
        slices: so many, of nearly one size; or for each the number of tensors before its end (see :func:`borders`).
        beside: by the address of a tensor, others of its shape that are sliced as it is: they end the slices.
    """
    seen = [value for value in values if value.numel()]
    if isinstance(slices, int):
        total = sum(value.numel() for value in seen)
        edges = [total * place // slices for place in range(slices + 1)]
    else:
        edges = [0, *(sum(value.numel() for value in values[:border]) for border in slices)]
    parts: list[list[torch.Tensor]] = []
    for first, last in pairwise(edges):
        part, more, at = list[torch.Tensor](), list[torch.Tensor](), 0
        for value in seen:
            begin, end = max(first - at, 0), min(last - at, value.numel())
            if begin < end:
                part.append(_flat(value)[begin:end])
                more += [_flat(other)[begin:end] for other in beside.get(value.data_ptr(), ())]
            at += value.numel()
        parts.append(part + more)
    return parts


def borders(values: Sequence[torch.Tensor], slices: int) -> list[int]:
    """Where so many slices end that divide no tensor, as numbers of tensors; as near to one size as that allows.

    A network that shrinks is sliced so: wherever its units go, each of its numbers stays in the slice that it was in,
    and its mass stays what it was.
    """
    ends = list(accumulate(value.numel() for value in values))
    middles = [end - value.numel() / 2 for end, value in zip(ends, values, strict=True)]
    return [bisect_left(middles, ends[-1] * (part + 1) / slices) for part in range(slices)]


def _flat(value: torch.Tensor) -> torch.Tensor:
    return torch.as_strided(value, (value.numel(),), (1,))
