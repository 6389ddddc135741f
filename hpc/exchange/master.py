"""What the strategies with a master have in common: workers that ask at their own pace, and take what is answered."""

from abc import abstractmethod
from typing import Any, ClassVar, Final, Literal

import torch
from torch import nn

from hpc.communicator import Communicator
from hpc.config.training import Downpour, Easgd, workers
from hpc.exchange.agenda import Agenda
from hpc.exchange.carry import Carry
from hpc.exchange.contents import float_buffers
from hpc.exchange.desk import Desk, Floats
from hpc.exchange.form import OWN, Form, flat_of, keyed
from hpc.exchange.pace import OwnPace
from hpc.exchange.slices import slices_of
from hpc.exchange.star import MASTER, Star
from hpc.exchange.wire import Envelope, Letter, Message, now_ns
from hpc.flat import FlatBuffer, copy_all, precision

SLOTS: Final = 4
"""Requests that the master can hold. More cost memory; with fewer, workers slow to take answers hold up the others."""


class WithMaster(OwnPace):
    """A centre w_0 on rank 0; after every ``tau`` of its own steps a worker exchanges with it, and waits for nobody.

    A worker asks with its numbers as they are after that step, trains on, and takes in the answer before the first
    step that finds it there. One request at a time: if the last is not answered yet when the next is due, that one is
    skipped and counted. The master answers in the order in which requests come.

    What travels is a flat vector of two parts: the weights, and the statistics (float buffers: BatchNorm's running
    means and variances). They are treated apart, because a statistic is a value and no sum of updates: added up over M
    workers, changes of a variance overshoot, and one that becomes negative is no variance any more. So statistics
    only ever become weighted means of statistics, at the master as in the workers.

    The ranks stand for w_0: it is what is evaluated, and what the run answers with. One rank alone has nobody to
    exchange with: it trains by itself.

    Args:
        comm: the ranks.
        model: this rank's network.
        config: the section ``exchange``.
        agenda: when the ranks pause.
        seed: the master seed.
        deadline_s: longest wait for another rank.
    """

    replicated: ClassVar[bool] = False

    def __init__(
        self,
        comm: Communicator,
        model: nn.Module,
        config: Easgd | Downpour,
        agenda: Agenda,
        *,
        seed: int,
        deadline_s: float,
    ) -> None:
        super().__init__(
            comm, model, agenda, workers(config, comm.size), seed=seed, consensus_every=config.consensus_every
        )
        self.counters.mass = float(comm.rank == MASTER)
        self._tau, self._progress, self._deadline_s = config.tau, config.progress, deadline_s
        self._step = 0
        self._traffic: Star | None = None
        self._channel = comm.channel() if comm.size > 1 else None
        self._look()
        self._dtype = precision(self._weights + self._statistics)
        self._payload: Literal["float32", "float64"] = "float64" if self._dtype == torch.float64 else "float32"
        self._centre: torch.Tensor | None = None
        """On rank 0: w_0, flat, in host memory."""
        self.events: list[tuple[str, int]] | None = None
        """Where a list is put here, it gets (ask or take, step) of each exchange: the step that it came after."""

    def _look(self) -> None:
        """See the network as it is."""
        self._weights = slices_of([parameter.detach() for parameter in self.model.parameters()], 1)[0]
        self._statistics = slices_of(float_buffers(self.model), 1)[0]
        self._numbers = sum(view.numel() for view in self._weights)
        self._form = Form(keyed(self.model))
        self._weights_form = Form({(name, OWN): weight for name, weight in self.model.named_parameters()})

    # --- what a strategy says --------------------------------------------------------------------------

    @abstractmethod
    def _answer(self, centre: Floats, message: Floats) -> None:
        """What the master does with a request: change the centre, and turn the request into its answer.

        Called by whoever moves the messages, one request at a time. :meth:`_parts` splits both.
        """

    @abstractmethod
    def _take(self, weights: list[torch.Tensor], statistics: list[torch.Tensor]) -> None:
        """Take in an answer, given as views in the form of the worker's own."""

    def _base(self) -> torch.Tensor | None:
        """What weights are sent as differences to, if they are."""
        return None

    def _parts(self, flat: Floats) -> tuple[Floats, Floats]:
        """(weights, statistics) of a flat vector."""
        return flat[: self._numbers], flat[self._numbers :]

    # --- one step --------------------------------------------------------------------------------------

    def after_step(self, step: int) -> None:
        """Take in the master's answer; perhaps ask."""
        if self.comm.size == 1:
            return
        star = self._traffic
        assert star is not None, "resume() comes before the first step"
        star.check()
        self._step = step
        self._mix()
        if step % self._tau == 0:
            self._ask(star, step)
        self._measure(step)
        if self._progress == "inline":
            star.pump()

    def attend(self) -> None:
        """Serve the workers for a moment: all that a master does on a rank of its own."""
        assert self._traffic is not None
        self._traffic.attend()
        self._measure(0)

    def _ask(self, star: Star, step: int) -> None:
        assert star.box is not None
        if not star.free():
            self.counters.skipped += 1
            return
        star.box.pack(Letter(0, step, 0, now_ns(), self.comm.rank, self.structure), self._base())
        star.ask()
        self.counters.sent += 1
        self._note("ask", step)

    def _mix(self) -> None:
        star = self._traffic
        assert star is not None
        if star.box is None or not star.answered():
            return
        star.box.open().check(self.structure)
        came = star.box.take(0)
        with torch.no_grad():
            self._take(came[: len(self._weights)], came[len(self._weights) :])
        star.release()
        self.counters.received += 1
        self._note("take", self._step)

    def _note(self, what: str, step: int) -> None:
        if self.events is not None:
            self.events.append((what, step))

    # --- pauses ----------------------------------------------------------------------------------------

    def quiesce(self) -> None:
        """Every request is answered, and every answer taken in. Collective."""
        super().quiesce()
        if self._traffic is not None:
            self.counters.bytes_sent += self._traffic.bytes_sent
            self._traffic.bytes_sent = 0

    def restructure(self, carry: Carry) -> None:
        """The centre is cut like the weights. Everything is at rest: talk begins anew, with shorter messages."""
        if self._traffic is not None:
            self._traffic.close()
            self._traffic = None
        if self._survey is not None:
            self._survey.forget()
        super().restructure(carry)
        before = self._form
        self._look()
        if self._centre is not None:
            self._centre = flat_of(carry(before.named(self._centre)), self._form, self._centre)

    def _open(self) -> Star:
        views = self._weights + self._statistics
        box = Message([views], self._payload) if self.trains else None
        desk, slots = None, list[Envelope]()
        if self.comm.rank == MASTER:
            if self._centre is None:
                self._centre = torch.empty(sum(view.numel() for view in views), dtype=self._dtype)
                copy_all(split(self._centre, views), views)
            desk = Desk(self._centre.numpy(), self._answer, self.structure)
            remote = self.comm.size - 1
            slots = [Envelope(self._centre.nbytes) for _ in range(min(SLOTS, remote))]
        assert self._channel is not None
        return Star(
            self._channel,
            self.comm.size,
            self._deadline_s,
            self._decide,
            threaded=self._progress == "thread" and self.trains,  # a master by itself has nothing else to do
            box=box,
            desk=desk,
            slots=slots,
        )

    # --- what the ranks stand for ----------------------------------------------------------------------

    def _agree(self, values: list[torch.Tensor]) -> None:
        """The centre."""
        self.put_centre(self.state_dict(), values)
        buffer = FlatBuffer(values)
        flat = buffer.pack(values)
        with self._blocked():
            self.comm.broadcast_(flat, "evaluate the master's network", MASTER)
        buffer.unpack(values)

    def put_centre(self, state: dict[str, Any], values: list[torch.Tensor]) -> None:
        """The centre; one rank alone has none. What workers have not sent yet is not in it."""
        if state["centre"] is not None:
            views = slices_of(values, 1)[0]
            copy_all(views, split(state["centre"], views))

    def state_dict(self) -> dict[str, Any]:
        """The centre, on rank 0. Nothing is under way: the engine brings all messages to rest first."""
        return {**super().state_dict(), "centre": self._centre}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what :meth:`state_dict` gave. Before the first :meth:`resume`."""
        super().load_state_dict(state)
        assert self._traffic is None
        if state["centre"] is not None:
            self._centre = state["centre"].cpu().clone()


def split(flat: torch.Tensor, like: list[torch.Tensor]) -> list[torch.Tensor]:
    """A flat tensor as views of the sizes of others."""
    return list(flat.split([view.numel() for view in like]))
