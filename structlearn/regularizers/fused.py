"""SHADE's sums and slopes, each in one pass over the values, on a CPU with a C compiler (`variance.c`)."""

from __future__ import annotations

import ctypes
import math
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch

from structlearn import native

if TYPE_CHECKING:
    from torch import Tensor

SOURCE: Final = Path(__file__).with_name("variance.c")

WIDE: Final = 64
"""Positions of a map from which on each unit's are summed by themselves; below, each is a unit of its own first."""

BLOCK: Final = 64
"""Rows that are summed in one go: short sums of float32 stay exact, and the rows stay in the cache."""

SHARE: Final = 1 << 15
"""Values that are worth a thread."""


def sums(y: Tensor, axis: int) -> Tensor | None:
    """[5, C, inner]: over samples, of y, y^2, p0 = exp(-relu(y)), relu(y) and p0 relu(y); of positions apart, or not.

    The same bits with any number of threads. None where it cannot be: not float32 on a CPU, not in one piece, or no
    compiler.

    Args:
        y: Its units on one axis.
        axis: Which; at least 0.
    """
    if (found := _ready(y, axis)) is None:
        return None
    functions, outer, units, inner = found
    if inner >= WIDE:
        table = y.new_empty(outer, 5, units, 1)
        _share(functions.sums_of_maps, outer, y, y, table, units, inner)
    else:
        blocks = math.ceil(outer / BLOCK)
        table = y.new_empty(blocks, 5, units, inner)
        _share(functions.sums_of_rows, blocks, y, y, table, outer, units * inner, BLOCK)
    return table.sum(0)


def moments(y: Tensor, axis: int, mean0: Tensor, mean1: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor] | None:
    """The sum over units and samples of the variance, and [C] each: sums of p0, p0 y, p1 y; None as of `sums`.

    Args:
        y: Its units on one axis.
        axis: Which; at least 0.
        mean0: [C].
        mean1: [C].
    """
    found = sums(y, axis) if mean0.dtype == y.dtype else None
    functions = native.compiled(SOURCE) if found is not None else None
    if found is None or functions is None:
        return None
    _, units, inner = found.shape
    p0, p0_y, p1_y = (y.new_empty(units) for _ in range(3))
    function = functions.moments
    function.restype = ctypes.c_float
    held = found, mean0.contiguous(), mean1.contiguous(), p0, p0_y, p1_y
    loss = function(*map(_as_c, (*held, y.numel() // max(1, units), units, inner)))
    return y.new_tensor(loss), p0, p0_y, p1_y


def slopes(
    y: Tensor, axis: int, mean0: Tensor, mean1: Tensor, factor: Tensor, given: Tensor | None, out: Tensor
) -> bool:
    """`given` (or nothing) and `factor` times the slope of the variance go to `out`; False where it cannot be.

    Args:
        y: Its units on one axis.
        axis: Which; at least 0.
        mean0: [C].
        mean1: [C].
        factor: A number.
        given: As y, or None.
        out: As y; it may be `given`.
    """
    found = _ready(y, axis)
    alike = all(each.stride() == y.stride() and each.dtype == y.dtype for each in (out, y if given is None else given))
    if found is None or not alike or mean0.dtype != y.dtype:
        return False
    functions, outer, units, inner = found
    number = ctypes.c_float(factor.item())
    if inner >= WIDE:
        means = mean0.contiguous(), mean1.contiguous()
        _share(functions.slopes_of_maps, outer, y, y, given, out, *means, number, units, inner)
    else:
        means = mean0.repeat_interleave(inner), mean1.repeat_interleave(inner)
        _share(functions.slopes_of_rows, outer, y, y, given, out, *means, number, units * inner)
    return True


def _ready(y: Tensor, axis: int) -> tuple[ctypes.CDLL, int, int, int] | None:
    """The library, and [outer, units, inner] as the values lie in memory, if they do."""
    if y.device.type != "cpu" or y.dtype != torch.float32:
        return None
    units = y.shape[axis]
    if y.is_contiguous():
        shape = math.prod(y.shape[:axis]), units, math.prod(y.shape[axis + 1 :])
    elif y.movedim(axis, -1).is_contiguous():
        shape = y.numel() // units, units, 1
    else:
        return None
    functions = native.compiled(SOURCE)
    return None if functions is None else (functions, *shape)


def _share(function: Any, count: int, y: Tensor, *arguments: Any) -> None:
    """Call a C function over a range of `count`, by as many threads as torch has and the values are worth."""
    call = partial(function, *map(_as_c, arguments))
    threads = min(torch.get_num_threads(), 1 + y.numel() // SHARE)
    native.over_threads(lambda first, last: call(_as_c(first), _as_c(last)), count, threads)


def _as_c(value: Any) -> Any:
    if isinstance(value, int):
        return ctypes.c_size_t(value)
    if isinstance(value, torch.Tensor):
        return ctypes.c_void_p(value.data_ptr())
    return value
