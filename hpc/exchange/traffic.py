"""What a rank moves while it trains, and how: in a thread of its own, or between two steps.

MPI moves nothing by itself: a transfer of megabytes stands still until both sides call the library. A thread of
its own does that (:meth:`Traffic.start`), asleep most of the time.

Asleep for how long follows from what a wake costs, which the thread measures: beside matrices of 10 million numbers,
which leave nothing else in a core's caches, 100 to 250 us, where the same calls cost 20 us beside a small network. What
is given is the part of its core's time that the thread may take. (A fixed 5 ms took 2 % from the large network.)
"""

import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Final, TypeVar

import torch

from hpc.communicator import Arrival, Channel
from hpc.errors import RankTimeoutError
from hpc.exchange.agenda import Pause
from hpc.exchange.agreement import Agreement, Report

POLL_S: Final = 0.0005
"""Between two looks of a rank that does nothing else."""
_LONGEST_S: Final = 0.035
_COST_S: Final = 20e-6  # what a look is taken to cost until some have been made: beside a small network
_BUSY_CALL_S, _BUSY_S = 0.0004, 0.003  # a call that took longer has moved part of a message: more will follow so soon


IDLE: Final = 0.004
"""The part of its core's time that looking may take where nothing is under way that this rank knows of."""
EXPECTING: Final = 0.04
"""... where something of this rank's is: the other side, which may be idle, has to move first."""
MOVING: Final = 0.4
"""... where a message comes or goes, or the rank has nothing else to do."""


_Buffer = TypeVar("_Buffer")


def arrived(posted: list[tuple[Arrival, _Buffer]]) -> tuple[list[_Buffer], float]:
    """(what has arrived, taken out of the receives; how soon to look again).

    A message that comes in needs many calls, each of which may be short. MPI finds one rank's messages in the order in
    which they were sent, and may complete them in another: one that overtook waits here for those before it.
    """
    found, share = [], IDLE
    behind = set[int]()
    for entry in list(posted):
        flight, buffer = entry
        done, sender = flight.done(), flight.sender()
        if sender is None:
            break  # the next one would find no message, either
        if done and sender not in behind:
            posted.remove(entry)
            found.append(buffer)
        else:
            behind.add(sender)
            share = MOVING
    return found, share


class Traffic(ABC):
    """One rank's messages, of whatever kind, beside the agreement of all ranks on pauses.

    Args:
        channel: the ranks.
        size: number of ranks.
        deadline_s: longest wait for another rank.
        decide: what all ranks' reports mean (see :class:`~hpc.exchange.agreement.Agreement`).
        threaded: move messages in a thread; else only :meth:`pump` does.
    """

    def __init__(
        self,
        channel: Channel,
        size: int,
        deadline_s: float,
        decide: Callable[[Report, Report], Pause | None],
        *,
        threaded: bool,
    ) -> None:
        self._channel, self._deadline_s, self._threaded = channel, deadline_s, threaded
        self.agreement = Agreement(channel, size, decide, self._watch)
        self._thread: threading.Thread | None = None
        self._bell = threading.Lock()  # an Event does the same with several times as much Python
        self._bell.acquire()
        self._halt = self._waiting = False
        self._busy_until = 0.0
        self._error: BaseException | None = None

    # --- the trainer's side ----------------------------------------------------------------------------

    def check(self) -> None:
        """Raise what went wrong in the thread."""
        if self._error is not None:
            raise self._error

    def wait(self, done: Callable[[], bool], mix: Callable[[], None]) -> None:
        """Wait for news of the other ranks, mixing what arrives."""
        self._waiting = True
        self._ring()
        self._until(done, mix, "report how far it is")
        self._waiting = False

    def start(self) -> None:
        """Go on after a pause, or for the first time."""
        self.agreement.resume()
        self._halt = False
        if self._threaded and self._thread is None:
            device = torch.cuda.current_device() if torch.cuda.is_initialized() else None
            self._thread = threading.Thread(target=self._run, args=(device,), name="exchange", daemon=True)
            self._thread.start()

    @abstractmethod
    def settle(self, mix: Callable[[], None]) -> None:
        """Bring every message to rest, mixing what arrives. Collective; after a pause was agreed on."""

    @abstractmethod
    def close(self) -> None:
        """Give up the receives that nothing will be sent for. After :meth:`settle`."""

    def let_go(self) -> None:
        """Leave everything under way as it is: a rank is lost, and nothing here moves any more."""
        self._join()

    # --- moving ----------------------------------------------------------------------------------------

    def pump(self) -> float:
        """Move everything on by what can be done now: IDLE, EXPECTING or MOVING."""
        start = time.perf_counter()
        share = self._move()
        end = time.perf_counter()
        if end - start > _BUSY_CALL_S:
            self._busy_until = end + _BUSY_S
        self.agreement.move()
        if end < self._busy_until or self._waiting:
            return MOVING
        return max(share, EXPECTING) if self.agreement.expecting() else share

    @abstractmethod
    def _move(self) -> float:
        """Move messages on by what can be done now: IDLE, EXPECTING or MOVING."""

    def _watch(self, since: float, what: str) -> None:
        if (waited := time.monotonic() - since) > self._deadline_s:
            raise RankTimeoutError(
                f"waited {waited:.0f} s for another rank to {what} (compute.deadline_s: {self._deadline_s:g}; "
                f"raise it if steps can take that long)"
            )

    def _until(self, done: Callable[[], bool], mix: Callable[[], None], what: str) -> None:
        since = time.monotonic()
        while not done():
            self.check()
            if self._thread is None:
                self.pump()
            mix()
            self._watch(since, what)
            time.sleep(POLL_S)

    def _run(self, device: int | None) -> None:
        try:
            if device is not None:  # each thread has one of its own, and its first call on another takes memory there
                torch.cuda.set_device(device)
            cost, before = _COST_S, time.thread_time()
            while not self._halt:
                share = self.pump()
                self._bell.acquire(timeout=min(max(cost / share, POLL_S), _LONGEST_S))
                now = time.thread_time()
                if share != MOVING:  # that one works, beside looking
                    cost += (now - before - cost) / 8
                before = now
        except BaseException as error:  # noqa: BLE001 - the trainer raises it at its next step
            self._error = error

    def _ring(self) -> None:
        """Wake the thread. Called by the trainer alone: nobody else frees the lock between the two lines."""
        if self._bell.locked():
            self._bell.release()

    def _stop_thread(self) -> None:
        self._join()
        self.check()

    def _join(self) -> None:
        if self._thread is not None:
            self._halt = True
            self._ring()
            self._thread.join()
            self._thread = None
