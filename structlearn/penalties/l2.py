"""The sum of squares (W 3.4.1, 4.5.2)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from structlearn.penalties.base import Penalty, gradients, is_moved
from structlearn.structure.wide import wide

if TYPE_CHECKING:
    from collections.abc import Container, Sequence

    from torch import Tensor


class L2(Penalty):
    """sum f w^2, without a half.

    Args:
        weights: The tensors.
        factors: f, one for each tensor; 1 by default.
    """

    def __init__(self, weights: Sequence[Tensor], factors: Sequence[float] | None = None) -> None:
        self._weights = list(weights)
        self._factors = [1.0] * len(self._weights) if factors is None else [float(factor) for factor in factors]
        self._alike: dict[float, list[Tensor]] = {}  # one kernel for all tensors of a factor
        for weight, factor in zip(self._weights, self._factors, strict=True):
            self._alike.setdefault(factor, []).append(weight)

    def value(self) -> Tensor:
        """The sum."""
        return torch.stack([
            factor * torch.stack([wide(weight).square().sum() for weight in weights]).sum()
            for factor, weights in self._alike.items()
        ]).sum()  # fmt: skip

    def add_gradient(self, strength: float) -> None:
        """2 f w."""
        for factor, weights in self._alike.items():
            if own := [weight for weight in weights if weight.grad is not None]:
                torch._foreach_add_(gradients(own), [weight.detach() for weight in own], alpha=2 * strength * factor)

    @torch.no_grad()
    def shrink(self, amount: float, moved: Container[Tensor] | None = None) -> None:
        """To w / (1 + 2 f amount)."""
        for factor, weights in self._alike.items():
            if own := [weight for weight in weights if is_moved(weight, moved)]:
                torch._foreach_div_(own, 1 + 2 * amount * factor)
