"""Penalties on weights: values, gradients in closed form, and proximal steps (W 3.4.1, 3.5.3, 4.5)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from structlearn.structure.wide import wide, wide_type

if TYPE_CHECKING:
    from collections.abc import Container, Sequence

    from structlearn.pruning.weights import Groups


class Penalty(ABC):
    """A function of weights that is small where there are few of them.

    None of its methods waits for the device, and none has a loop over units.
    """

    @abstractmethod
    def value(self) -> Tensor:
        """The penalty, a scalar; differentiable, with the subgradient 0 where it has none."""

    @abstractmethod
    def add_gradient(self, strength: float) -> None:
        """Add `strength` times its gradient to each weight's .grad; where that is None the weight is left alone."""

    @abstractmethod
    def shrink(self, amount: float, moved: Container[Tensor] | None = None) -> None:
        """The proximal step: the weights w become the u for which ||u - w||^2 / 2 + amount penalty(u) is least.

        Args:
            amount: See above.
            moved: The weights that have just been trained; the others are left alone. None: all.
        """


class L2(Penalty):
    """sum w^2 (W 3.4.1), without a half.

    Args:
        weights: The tensors.
    """

    def __init__(self, weights: Sequence[Tensor]) -> None:
        self._weights = list(weights)

    def value(self) -> Tensor:
        """The sum."""
        return torch.stack([wide(weight).square().sum() for weight in self._weights]).sum()

    def add_gradient(self, strength: float) -> None:
        """2 w."""
        if weights := _with_gradients(self._weights):
            torch._foreach_add_(_gradients(weights), [weight.detach() for weight in weights], alpha=2 * strength)

    @torch.no_grad()
    def shrink(self, amount: float, moved: Container[Tensor] | None = None) -> None:
        """To w / (1 + 2 amount)."""
        if weights := _among(self._weights, moved):
            torch._foreach_div_(weights, 1 + 2 * amount)


class L1(Penalty):
    """sum |w| (Lasso, W 3.5.3).

    Args:
        weights: The tensors.
    """

    def __init__(self, weights: Sequence[Tensor]) -> None:
        self._weights = list(weights)

    def value(self) -> Tensor:
        """The sum."""
        return torch.stack([wide(weight).abs().sum() for weight in self._weights]).sum()

    def add_gradient(self, strength: float) -> None:
        """sign(w)."""
        weights = _with_gradients(self._weights)
        for weight, gradient in zip(weights, _gradients(weights), strict=True):  # all signs at once are a whole network
            gradient.add_(weight.detach().sign(), alpha=strength)

    @torch.no_grad()
    def shrink(self, amount: float, moved: Container[Tensor] | None = None) -> None:
        """The soft threshold: towards zero by `amount`, and no further."""
        for weight in _among(self._weights, moved):
            weight.sub_(weight.clamp(-amount, amount))


class GroupLasso(Penalty):
    """sum over groups of f times the 2-norm of the group (W 3.5.3; for outgoing groups W 3.4.1).

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
        weights = _with_gradients(self._weights)
        slopes = [slope for slope, weight in zip(slopes, self._weights, strict=True) if weight.grad is not None]
        if weights:
            torch._foreach_addcmul_(_gradients(weights), weights, slopes, value=strength)

    @torch.no_grad()
    def shrink(self, amount: float, moved: Container[Tensor] | None = None) -> None:
        """The block soft threshold: each group towards zero by f `amount`, all its entries alike, and no further."""
        norms = self._groups.norms(self._weights)
        shares = torch.where(norms > 0, 1 - amount * self._factors / norms, 0.0).clamp(min=0.0)
        spread = self._groups.spread(shares, self._weights)
        if weights := _among(self._weights, moved):
            own = [
                share for share, weight in zip(spread, self._weights, strict=True) if moved is None or weight in moved
            ]
            torch._foreach_mul_(weights, own)


class SparseGroupLasso(Penalty):
    """`mix` times an L1 penalty and 1 - `mix` times a group Lasso (W 3.5.3).

    Args:
        l1: The one.
        group_lasso: The other, of the same weights.
        mix: W's alpha.
    """

    def __init__(self, l1: L1, group_lasso: GroupLasso, mix: float) -> None:
        self._l1, self._group_lasso, self._mix = l1, group_lasso, mix

    def value(self) -> Tensor:
        """The mixture."""
        return self._mix * self._l1.value() + (1 - self._mix) * self._group_lasso.value()

    def add_gradient(self, strength: float) -> None:
        """Both."""
        self._l1.add_gradient(self._mix * strength)
        self._group_lasso.add_gradient((1 - self._mix) * strength)

    def shrink(self, amount: float, moved: Container[Tensor] | None = None) -> None:
        """First the entries, then the groups: together they are the mixture's step (Simon and others 2013)."""
        self._l1.shrink(self._mix * amount, moved)
        self._group_lasso.shrink((1 - self._mix) * amount, moved)


def _among(weights: Sequence[Tensor], moved: Container[Tensor] | None) -> list[Tensor]:
    return [weight for weight in weights if moved is None or weight in moved]


def _with_gradients(weights: Sequence[Tensor]) -> list[Tensor]:
    return [weight for weight in weights if weight.grad is not None]


def _gradients(weights: Sequence[Tensor]) -> list[Tensor]:
    return [weight.grad for weight in weights if weight.grad is not None]
