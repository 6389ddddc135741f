"""Signals that ask a run to stop where it can go on later, and the one that ends it with its parent."""

import ctypes
import os
import signal
import sys
from types import FrameType
from typing import Final, Self

SIGNALS: Final = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT)


class StopRequest:
    """A flag that signals set; the loop reads it between steps. A second Ctrl-C ends the process at once.

    A context manager: handlers are installed inside and put back after.

    Args:
        last: nothing but the end of the process comes after, which takes a while with torch and MPI. Signals are then
            ignored from there on: the exit code is known, and one more signal must not change it.
    """

    def __init__(self, *, last: bool = False) -> None:
        self._last = last
        self.requested = False
        self.name = ""
        self._before: dict[int, object] = {}

    def __enter__(self) -> Self:
        self._before = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, before in self._before.items():
            handler = signal.SIG_IGN if self._last else before
            if handler is not None:  # None: one that was installed outside Python, which cannot be put back
                signal.signal(number, handler)  # type: ignore[arg-type]

    def _note(self, number: int, _frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.requested and self.name == "SIGINT":
            if sys.stderr is not None:  # descriptor 2 may belong to another file
                os.write(2, b"interrupted twice: ending without a checkpoint\n")
            os._exit(130)
        self.requested, self.name = True, signal.Signals(number).name


def end_with_parent(parent: int | None = None) -> None:
    """Ask Linux to end this process when its parent dies, however it dies.

    Args:
        parent: its process, where that is known: it may have died just before it was asked for.
    """
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL, 0, 0, 0)
        if parent is not None and os.getppid() != parent:
            os.kill(os.getpid(), signal.SIGKILL)
