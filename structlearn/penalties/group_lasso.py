"""The sum of norms of groups: group Lasso, either way round (W 3.4.1, 3.5.3, 4.5.2)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from structlearn.penalties.base import Penalty, gradients, is_moved
from structlearn.structure.wide import wide_type

if TYPE_CHECKING:
    from collections.abc import Container, Sequence

    from torch import Tensor

    from structlearn.penalties.groups import Groups


class GroupLasso(Penalty):
    """sum over groups of f times the 2-norm of the group.

    Args:
        weights: The tensors.
        groups: A partition of their entries; a group may lie in several tensors.
        factors: f, [groups]; 1 by default.
    """

    def __init__(self, weights: Sequence[Tensor], groups: Groups, factors: Tensor | None = None) -> None:
        self._weights, self._groups = list(weights), groups
        factors = torch.ones_like(groups.sizes) if factors is None else factors
        self._factors = factors.to(self._weights[0].device, wide_type(*self._weights))

    def value(self) -> Tensor:
        """The sum."""
        return (self._factors * self._groups.norms(self._weights)).sum()

    @torch.no_grad()
    def add_gradient(self, strength: float) -> None:
        """F w / ||group||; 0 where the group is."""
        norms = self._groups.norms(self._weights)
        slopes = self._groups.spread(torch.where(norms > 0, self._factors / norms, 0.0), self._weights)
        weights = [weight for weight in self._weights if weight.grad is not None]
        slopes = [slope for slope, weight in zip(slopes, self._weights, strict=True) if weight.grad is not None]
        if weights:
            torch._foreach_addcmul_(gradients(weights), weights, slopes, value=strength)

    @torch.no_grad()
    def shrink(self, amount: float, moved: Container[Tensor] | None = None) -> None:
        """The block soft threshold: each group towards zero by f `amount`, all its entries alike, and no further."""
        norms = self._groups.norms(self._weights)
        shares = torch.where(norms > 0, 1 - amount * self._factors / norms, 0.0).clamp(min=0.0)
        spread = self._groups.spread(shares, self._weights)
        if weights := [weight for weight in self._weights if is_moved(weight, moved)]:
            own = [share for share, weight in zip(spread, self._weights, strict=True) if is_moved(weight, moved)]
            torch._foreach_mul_(weights, own)
