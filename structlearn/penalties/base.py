"""The contract of a penalty on weights."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Container, Sequence

    from torch import Tensor


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


def is_moved(weight: Tensor, moved: Container[Tensor] | None) -> bool:
    """Is the weight among those that have been trained? None stands for all."""
    return moved is None or weight in moved


def gradients(weights: Sequence[Tensor]) -> list[Tensor]:
    """The gradients of those weights that have one."""
    return [weight.grad for weight in weights if weight.grad is not None]
