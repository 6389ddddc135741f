"""Penalties on weights: their values, their gradients in closed form, and their proximal steps (W 3.4.1, 3.5.3, 4.5)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor, nn

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
    def shrink(self, amount: float) -> None:
        """The proximal step: each w becomes the minimiser u of ||u - w||^2 / 2 + amount times the penalty of u."""


class L2(Penalty):
    """sum of f w^2 (W 3.4.1), without a half.

    Args:
        weights: The tensors.
        factors: f, one for each tensor; 1 by default.
    """

    def __init__(self, weights: Sequence[nn.Parameter], factors: Sequence[float] | None = None) -> None:
        self._weights = list(weights)
        self._factors = list(factors or [1.0] * len(self._weights))

    def value(self) -> Tensor:
        """The sum."""
        return _total(self._weights, self._factors, power=2)

    def add_gradient(self, strength: float) -> None:
        """2 f w."""
        places, weights, gradients = _with_gradients(self._weights)
        factors = [2 * strength * self._factors[place] for place in places]
        torch._foreach_add_(gradients, torch._foreach_mul(weights, factors))

    @torch.no_grad()
    def shrink(self, amount: float) -> None:
        """w / (1 + 2 amount f)."""
        torch._foreach_mul_(self._weights, [1 / (1 + 2 * amount * factor) for factor in self._factors])


class L1(Penalty):
    """sum of f |w| (Lasso, W 3.5.3).

    Args:
        weights: The tensors.
        factors: f, one for each tensor; 1 by default.
    """

    def __init__(self, weights: Sequence[nn.Parameter], factors: Sequence[float] | None = None) -> None:
        self._weights = list(weights)
        self._factors = list(factors or [1.0] * len(self._weights))

    def value(self) -> Tensor:
        """The sum."""
        return _total(self._weights, self._factors, power=1)

    def add_gradient(self, strength: float) -> None:
        """f sign(w)."""
        places, weights, gradients = _with_gradients(self._weights)
        factors = [strength * self._factors[place] for place in places]
        torch._foreach_add_(gradients, torch._foreach_mul(torch._foreach_sign(weights), factors))

    @torch.no_grad()
    def shrink(self, amount: float) -> None:
        """The soft threshold: towards zero by amount f, and no further."""
        limits = [amount * factor for factor in self._factors]
        inside = torch._foreach_clamp_min(self._weights, [-limit for limit in limits])
        torch._foreach_sub_(self._weights, torch._foreach_clamp_max(inside, limits))


class GroupLasso(Penalty):
    """sum over groups of f times the 2-norm of the group (W 3.5.3; for outgoing groups W 3.4.1).

    Args:
        weights: The tensors.
        groups: A partition of their entries; a group may lie in several tensors.
        factors: f, [groups]; 1 by default.
    """

    def __init__(self, weights: Sequence[nn.Parameter], groups: Groups, factors: Tensor | None = None) -> None:
        self._weights, self._groups = list(weights), groups
        self._factors = torch.ones_like(groups.sizes) if factors is None else factors
        self._factors = self._factors.to(self._weights[0])

    def value(self) -> Tensor:
        """The sum."""
        return (self._factors * self._groups.norms(self._weights)).sum()

    @torch.no_grad()
    def add_gradient(self, strength: float) -> None:
        """F w / ||group||; 0 where the group is."""
        norms = self._groups.norms(self._weights)
        slopes = torch.where(norms > 0, self._factors / norms, 0.0)
        places, weights, gradients = _with_gradients(self._weights)
        spread = self._groups.spread(slopes, self._weights)
        torch._foreach_addcmul_(gradients, weights, [spread[place] for place in places], value=strength)

    @torch.no_grad()
    def shrink(self, amount: float) -> None:
        """The block soft threshold: each group towards zero by amount f, all its entries alike, and no further."""
        norms = self._groups.norms(self._weights)
        shares = torch.where(norms > 0, 1 - amount * self._factors / norms, 0.0).clamp(min=0.0)
        torch._foreach_mul_(self._weights, self._groups.spread(shares, self._weights))


class SparseGroupLasso(Penalty):
    """mix times an L1 penalty and 1 - mix times a group Lasso (W 3.5.3).

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

    def shrink(self, amount: float) -> None:
        """First the entries, then the groups: together they are the mixture's step (Simon and others 2013)."""
        self._l1.shrink(self._mix * amount)
        self._group_lasso.shrink((1 - self._mix) * amount)


def _total(weights: Sequence[Tensor], factors: Sequence[float], *, power: int) -> Tensor:
    sums = [weight.square().sum() if power == 2 else weight.abs().sum() for weight in weights]
    return torch.stack([factor * each for factor, each in zip(factors, sums, strict=True)]).sum()


@torch.no_grad()
def _with_gradients(weights: Sequence[nn.Parameter]) -> tuple[list[int], list[Tensor], list[Tensor]]:
    """Those that have one: their places in the list, they and their gradients."""
    places = [place for place, weight in enumerate(weights) if weight.grad is not None]
    chosen = [weights[place] for place in places]
    return places, [weight.detach() for weight in chosen], [weight.grad for weight in chosen if weight.grad is not None]
