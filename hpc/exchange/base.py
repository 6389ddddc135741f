"""The contract of an exchange strategy."""

import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, Final

import torch
from torch import nn

from hpc.communicator import Communicator, Pending
from hpc.exchange.agenda import Agenda, Pause
from hpc.exchange.carry import Carry
from hpc.exchange.contents import float_buffers, weights_and_buffers
from hpc.flat import FlatBuffer, copy_all

# Steps between two agreements on whether to stop. The question is asked at one of these steps and answered at
# the next, so that nobody waits for the answer; a stop therefore takes effect within twice as many steps.
AGREE_EVERY: Final = 4


@dataclass
class Counters:
    """What one rank has exchanged so far: a row of the record's /exchange."""

    sent: int = 0
    received: int = 0
    skipped: int = 0
    bytes_sent: int = 0
    mass: float = 1.0
    seconds_blocked: float = 0.0


class Exchange(ABC):
    """Keeps the ranks' networks together.

    The engine calls :meth:`after_backward` and :meth:`after_step` in every step and knows nothing else about
    a strategy. What a strategy carries between steps is in :meth:`state_dict`.

    Args:
        comm: the ranks.
        model: this rank's network.
        agenda: when the ranks pause.
    """

    replicated: ClassVar[bool]
    """Do all ranks hold the same parameters and optimiser state after every step? Then a checkpoint holds
    them once."""

    def __init__(self, comm: Communicator, model: nn.Module, agenda: Agenda) -> None:
        self.comm = comm
        self.model = model
        self.agenda = agenda
        self.workers = comm.size
        """How many of the ranks train."""
        self.trains = True
        """Does this rank train? One that does not calls :meth:`attend` in place of steps."""
        self.structure = 0
        """The version of the network's structure: how often it has been cut."""
        self.counters = Counters(mass=1.0 / comm.size)
        self.consensus_errors: list[tuple[int, float]] = []
        """(step, estimate of sum_m ||w_m - mean(w)||^2) since the engine last took them; the same on every rank."""
        self._question: Pending | None = None

    def after_backward(self) -> None:
        """Gradients are there; the optimiser has not stepped yet."""

    @abstractmethod
    def after_step(self, step: int) -> None:
        """The optimiser has made step number ``step`` (from 1)."""

    def attend(self) -> None:
        """Serve the others for a moment: for a rank that does not train."""
        raise AssertionError("this rank trains")

    def resume(self, epoch: int, step: int) -> None:
        """Training starts, or goes on after a pause. Collective.

        Args:
            epoch: the epoch that it is in, from 0.
            step: the steps that this rank has made.
        """
        self.agenda.resume(epoch, step * self.comm.size)

    def pause(self, step: int, *, requested: bool) -> Pause | None:
        """Do the ranks pause after this step, and why? All of them answer alike.

        Args:
            step: the steps that this rank has made.
            requested: has somebody asked this rank to stop?
        """
        return self.agenda.due(step * self.comm.size, stop=self._stop_agreed(step, requested=requested))

    def made(self, step: int) -> int:
        """The step that the run is at, where this rank is at ``step``."""
        return step

    def _stop_agreed(self, step: int, *, requested: bool) -> bool:
        """Do the ranks stop after this step? All of them answer alike, at the same step."""
        if self.comm.size == 1:
            return requested
        if step % AGREE_EVERY:
            return False
        if self._question is not None and self._question.wait():
            self._question = None
            return True
        self._question = self.comm.start_max(int(requested), "agree on whether to stop")
        return False

    def quiesce(self) -> None:
        """Bring everything under way to rest, so that the state is whole. Collective."""

    @contextmanager
    def consensus(self) -> Iterator[None]:
        """Inside, the model is the one the ranks stand for together. Collective.

        That is the mean of their weights and float buffers. After, each rank has its own back, bit for bit.
        """
        if self.comm.size == 1:
            yield
            return
        values = float_buffers(self.model) if self.replicated else weights_and_buffers(self.model)
        own = [value.clone() for value in values]
        if values:
            self._agree(values)
        try:
            yield
        finally:
            copy_all(values, own)

    def _agree(self, values: list[torch.Tensor]) -> None:
        """Replace values by what the ranks stand for together."""
        self._average(self._flat(values), values, "evaluate the mean of all ranks")

    def restructure(self, carry: Carry) -> None:
        """The network has been cut, and the optimiser's state with it: cut what is held here in their shape.

        Called by all ranks at a pause, when everything is at rest; no rank waits for another in it.

        Args:
            carry: does the same to networks that are not the rank's own.
        """
        self.structure = carry.version

    def slices(self, values: list[torch.Tensor]) -> list[list[torch.Tensor]]:
        """A network, as :func:`weights_and_buffers` gives it, in views by the :meth:`shares` that its numbers have."""
        return [values]

    def state_dict(self) -> dict[str, Any]:
        """The state of this rank's part: its counters, and what a strategy adds."""
        return {"counters": dict(vars(self.counters))}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what :meth:`state_dict` gave."""
        self.counters = Counters(**state["counters"])

    def shares(self, state: dict[str, Any], rank: int, ranks: int) -> list[float]:
        """What a rank's network counts for in the one that the ranks stand for, one share for each slice of it.

        Args:
            state: the rank's :meth:`state_dict`.
            rank: which one it was.
            ranks: how many there were.
        """
        return [1 / ranks]

    def put_centre(self, state: dict[str, Any], values: list[torch.Tensor]) -> None:
        """Put what the ranks stand for into values, where that is neither one of their networks nor a mean of them.

        Args:
            state: rank 0's :meth:`state_dict`.
            values: as :func:`weights_and_buffers` gives them.
        """

    def share_out(self, total: int) -> int:
        """The steps that count as made by this rank, where all that train have made so many together.

        Ranks in step have made equally many: what is left over counts as not made.
        """
        return total // self.workers

    def let_go(self) -> None:
        """A rank is lost: give up whatever is under way, and keep what this rank holds."""

    def survive(self, states: Sequence[dict[str, Any]], rank: int, ranks: int) -> tuple[dict[str, Any], float]:
        """(the state of a rank among those that are left, the part of the whole mass that was lost).

        Args:
            states: the :meth:`state_dict` of each that is left.
            rank: which of them.
            ranks: how many there were before.
        """
        raise AssertionError("hpc.config.check lets nothing lose ranks that cannot")

    def close(self) -> None:
        """The run has ended on every rank. Collective."""
        if self._question is not None:
            self._question.wait()
            self._question = None

    def _flat(self, values: list[torch.Tensor]) -> FlatBuffer:
        """A buffer for means of values over the ranks."""
        return FlatBuffer(values, direct=self.comm.takes(values[0].device))

    def _average(self, buffer: FlatBuffer, values: list[torch.Tensor], what: str) -> None:
        """Replace values by their means over the ranks."""
        with torch.no_grad():
            flat = buffer.pack(values)
            with self._blocked():
                self.comm.start_mean(flat, what).wait()  # half as long as a sum over all ranks and a division
            buffer.unpack(values)

    @contextmanager
    def _blocked(self) -> Iterator[None]:
        """Inside, this rank waits for others: count the seconds."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.counters.seconds_blocked += time.perf_counter() - start
