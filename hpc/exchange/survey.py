"""How far apart the ranks are, measured while they train: for the record's /consensus."""

from typing import Self

import torch
from torch import nn

from hpc.exchange.sketch import Sketch, Sums, estimate, nothing
from hpc.exchange.wire import cut
from hpc.seeding import seed_for


class Survey:
    """Takes a sketch of a rank's weights when one is due, and turns the sums over ranks into consensus errors.

    Whoever asks moves the sums. One is under way at a time; what comes due meanwhile is left out.

    Args:
        model: this rank's network; None for a rank that does not train, which gives zeros.
        seed: the master seed. Ranks with one seed can compare their sketches.
        every: steps between two measurements.
        workers: how many ranks train.
    """

    def __init__(self, model: nn.Module | None, seed: int, every: int, workers: int) -> None:
        self.every, self._workers = every, workers
        self._sketch: Sketch | None = None
        if model is not None:
            weights: list[torch.Tensor] = [parameter.detach() for parameter in model.parameters()]
            self._sketch = Sketch(cut(weights, 1)[0], seed_for(seed, "exchange"))
        self._next = every
        self._taken_at: int | None = None
        self._given = False

    @classmethod
    def planned(cls, model: nn.Module | None, seed: int, every: int | None, workers: int) -> Self | None:
        """A survey, unless nobody asks for one (``every`` is None) or there is nobody to be apart from."""
        return None if every is None or workers == 1 else cls(model, seed, every, workers)

    def resume(self, made: int) -> None:
        """Go on where the run has made so many steps."""
        self._next = (made // self.every + 1) * self.every

    def rests(self, made: int) -> bool:
        """Is nothing under way, and nothing due at this step of the run?"""
        return made < self._next and self._taken_at is None and not self._given

    def due(self, step: int, made: int) -> None:
        """Take a sketch, if one is due.

        Args:
            step: the steps that this rank has made.
            made: the step that the run is at.
        """
        if self._taken_at is None and not self._given and made >= self._next:
            if self._sketch is not None:
                self._sketch.take()
            self._taken_at, self._next = step, (made // self.every + 1) * self.every

    def give(self, *, wait: bool = False) -> Sums | None:
        """What this rank adds to the sum, once, when there is something.

        Args:
            wait: for a sketch that has been taken but is still on its way from a CUDA device.
        """
        if self._taken_at is None or not (self._sketch is None or self._sketch.ready(wait=wait)):
            return None
        sums = nothing() if self._sketch is None else self._sketch.to_sum(self._taken_at)
        self._taken_at, self._given = None, True
        return sums

    def heard(self, sums: Sums) -> tuple[int, float]:
        """(step, consensus error), now that the sums over all ranks are there."""
        self._given = False
        return estimate(sums, self._workers)
