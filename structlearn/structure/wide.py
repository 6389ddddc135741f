"""Sums over many entries: in a type that does not lose count, and in the order in which they are quick."""

from __future__ import annotations

from functools import reduce

import torch
from torch import Tensor


def wide_type(*tensors: Tensor) -> torch.dtype:
    """float32, or the wider type that some of the tensors have.

    In bfloat16 256 + 1 is 256: a sum of thousands of entries, one by one, stops growing; in float16 the square of a
    small weight is 0.
    """
    return reduce(torch.promote_types, (tensor.dtype for tensor in tensors), torch.float32)


def wide(tensor: Tensor) -> Tensor:
    """The tensor in that type; itself where it has it. Gradients flow."""
    return tensor.to(wide_type(tensor))


def line(tensor: Tensor, axis: int) -> Tensor:
    """The sums over all axes but one; those before it first, which is five times as fast for a convolution's inputs."""
    if axis:
        tensor = tensor.sum(tuple(range(axis)))
    return tensor.sum(tuple(range(1, tensor.dim()))) if tensor.dim() > 1 else tensor
