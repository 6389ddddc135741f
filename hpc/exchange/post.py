"""Gossip messages: from any rank to any other, answered by nobody.

Two kinds are under way at a time: receives that wait for whoever sends, and at most one send. How they are moved, and
how the ranks agree on pauses, is in :mod:`hpc.exchange.traffic`.
"""

import time
from collections import deque
from collections.abc import Callable, Sequence

import numpy as np

from hpc.communicator import Arrival, Channel, Flight
from hpc.exchange.agenda import Pause
from hpc.exchange.agreement import Report
from hpc.exchange.traffic import EXPECTING, IDLE, Traffic, arrived
from hpc.exchange.wire import Message, now_ns


class Post(Traffic):
    """One rank's messages.

    Args:
        channel: the ranks.
        outbox: the message that is sent from; another may take its place at any time.
        inboxes: the messages that are received into.
        size: number of ranks.
        deadline_s: longest wait for another rank.
        decide: what all ranks' reports mean (see :class:`~hpc.exchange.agreement.Agreement`).
        threaded: move messages in a thread; else only :meth:`pump` does.
    """

    def __init__(
        self,
        channel: Channel,
        outbox: Message,
        inboxes: Sequence[Message],
        size: int,
        deadline_s: float,
        decide: Callable[[Report, Report], Pause | None],
        *,
        threaded: bool,
    ) -> None:
        super().__init__(channel, size, deadline_s, decide, threaded=threaded)
        self.outbox = outbox
        self.arrived: deque[Message] = deque()
        self._empty: deque[Message] = deque(inboxes)
        self._read: deque[Message] = deque()
        self._posted: list[tuple[Arrival, Message]] = []
        self._sending: Flight | None = None
        self._to: tuple[int, int, Message] | None = None
        self._since_send = 0.0
        self._sent = np.zeros(size, np.int64)
        self._received = 0

    # --- the trainer's side ----------------------------------------------------------------------------

    def free(self) -> bool:
        """Can the outbox be filled? It cannot while its last message is under way."""
        return self._to is None

    def push(self, to: int, size: int) -> None:
        """Send the first ``size`` bytes of the outbox to a rank, as soon as they are there."""
        self._to = (to, size, self.outbox)
        self._sent[to] += 1
        self._ring()

    def release(self, message: Message) -> None:
        """A message has been mixed: another may arrive in its place."""
        message.hand_over()
        self._read.append(message)

    def settle(self, mix: Callable[[], None]) -> None:
        """Bring every message to its receiver, and mix it there. Collective; nobody may push any more.

        B's gossip answers no message with another, so counting is enough: each rank learns how many messages were
        sent to it, and waits for the last.
        """
        self._stop_thread()
        self._until(self.free, mix, "send the last gossip message")
        expected = np.zeros(1, np.int64)
        flight = self._channel.expect(self._sent, expected)
        self._until(flight.done, mix, "count gossip messages")
        self._until(lambda: self._received >= expected[0], mix, "receive the last gossip messages")
        mix()
        self._until(self.agreement.at_rest, mix, "add up what all offered")
        flight = self._channel.barrier()
        self._until(flight.done, mix, "end gossip")
        self._sent = np.zeros_like(self._sent)
        self._received = 0

    def close(self) -> None:
        """Give up the receives that nothing will be sent for. After :meth:`settle`."""
        self._stop_thread()
        for flight, _ in self._posted:
            flight.cancel()
        self._posted.clear()

    # --- moving ----------------------------------------------------------------------------------------

    def _move(self) -> float:
        return max(self._receive(), self._send())

    def _receive(self) -> float:
        while self._read and self._read[0].reusable():
            self._empty.append(self._read.popleft())
        while self._empty:
            message = self._empty.popleft()
            self._posted.append((self._channel.receive(message.bytes), message))
        found, share = arrived(self._posted)
        for message in found:
            self._received += 1
            message.arrived_ns = now_ns()
            self.arrived.append(message)
        return share

    def _send(self) -> float:
        if self._to is None:
            return IDLE
        if self._sending is None:
            to, size, message = self._to
            if not message.ready():
                return EXPECTING
            self._sending, self._since_send = self._channel.send(message.bytes[:size], to), time.monotonic()
        if self._sending.done():
            self._sending = self._to = None
            return IDLE
        self._watch(self._since_send, f"take a gossip message (rank {self._to[0]})")
        return EXPECTING
