"""When a channel dies: three rules over the signs and sizes of all switches at once (S 3.5.1, METHODS 4).

A rule is called after each step of the optimiser. It waits for nothing, and has no loop over channels.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import torch

from structlearn.checks import check_choice, check_positive, check_share
from structlearn.shrinknets.switch import ALIVE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from structlearn.shrinknets.switch import Switch

    Tensors = list[Tensor] | tuple[Tensor, ...]


class Rule(ABC):
    """Which channels die now, by what has become of their theta."""

    @torch.no_grad()
    def __call__(self, switches: Sequence[Switch]) -> None:
        """Mark those that die, in place; the dead ones' theta is 0, whatever the optimiser's momentum says.

        Where all channels of a switch would be dead, so that nothing went through the layer any more, the one with the
        largest |theta| lives on (and `held` says so).
        """
        if not switches:
            return
        thetas = [switch.theta.detach() for switch in switches]
        alive = [switch.alive for switch in switches]
        dies = self._dies(thetas, [switch.mean for switch in switches], [switch.variance for switch in switches])
        best = _largest(torch._foreach_mul(torch._foreach_abs(thetas), alive))
        torch._foreach_add_(alive, 1 - ALIVE)  # a mean over ranks that is not all alive is dead
        torch._foreach_floor_(alive)
        torch._foreach_addcmul_(alive, alive, dies, value=-1)
        nobody = torch._foreach_neg(torch._foreach_max(alive))
        torch._foreach_add_(nobody, 1.0)
        torch._foreach_add_(alive, torch._foreach_mul(best, nobody))
        torch._foreach_maximum_([switch.held for switch in switches], nobody)
        torch._foreach_mul_(thetas, alive)

    @abstractmethod
    def _dies(self, thetas: Tensors, means: Tensors, variances: Tensors) -> Tensors:
        """For each switch 1 where a channel dies and 0 elsewhere; `means` and `variances` are brought up to date."""


@dataclass(frozen=True)
class Threshold(Rule):
    """Dead where `|theta| < level`. It depends on the scale of theta, as S says of it."""

    level: float = 1e-3

    def __post_init__(self) -> None:
        check_positive("level of the rule threshold", self.level)

    def _dies(self, thetas: Tensors, means: Tensors, variances: Tensors) -> Tensors:
        missing = torch._foreach_neg(torch._foreach_abs(thetas))
        torch._foreach_add_(missing, self.level)
        return _positive(missing)


@dataclass(frozen=True)
class SignChange(Rule):
    """Dead as soon as the sign is another than at the start."""

    def _dies(self, thetas: Tensors, means: Tensors, variances: Tensors) -> Tensors:
        return _positive(torch._foreach_abs(torch._foreach_sub(torch._foreach_sign(thetas), means)))


@dataclass(frozen=True)
class SignVariance(Rule):
    """Dead where the sign's running variance is above 1/2.

    After each step, with `s` the sign: `d = s - m`, `v = g v + (1 - g) d^2`, `m = g m + (1 - g) s` (v takes the old m).
    One lasting change of sign kills, too: after 16 steps with g = 0.99, after 2 with 0.9, at once with 0.

    Args:
        memory: g, at least 0 and below 1. The authors use 0.99, 0.9 and 0.
        level: 1/2.
    """

    memory: float = 0.99
    level: float = 0.5

    def __post_init__(self) -> None:
        check_share("memory of the rule sign_variance", self.memory, zero=True)
        check_positive("level of the rule sign_variance", self.level)

    def _dies(self, thetas: Tensors, means: Tensors, variances: Tensors) -> Tensors:
        signs = torch._foreach_sign(thetas)
        apart = torch._foreach_sub(signs, means)
        torch._foreach_mul_(variances, self.memory)
        torch._foreach_addcmul_(variances, apart, apart, value=1 - self.memory)
        torch._foreach_lerp_(means, signs, 1 - self.memory)
        return _positive(torch._foreach_sub(variances, self.level))


RULES: Final[dict[str, type[Rule]]] = {
    "threshold": Threshold,
    "sign_change": SignChange,
    "sign_variance": SignVariance,
}


def rule(name: str, **options: float) -> Rule:
    """The rule called `name`.

    Args:
        name: A key of `RULES`.
        **options: `level` (threshold, sign_variance), `memory` (sign_variance).
    """
    check_choice("killing rule", name, RULES)
    for option in options:
        check_choice(f"option of {name}", option, getattr(RULES[name], "__dataclass_fields__", {}))
    return RULES[name](**options)


def _positive(values: Tensors) -> Tensors:
    """1 where a value is above 0, else 0, in place (there is no comparison of many tensors at once)."""
    torch._foreach_sign_(values)
    torch._foreach_clamp_min_(values, 0.0)
    return values


def _largest(sizes: Tensors) -> Tensors:
    """1 where a tensor's largest value is, if that is above 0; else 0."""
    behind = torch._foreach_sub(sizes, torch._foreach_max(sizes))  # 0 for the largest, below for others
    torch._foreach_sign_(behind)
    torch._foreach_add_(behind, 1.0)
    return torch._foreach_mul(behind, torch._foreach_sign(sizes))
