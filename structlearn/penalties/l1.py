"""The sum of absolute values: Lasso (W 3.5.3, 4.5.2)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from structlearn.penalties.base import Penalty, is_moved
from structlearn.structure.wide import wide

if TYPE_CHECKING:
    from collections.abc import Container, Sequence

    from torch import Tensor


class L1(Penalty):
    """sum f |w|.

    Args:
        weights: The tensors.
        factors: f, one for each tensor; 1 by default.
    """

    def __init__(self, weights: Sequence[Tensor], factors: Sequence[float] | None = None) -> None:
        self._weights = list(weights)
        self._factors = [1.0] * len(self._weights) if factors is None else [float(factor) for factor in factors]

    def value(self) -> Tensor:
        """The sum."""
        pairs = zip(self._weights, self._factors, strict=True)
        return torch.stack([factor * wide(weight).abs().sum() for weight, factor in pairs]).sum()

    def add_gradient(self, strength: float) -> None:
        """F sign(w)."""
        for weight, factor in zip(self._weights, self._factors, strict=True):  # all signs at once: a whole network more
            if weight.grad is not None:
                weight.grad.add_(weight.detach().sign(), alpha=strength * factor)

    @torch.no_grad()
    def shrink(self, amount: float, moved: Container[Tensor] | None = None) -> None:
        """The soft threshold: towards zero by f `amount`, and no further."""
        for weight, factor in zip(self._weights, self._factors, strict=True):
            if is_moved(weight, moved):
                weight.sub_(weight.clamp(-amount * factor, amount * factor))
