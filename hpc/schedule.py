"""Learning-rate schedules as a factor on the base rate, and early stopping.

A factor, so that one schedule multiplies all rates alike where an optimiser has many. Closed forms of the epoch
instead of torch.optim.lr_scheduler's chained products: nothing to save, nothing that drifts. (They are tested
against it.)
"""

import math
from typing import Any

from hpc.config.training import Constant, Cosine, EarlyStopping, Exponential, Plateau, ScheduleConfig, Step


class Patience:
    """Counts epochs without improvement of a loss that should fall.

    Args:
        patience: epochs without improvement that are tolerated.
        min_delta: an improvement is a loss below the best by more than this.
    """

    def __init__(self, patience: int, min_delta: float) -> None:
        self._patience, self._min_delta = patience, min_delta
        self.best, self.waited = math.inf, 0

    def exhausted(self, loss: float) -> bool:
        """Take the loss of one more epoch. True when patience has run out; the count then starts again."""
        if loss < self.best - self._min_delta:
            self.best, self.waited = loss, 0
            return False
        self.waited += 1
        if self.waited > self._patience:
            self.waited = 0
            return True
        return False

    def state_dict(self) -> dict[str, Any]:
        """Best loss and epochs waited."""
        return {"best": self.best, "waited": self.waited}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what :meth:`state_dict` gave."""
        self.best, self.waited = state["best"], state["waited"]


def early_stopping(config: EarlyStopping) -> Patience:
    """``patience`` epochs without improvement end the run: the last of them is not tolerated any more."""
    return Patience(config.patience - 1, config.min_delta)


class Schedule:
    """The factor on the learning rate, as a function of the epoch (and of the step, while warming up).

    Args:
        config: which schedule.
        epochs: epochs of the whole run.
        steps_per_epoch: steps of one epoch.
    """

    def __init__(self, config: ScheduleConfig, epochs: int, steps_per_epoch: int) -> None:
        self._config, self._epochs = config, epochs
        self._warmup_steps = round(config.warmup_epochs * steps_per_epoch)
        self._reduced = 1.0
        self._plateau = Patience(config.patience, config.min_delta) if isinstance(config, Plateau) else None

    def factor(self, epoch: int, step: int) -> float:
        """The factor for step ``step`` of the run (from 0), which is in epoch ``epoch`` (from 0)."""
        warmup = min(1.0, (step + 1) / self._warmup_steps) if self._warmup_steps else 1.0
        return warmup * self._of_epoch(epoch)

    def changes_within_epoch(self, step: int) -> bool:
        """Is step ``step`` still in the warm-up, where every step has a factor of its own?"""
        return step <= self._warmup_steps and self._warmup_steps > 0

    def _of_epoch(self, epoch: int) -> float:
        match self._config:
            case Constant():
                return 1.0
            case Step(milestones=milestones, factor=factor):
                return float(factor ** sum(epoch >= milestone for milestone in milestones))
            case Cosine(floor=floor):
                return floor + (1 - floor) * (1 + math.cos(math.pi * epoch / self._epochs)) / 2
            case Exponential(factor=factor):
                return float(factor**epoch)
            case Plateau():
                return self._reduced

    def after_epoch(self, valid_loss: float) -> None:
        """An epoch has ended with this validation loss."""
        if self._plateau is not None and self._plateau.exhausted(valid_loss):
            self._reduced *= self._config.factor if isinstance(self._config, Plateau) else 1.0

    def state_dict(self) -> dict[str, Any]:
        """What the plateau schedule carries; the others are pure functions."""
        return {"reduced": self._reduced, "plateau": self._plateau.state_dict() if self._plateau else None}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what :meth:`state_dict` gave."""
        self._reduced = state["reduced"]
        if self._plateau is not None:
            self._plateau.load_state_dict(state["plateau"])
