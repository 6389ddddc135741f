"""End this process if a call into a library does not return: one that no Python code can interrupt."""

import os
import signal
import subprocess
import sys
from typing import Final, Self

ENDED_BY: Final = signal.SIGALRM
"""What ends the process. MPICH's launcher cleans up after a rank that a signal ended, not after one that just left."""

# It reads from a pipe that only the watched process holds: the end of the watch, or of that process, ends it too.
_WATCH: Final = """
import os, select, sys
if not select.select([0], [], [], min(float(sys.argv[2]), 1e9))[0]:
    os.write(2, sys.argv[4].encode())
    os.kill(int(sys.argv[1]), int(sys.argv[3]))
"""


class Watchdog:
    """A context manager: inside for longer than ``seconds``, the process says ``message`` and is ended.

    A small process of its own keeps the time. A thread of this one cannot: mpi4py holds the interpreter while
    MPI starts. ``faulthandler`` can, but it prints a traceback and leaves with a number.
    """

    def __init__(self, seconds: float, message: str) -> None:
        self._seconds, self._message = seconds, message

    def __enter__(self) -> Self:
        line = [sys.executable, "-I", "-S", "-c", _WATCH, str(os.getpid()), str(self._seconds), str(int(ENDED_BY))]
        # A process group of its own: Ctrl-C on the terminal is for the watched process.
        self._watch = subprocess.Popen([*line, self._message], stdin=subprocess.PIPE, process_group=0)
        return self

    def __exit__(self, *_: object) -> None:
        assert self._watch.stdin is not None
        self._watch.stdin.close()
        self._watch.wait()
