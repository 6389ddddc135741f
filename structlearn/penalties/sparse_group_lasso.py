"""Lasso and group Lasso together (W 3.5.3, eq. 4.11)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from structlearn.penalties.base import Penalty

if TYPE_CHECKING:
    from collections.abc import Container

    from torch import Tensor

    from structlearn.penalties.group_lasso import GroupLasso
    from structlearn.penalties.l1 import L1


class SparseGroupLasso(Penalty):
    """`mix` times an L1 penalty and 1 - `mix` times a group Lasso.

    Args:
        l1: The one.
        group_lasso: The other, of the same weights.
        mix: W's alpha (in W 4.5.2 gamma).
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
