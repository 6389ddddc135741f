"""How far apart the ranks are, measured while they train: for the record's /consensus."""

from abc import abstractmethod
from typing import Final

import torch
from torch import nn

from hpc.comm import Communicator, Mean
from hpc.exchange.agenda import Agenda
from hpc.exchange.base import Exchange
from hpc.exchange.sketch import Sketch, Sums, estimate, nothing
from hpc.exchange.wire import cut
from hpc.seeding import seed_for

_WHAT: Final = "measure how far apart the ranks are"


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

    def resume(self, made: int) -> None:
        """Go on where the run has made so many steps."""
        self._next = (made // self.every + 1) * self.every

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


class InStep(Exchange):
    """Ranks that make the same number of steps, and need not hold the same weights.

    They measure right before they exchange, when they are farthest apart. The sum comes back while they train on, and
    is asked for when the next is due: so the record does not depend on who was quick.

    Args:
        comm: the ranks.
        model: this rank's network.
        agenda: when the ranks pause.
        seed: the master seed.
        consensus_every: steps between two measurements of how far apart the ranks are; None: never.
    """

    def __init__(
        self, comm: Communicator, model: nn.Module, agenda: Agenda, *, seed: int, consensus_every: int | None
    ) -> None:
        super().__init__(comm, model, agenda)
        self._survey: Survey | None = None
        if consensus_every is not None and comm.size > 1:
            self._survey = Survey(model, seed, consensus_every, comm.size)
        self._adding: tuple[Mean, torch.Tensor] | None = None

    def resume(self, epoch: int, step: int) -> None:
        """Go on. Collective."""
        super().resume(epoch, step)
        if self._survey is not None:
            self._survey.resume(step)

    def after_step(self, step: int) -> None:
        """Measure when it is due; then :meth:`meet`."""
        if self._survey is not None:
            self._measure(self._survey, step)
        self.meet(step)

    @abstractmethod
    def meet(self, step: int) -> None:
        """Exchange, if it is due after this step."""

    def quiesce(self) -> None:
        """The last measurement comes back. Collective."""
        if self._survey is not None:
            self._collect(self._survey)

    def _measure(self, survey: Survey, step: int) -> None:
        if step % survey.every == 0:
            self._collect(survey)
        elif self._adding is not None:
            self._adding[0].done()  # moves it on
        survey.due(step, step)
        self._add(survey.give())

    def _add(self, own: Sums | None) -> None:
        if own is not None:
            values = torch.from_numpy(own)
            self._adding = self.comm.start_mean(values, _WHAT), values

    def _collect(self, survey: Survey) -> None:
        self._add(survey.give(wait=True))
        if self._adding is not None:
            mean, values = self._adding
            mean.wait()
            self._adding = None
            self.consensus_errors.append(survey.heard(values.numpy() * self.comm.size))
