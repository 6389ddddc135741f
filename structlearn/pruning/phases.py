"""When pruning ends and fine-tuning begins (W 3.4.2, 3.5.4, 4.8.1)."""

from __future__ import annotations

from math import inf
from typing import Any, Final, Literal

from structlearn.checks import check_count

Phase = Literal["pruning", "fine_tuning", "done"]
DROPS: Final = 2
"""How often the learning rate falls during fine-tuning; the plateau after that ends it."""


class Phases:
    """Phase A, pruning, until nothing improves; phase B, fine-tuning, with a learning rate that falls twice (W 3.5.4).

    A ends when neither the number of units nor the best validation accuracy has improved for `patience` epochs. In B
    there is no penalty and no pruning; where the best accuracy of this phase has not improved for `patience` epochs the
    learning rate is divided by 10, twice, and the third time training ends. What B keeps is its own best network: those
    of A are larger, and may have been better only while they were.

    Args:
        patience: W's 50 epochs.

    Raises:
        ValueError: it is not a whole number of at least 1.
    """

    def __init__(self, patience: int = 50) -> None:
        self.patience = check_count("patience", patience)
        self.phase: Phase = "pruning"
        self.best = False
        """Was the last epoch of fine-tuning the best one of it so far?"""
        self._waited = 0
        self._drops = 0
        self._accuracy = -inf
        self._units: float = inf

    @property
    def factor(self) -> float:
        """What the learning rate is multiplied with: 1, then 0.1, then 0.01."""
        return 0.1**self._drops

    def after_epoch(self, accuracy: float, units: int) -> None:
        """Look at an epoch's end.

        Args:
            accuracy: On the validation set; higher is better, nan never is.
            units: How many are left.
        """
        if self.phase == "done":
            self.best = False
            return
        better, fewer = accuracy > self._accuracy, units < self._units
        self._accuracy, self._units = max(self._accuracy, accuracy if better else -inf), min(self._units, float(units))
        self.best = better and self.phase == "fine_tuning"
        self._waited = 0 if better or (fewer and self.phase == "pruning") else self._waited + 1
        if self._waited < self.patience:
            return
        self._waited = 0
        if self.phase == "pruning":
            self.phase, self._accuracy = "fine_tuning", -inf
        elif self._drops < DROPS:
            self._drops += 1
        else:
            self.phase = "done"

    def state_dict(self) -> dict[str, Any]:
        """All but the patience, as plain values."""
        return {
            "phase": self.phase,
            "best": self.best,
            "waited": self._waited,
            "drops": self._drops,
            "accuracy": self._accuracy,
            "units": self._units,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what :meth:`state_dict` gave."""
        self.phase, self.best = state["phase"], bool(state["best"])
        self._waited, self._drops = int(state["waited"]), int(state["drops"])
        self._accuracy, self._units = float(state["accuracy"]), float(state["units"])
