"""What a rank moves while it trains, and how: in a thread of its own, or between two steps.

MPI moves nothing by itself: a transfer of megabytes stands still until both sides call the library. A thread of
its own does that (:meth:`Traffic.start`), asleep most of the time. Asleep for how long was measured: a wake costs some
20 us beside the training on one core, so 5 ms where nothing is under way cost 0.4 %, and 1 ms already 2 %.
"""

import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable
from typing import Final

from hpc.communicator import Channel
from hpc.errors import RankTimeoutError
from hpc.exchange.agenda import Pause
from hpc.exchange.agreement import Agreement, Offer, Report

IDLE_S: Final = 0.005
ACTIVE_S: Final = 0.0005
BUSY_CALL_S: Final = 0.0002  # a call that took longer has moved part of a message: more will follow


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
        self._agreement = Agreement(channel, size, decide, self._watch)
        self._thread: threading.Thread | None = None
        self._wake = threading.Event()
        self._halt = self._waiting = False
        self._error: BaseException | None = None

    # --- the trainer's side ----------------------------------------------------------------------------

    @property
    def report(self) -> Report:
        """What this rank reports, to be written into."""
        return self._agreement.report

    @property
    def pause(self) -> Pause | None:
        """What the ranks have agreed on."""
        return self._agreement.pause

    @property
    def sums(self) -> deque[Offer]:
        """Sums over all ranks of what each offered."""
        return self._agreement.sums

    def offer(self, values: Offer) -> None:
        """Give numbers to be summed over all ranks."""
        self._agreement.offer(values)

    def check(self) -> None:
        """Raise what went wrong in the thread."""
        if self._error is not None:
            raise self._error

    def wait(self, done: Callable[[], bool], mix: Callable[[], None]) -> None:
        """Wait for news of the other ranks, mixing what arrives."""
        self._waiting = True
        self._wake.set()
        self._until(done, mix, "report how far it is")
        self._waiting = False

    def start(self) -> None:
        """Go on after a pause, or for the first time."""
        self._agreement.resume()
        self._halt = False
        if self._threaded and self._thread is None:
            self._thread = threading.Thread(target=self._run, name="exchange", daemon=True)
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

    def pump(self) -> bool:
        """Move everything on by what can be done now. True while a transfer is under way."""
        start = time.perf_counter()
        moving = self._move()
        busy = time.perf_counter() - start > BUSY_CALL_S
        self._agreement.move()
        return moving or busy or self._waiting

    @abstractmethod
    def _move(self) -> bool:
        """Move messages on by what can be done now. True while something is under way that should be asked for soon."""

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
            time.sleep(ACTIVE_S)

    def _run(self) -> None:
        try:
            while not self._halt:
                active = self.pump()
                self._wake.wait(ACTIVE_S if active else IDLE_S)
                self._wake.clear()
        except BaseException as error:  # noqa: BLE001 - the trainer raises it at its next step
            self._error = error

    def _stop_thread(self) -> None:
        self._join()
        self.check()

    def _join(self) -> None:
        if self._thread is not None:
            self._halt = True
            self._wake.set()
            self._thread.join()
            self._thread = None
