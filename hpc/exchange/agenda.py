"""When the ranks pause together: at the end of an epoch, for a checkpoint, because somebody asked them to stop."""

from enum import Enum


class Pause(Enum):
    """Why the ranks pause. All of them give the same reason, at places that belong together."""

    SAVE = "save"
    EPOCH = "epoch"
    STOP = "stop"


class Agenda:
    """The next pause, from the steps that all ranks have made together: pure arithmetic, alike on every rank.

    Ranks that train in step make ``size`` steps at a time. Ranks that train at their own speed pause when their sum
    has reached what it would have been.

    Args:
        steps_per_epoch: steps of one rank in an epoch, were all equally fast.
        every_steps: steps of one rank between two checkpoints; None: only at the ends of epochs.
        size: number of ranks.
    """

    def __init__(self, steps_per_epoch: int, every_steps: int | None, size: int) -> None:
        self._epoch = steps_per_epoch * size
        self._every = every_steps * size if every_steps else None
        self._ends = self._epoch
        self._saves = self._every

    def resume(self, epoch: int, total: int) -> None:
        """Training goes on in epoch ``epoch`` (from 0), after ``total`` steps of all ranks; no epoch is without any."""
        self._ends = max((epoch + 1) * self._epoch, total + 1)
        self._saves = (total // self._every + 1) * self._every if self._every else None

    def left(self, total: int) -> int:
        """Steps of all ranks together to the next pause; 0 or less: it is due."""
        return min(self._ends, self._saves or self._ends) - total

    def due(self, total: int, *, stop: bool) -> Pause | None:
        """The pause that is due after ``total`` steps. An epoch ends before it is stopped: nothing of it is left."""
        if total >= self._ends:
            return Pause.EPOCH
        if stop:
            return Pause.STOP
        return Pause.SAVE if self._saves is not None and total >= self._saves else None
