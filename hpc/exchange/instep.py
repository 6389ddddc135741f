"""Ranks that train in step, and hold networks of their own."""

from abc import abstractmethod
from typing import Final

import torch
from torch import nn

from hpc.communicator import Communicator, Mean
from hpc.exchange.agenda import Agenda
from hpc.exchange.base import Exchange
from hpc.exchange.carry import Carry
from hpc.exchange.sketch import Sums
from hpc.exchange.survey import Survey

_WHAT: Final = "measure how far apart the ranks are"


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
        self._survey = Survey.planned(model, seed, consensus_every, comm.size)
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

    def restructure(self, carry: Carry) -> None:
        """Measure the network as it is now."""
        super().restructure(carry)
        if self._survey is not None:
            self._survey.restructure()  # at rest, nothing has to be corrected

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
        self._add(survey.give(wait=True))  # at this very step: means are told apart by the order they start in

    def _add(self, own: Sums | None) -> None:
        if own is not None:
            values = torch.from_numpy(own)
            self._adding = self.comm.start_mean(values, _WHAT), values

    def _collect(self, survey: Survey) -> None:
        self._add(survey.give(wait=True))
        if self._adding is not None:
            mean, values = self._adding
            with self._blocked():
                mean.wait()
            self._adding = None
            self.consensus_errors.append(survey.heard(values.numpy() * self.comm.size))
