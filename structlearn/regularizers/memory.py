"""Memory of gradients that is used again: fresh memory costs a CPU as much as the work on it."""

from __future__ import annotations

import functools
import sys
from typing import Any

import torch
from torch import Tensor


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
        for each in self._made:
            if sys.getrefcount(each) <= 3 and each._use_count() == 1:  # type: ignore[attr-defined]
                return each
        self._made.append(torch.empty_like(like))
        return self._made[-1]

    def __deepcopy__(self, memo: Any) -> Room:
        return Room()

    def __reduce__(self) -> tuple[type[Room], tuple[()]]:
        return Room, ()


def is_alone(gradients: tuple[Tensor | None, ...], place: int) -> bool:
    """Does nobody but autograd hold this gradient? Then it may be changed, as torch does where it adds two.

    Compared are counts with those of a gradient that is known to be alone: of Python, of torch, and of its memory
    (which a detached copy would share).

    Args:
        gradients: What `backward` of an autograd function is given. No other name may stand for the gradient yet.
        place: Which.
    """
    held = _held(gradients, place)
    return held is not None and held == _held_when_alone()


def _held(gradients: tuple[Tensor | None, ...], place: int) -> tuple[int, ...] | None:
    if len(gradients) <= place or gradients[place] is None or torch.compiler.is_compiling():
        return None
    memory = gradients[place].untyped_storage()  # type: ignore[union-attr]
    count = torch._C._storage_Use_Count(memory._cdata)
    return sys.getrefcount(gradients[place]), gradients[place]._use_count(), count  # type: ignore[union-attr]


@functools.cache
def _held_when_alone() -> tuple[int, ...] | None:
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
