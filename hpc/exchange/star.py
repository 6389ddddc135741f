"""Messages between workers and a master on rank 0: a worker asks, the master answers.

One kind of message goes each way, so that no tags are needed: rank 0 receives nothing but requests, all others
nothing but answers. A worker has at most one request under way; it waits for the answer while it trains. One message's
memory serves both ways: the answer is received where the request was sent from.

The master receives a few requests at a time; the next worker's send stays where it is, in that worker's memory, until
one of them has been answered. So nobody's memory grows with the number of workers. The worker beside the master does
not go through MPI: its request is answered in place, when it is its turn.

How all this is moved, and how the ranks agree on pauses, is in :mod:`hpc.exchange.traffic`.
"""

import time
from collections.abc import Callable, Sequence
from enum import Enum

from hpc.communicator import Arrival, Channel, Flight
from hpc.exchange.agenda import Pause
from hpc.exchange.agreement import Report
from hpc.exchange.desk import Desk
from hpc.exchange.traffic import EXPECTING, IDLE, MOVING, POLL_S, Traffic, arrived
from hpc.exchange.wire import Envelope, Message

MASTER = 0
"""The rank that the master lives on."""


class _Stage(Enum):
    FREE = "free"
    PACKED = "packed"
    SENDING = "sending"
    ASKED = "asked"
    ANSWERED = "answered"


class Star(Traffic):
    """One rank's part.

    Args:
        channel: the ranks.
        size: number of ranks.
        deadline_s: longest wait for another rank.
        decide: what all ranks' reports mean (see :class:`~hpc.exchange.agreement.Agreement`).
        threaded: move messages in a thread; else only :meth:`pump` does.
        box: the message that this rank asks with; None where it is no worker.
        desk: the master, on the rank it lives on.
        slots: what the master receives requests into.
    """

    def __init__(
        self,
        channel: Channel,
        size: int,
        deadline_s: float,
        decide: Callable[[Report, Report], Pause | None],
        *,
        threaded: bool,
        box: Message | None,
        desk: Desk | None = None,
        slots: Sequence[Envelope] = (),
    ) -> None:
        super().__init__(channel, size, deadline_s, decide, threaded=threaded)
        self.box, self.desk = box, desk
        self.bytes_sent = 0
        """Through MPI."""
        self._stage = _Stage.FREE
        self._request: Flight | None = None
        self._reply: Arrival | None = None
        self._since = 0.0
        self._empty = list(slots)
        self._posted: list[tuple[Arrival, Envelope]] = []
        self._answers: list[tuple[Flight, Envelope, int, float]] = []

    # --- the worker's side -----------------------------------------------------------------------------

    def free(self) -> bool:
        """Can the box be packed? It cannot from a request until its answer was taken in."""
        return self._stage is _Stage.FREE

    def ask(self) -> None:
        """Send what has been packed into the box, as soon as it is there."""
        self._since = time.monotonic()
        self._stage = _Stage.PACKED
        self._ring()

    def answered(self) -> bool:
        """Is the answer in the box?"""
        return self._stage is _Stage.ANSWERED

    def release(self) -> None:
        """The answer has been taken in."""
        self._stage = _Stage.FREE

    def settle(self, mix: Callable[[], None]) -> None:
        """Take in the last answer; serve until everybody has. Collective; nobody may ask any more.

        A worker at rest has neither a request nor an answer under way, so when all have met nothing is.
        """
        self._stop_thread()
        self._until(self.free, mix, f"answer the last request (rank {MASTER}, the master)")
        self._until(self.agreement.at_rest, mix, "add up what all offered")
        flight = self._channel.barrier()
        self._until(flight.done, mix, "take the master's last answer")
        self._until(lambda: not self._answers, mix, "take the master's last answer")  # received, but not yet noticed

    def close(self) -> None:
        """Give up the receives that nothing will be sent for. After :meth:`settle`."""
        self._stop_thread()
        for flight, envelope in self._posted:
            flight.cancel()
            self._empty.append(envelope)
        self._posted.clear()

    def attend(self) -> None:
        """Move messages, then rest a moment. For a rank that does nothing else."""
        self.pump()
        time.sleep(POLL_S)

    # --- moving ----------------------------------------------------------------------------------------

    def _move(self) -> float:
        serving = self._serve(self.desk) if self.desk is not None else IDLE
        asking = self._ask(self.box) if self.box is not None else IDLE
        return max(serving, asking)

    def _serve(self, desk: Desk) -> float:
        """Answer what has come."""
        for answer in [answer for answer in self._answers if answer[0].done()]:
            self._answers.remove(answer)
            self._empty.append(answer[1])
        while self._empty:
            envelope = self._empty.pop()
            self._posted.append((self._channel.receive(envelope.bytes), envelope))
        found, share = arrived(self._posted)
        for envelope in found:
            to = desk.answer(envelope)
            self._answers.append((self._channel.send(envelope.bytes, to), envelope, to, time.monotonic()))
            self.bytes_sent += len(envelope.bytes)
        for _, _, to, since in self._answers:
            self._watch(since, f"take the master's answer (rank {to})")
        return max(share, EXPECTING) if self._answers else share

    def _ask(self, box: Message) -> float:
        """Move this worker's request, or its answer, on."""
        if self._stage is _Stage.PACKED:
            if not box.ready():
                return EXPECTING
            if self.desk is not None:
                self.desk.answer(box.envelope)
                self._stage = _Stage.ANSWERED
                return IDLE
            self._request, self._stage = self._channel.send(box.bytes, MASTER), _Stage.SENDING
            self.bytes_sent += len(box.bytes)
        if self._request is not None and self._request.done():
            self._request, self._stage = None, _Stage.ASKED
            self._reply = self._channel.receive(box.bytes)
        elif self._reply is not None and self._reply.done():
            self._reply, self._stage = None, _Stage.ANSWERED
        if self._request is None and self._reply is None:
            return IDLE
        self._watch(self._since, f"answer a request (rank {MASTER}, the master)")
        return MOVING if self._reply is not None and self._reply.sender() is not None else EXPECTING
