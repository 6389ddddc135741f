"""Memory of gradients that is used again: fresh memory costs a CPU as much as the work on it."""

from __future__ import annotations

import functools
import sys
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Sequence


class Room:
    """Memory that is used from step to step, on a CPU. It is not copied with the network that it is for."""

    def __init__(self) -> None:
        self._made: list[Tensor] = []

    def take(self, like: Tensor) -> Tensor:
        """Memory laid out as a tensor, that nobody else holds."""
        if like.device.type != "cpu" or torch.compiler.is_compiling():  # torch keeps theirs at hand by itself
            return torch.empty_like(like)
        layout = (like.shape, like.dtype, like.stride())
        self._made = [each for each in self._made if (each.shape, each.dtype, each.stride()) == layout][-2:]
        for place in range(len(self._made)):
            if _held(self._made, place) == _held_by_a_list():
                return self._made[place]
        self._made.append(torch.empty_like(like))
        return self._made[-1]

    def __deepcopy__(self, memo: Any) -> Room:
        return Room()

    def __reduce__(self) -> tuple[type[Room], tuple[()]]:
        return Room, ()


def is_alone(gradients: tuple[Tensor | None, ...], place: int) -> bool:
    """Does nobody but autograd hold this gradient? Then it may be changed, as torch does where it adds two.

    Args:
        gradients: What `backward` of an autograd function is given. No other name may stand for the gradient yet.
        place: Which.
    """
    held = _held(gradients, place)
    return held is not None and held == _held_by_autograd()


def _held(tensors: Sequence[Tensor | None], place: int) -> tuple[int, ...] | None:
    """How often Python and torch hold a tensor, and any tensor its memory (a detached or a reshaped one shares it).

    Such counts differ between versions, and are compared with those of a tensor that is known to be held once.
    """
    if len(tensors) <= place or tensors[place] is None or torch.compiler.is_compiling():
        return None
    memory = tensors[place].untyped_storage()  # type: ignore[union-attr]
    count = torch._C._storage_Use_Count(memory._cdata)
    return sys.getrefcount(tensors[place]), tensors[place]._use_count(), count  # type: ignore[union-attr]


@functools.cache
def _held_by_a_list() -> tuple[int, ...] | None:
    return _held([torch.empty(1)], 0)


@functools.cache
def _held_by_autograd() -> tuple[int, ...] | None:
    with torch.enable_grad():
        y = torch.ones(1, requires_grad=True)
        (2 * _Count.apply(y)).backward()  # type: ignore[no-untyped-call]
    return _Count.held


class _Count(torch.autograd.Function):
    held: tuple[int, ...] | None = None

    @staticmethod
    def forward(_ctx: Any, y: Tensor) -> Tensor:
        return y.clone()

    @staticmethod
    def backward(_ctx: Any, *gradients: Tensor | None) -> Tensor | None:
        _Count.held = _held(gradients, 0)
        return gradients[0]
