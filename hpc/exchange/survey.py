"""How far apart the ranks are, measured while they train: for the record's /consensus."""

from typing import Self

import torch
from torch import nn

from hpc.exchange.sketch import Sketch, Sums, estimate, nothing
from hpc.exchange.slices import slices_of
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
        self.every, self._workers, self._model, self._seed = every, workers, model, seed
        self._sketch = self._new_sketch()
        self._next = every
        self._at = 0
        self._taken = self._given = False

    @classmethod
    def planned(cls, model: nn.Module | None, seed: int, every: int | None, workers: int) -> Self | None:
        """A survey, unless nobody asks for one (``every`` is None) or there is nobody to be apart from."""
        return None if every is None or workers == 1 else cls(model, seed, every, workers)

    def _new_sketch(self) -> Sketch | None:
        if self._model is None:
            return None
        weights: list[torch.Tensor] = [parameter.detach() for parameter in self._model.parameters()]
        return Sketch(slices_of(weights, 1)[0], seed_for(self._seed, "exchange"))

    def restructure(self) -> Sums | None:
        """The network has been cut: what was sketched and not yet summed is sketched anew, as it is now.

        Returns:
            What to offer in place of what :meth:`give` gave, if its sum has not come.
        """
        self._sketch = self._new_sketch()
        if self._sketch is not None and (self._taken or self._given):
            self._sketch.take()
            self._sketch.ready(wait=True)
        return self._summand() if self._given else None

    def _summand(self) -> Sums:
        return nothing() if self._sketch is None else self._sketch.to_sum(self._at)

    def forget(self) -> None:
        """Leave out what was sketched and not yet summed. On all ranks alike, at rest."""
        self._taken = self._given = False

    def resume(self, made: int) -> None:
        """Go on where the run has made so many steps."""
        self._next = (made // self.every + 1) * self.every

    def rests(self, made: int) -> bool:
        """Is nothing under way, and nothing due at this step of the run?"""
        return made < self._next and not self._taken and not self._given

    def due(self, step: int, made: int) -> None:
        """Take a sketch, if one is due.

        Args:
            step: the steps that this rank has made.
            made: the step that the run is at.
        """
        if not self._taken and not self._given and made >= self._next:
            if self._sketch is not None:
                self._sketch.take()
            self._at, self._taken, self._next = step, True, (made // self.every + 1) * self.every

    def give(self, *, wait: bool = False) -> Sums | None:
        """What this rank adds to the sum, once, when there is something.

        Args:
            wait: for a sketch that has been taken but is still on its way from a CUDA device.
        """
        if not self._taken or not (self._sketch is None or self._sketch.ready(wait=wait)):
            return None
        self._taken, self._given = False, True
        return self._summand()

    def heard(self, sums: Sums) -> tuple[int, float]:
        """(step, consensus error), now that the sums over all ranks are there."""
        self._given = False
        return estimate(sums, self._workers)
