"""Ranks that train at their own speed, and pause together."""

from abc import abstractmethod
from functools import partial

from torch import nn

from hpc.communicator import Communicator
from hpc.exchange.agenda import Agenda, Pause
from hpc.exchange.agreement import Agreement, Report
from hpc.exchange.base import Exchange
from hpc.exchange.carry import Carry
from hpc.exchange.survey import Survey
from hpc.exchange.traffic import Traffic


class OwnPace(Exchange):
    """An exchange that waits for nobody (each worker has its own clock, B 2.3.3.3).

    What is shared is the sum of all workers' steps: a pause is due when it has reached what it would have been, had
    they trained in step. A rank that is far ahead waits shortly before a pause, so that nobody runs past it.

    Args:
        comm: the ranks.
        model: this rank's network.
        agenda: when the ranks pause.
        workers: how many of the ranks train: all, or all but rank 0.
        seed: the master seed.
        consensus_every: steps between two measurements of how far apart the workers are; None: never.
    """

    def __init__(
        self,
        comm: Communicator,
        model: nn.Module,
        agenda: Agenda,
        workers: int,
        *,
        seed: int,
        consensus_every: int | None,
    ) -> None:
        super().__init__(comm, model, agenda)
        self.workers = workers
        self.trains = comm.rank > 0 or workers == comm.size
        self._survey = Survey.planned(model if self.trains else None, seed, consensus_every, workers)
        self._traffic: Traffic | None = None
        self._total = 0
        """Steps of all ranks together, as of the last sum of their reports."""
        self._news = 0
        """How many sums there were."""
        self._enough = 1
        """The own step at which this rank waits for the next."""

    @abstractmethod
    def _open(self) -> Traffic:
        """Start to talk: called before the first step, with the state that a checkpoint held. Collective."""

    @abstractmethod
    def _mix(self) -> None:
        """Take in what has arrived."""

    def resume(self, epoch: int, step: int) -> None:
        """Go on from a place that all know. Collective."""
        if self.comm.size == 1:
            self.agenda.resume(epoch, step)
            return
        self._count(step)
        self.agenda.resume(epoch, self._total)
        self._learn(self._total, step)
        if self._traffic is None:
            self._traffic = self._open()
        self._traffic.agreement.report[0] = step  # before its first step, it has made those
        if self._survey is not None:
            self._survey.resume(self.made(step))
        self._traffic.start()

    def pause(self, step: int, *, requested: bool) -> Pause | None:
        """What the sums of all ranks' reports say, wherever this rank is.

        What is left to the next pause belongs to all workers alike: one that has made its part since it last heard of
        the others waits for news. Far from a pause that never happens; it keeps quick ranks from running past it.
        """
        traffic = self._traffic
        if traffic is None:
            return self.agenda.due(step, stop=requested)
        agreement = traffic.agreement
        agreement.report[0] = step  # not both as a slice: that takes ten times as long, and this is in every step
        agreement.report[1] = requested
        while agreement.pause is None and step >= self._enough:
            with self._blocked():
                traffic.wait(partial(self._heard_since, agreement, self._news), self._mix)
        return agreement.pause

    def _heard_since(self, agreement: Agreement, news: int) -> bool:
        """Has another sum come, or was the last one a pause? It is noted after the news of it."""
        return self._news != news or agreement.pause is not None

    def made(self, step: int) -> int:
        """The mean over workers, as far as it is known."""
        return self._total // self.workers if self.comm.size > 1 else step

    def share_out(self, total: int) -> int:
        """The first of those who train have made what is left over; a master by itself has made none."""
        place = self.comm.rank - (self.comm.size - self.workers)
        return total // self.workers + (place < total % self.workers) if self.trains else 0

    def quiesce(self) -> None:
        """Everything under way arrives, and everybody's steps are counted. Collective."""
        if self._traffic is not None:
            with self._blocked():
                self._traffic.settle(self._mix)
            self._hear(self._traffic)  # so that all ranks have heard of the same sums
            self._count(int(self._traffic.agreement.report[0]))

    def restructure(self, carry: Carry) -> None:
        """Measure the network as it is now, also where some ranks have looked at it before the pause and others not."""
        super().restructure(carry)
        if self._survey is not None and (other := self._survey.restructure()) is not None:
            assert self._traffic is not None
            self._traffic.agreement.correct(other)

    def _measure(self, step: int) -> None:
        """Take part in measuring how far apart the workers are, when that is due: after a step, or while attending."""
        survey, traffic = self._survey, self._traffic
        if survey is None or traffic is None or survey.rests(self._total // self.workers):
            return
        self._hear(traffic)
        survey.due(step, self.made(step))
        if (own := survey.give()) is not None:
            traffic.agreement.offer(own)

    def _hear(self, traffic: Traffic) -> None:
        """Note the consensus errors of sketches that have been summed."""
        while self._survey is not None and traffic.agreement.sums:
            self.consensus_errors.append(self._survey.heard(traffic.agreement.sums.popleft()))

    def _count(self, step: int) -> None:
        """The steps of all ranks together. Collective."""
        with self._blocked():
            everyone = self.comm.gather(step, "count steps")
        self._learn(sum(everyone), step)

    def _learn(self, total: int, own: int) -> None:
        """All ranks together had made so many steps when this one had made ``own``."""
        self._total = total
        self._enough = own + max(1, -(-self.agenda.left(total) // self.workers))
        self._news += 1

    def close(self) -> None:
        """The run has ended on every rank. Collective."""
        if self._traffic is not None:
            self._traffic.close()

    def _decide(self, everyone: Report, own: Report) -> Pause | None:
        """Of the sums of all reports, the same on every rank. Called by whoever moves the messages."""
        self._learn(int(everyone[0]), int(own[0]))
        return self.agenda.due(self._total, stop=bool(everyone[1]))
