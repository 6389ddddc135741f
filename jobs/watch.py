"""The processes of the local ranks: which ended first, and that none outlives the command that started them."""

import contextlib
import math
import os
import select
import signal
import socket
import threading
import time
from pathlib import Path
from typing import Final, Self

from hpc.heartbeat import doing, signs

HOST: Final = socket.gethostname()
LOOK_S: Final = 0.05
END_S: Final = 10.0
"""How long a killed rank may take to give back its memory and its device; one stuck in the kernel is left behind."""


class LocalRanks:
    """A context manager; after it no rank lives, and as text it is the one that ended first and what it was doing.

    When a signal ends a rank, mpiexec ends the others in the same moment, and does not say which was first. MPICH's
    prints a process number, but that of the first rank whichever was killed (5.0.2). The kernel tells whoever holds a
    process open that it ended, as soon as it tells the parent; a rank that mpiexec then kills takes some milliseconds
    to end, because it gives back its memory first. mpiexec does not wait for that: whoever ran the command again at
    once met a device that was still full, so it is waited for here.

    Args:
        run_dir: the run's folder: ranks write into it which process they are.
        ranks: how many.
        patience_s: how much later than the first the others may end; None: ranks that are lost leave the others alone.
    """

    def __init__(self, run_dir: Path, ranks: int, patience_s: float | None = None) -> None:
        self._run_dir, self._ranks, self._patience_s = run_dir, ranks, patience_s
        self._began = time.time()
        self._over = threading.Event()
        self._first: list[int] = []
        self._open: dict[int, int] = {}
        """Ranks by the descriptor of their process."""
        self._thread = threading.Thread(target=self._watch, name="first to end", daemon=True)

    def __enter__(self) -> Self:
        if hasattr(os, "pidfd_open"):  # Linux
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        if self._thread.ident is not None:
            self._thread.join()
        self._end()
        until = time.monotonic() + END_S
        for descriptor in self._open:
            ending = select.poll()
            ending.register(descriptor, select.POLLIN)
            ending.poll(1e3 * max(0.0, until - time.monotonic()))
            os.close(descriptor)

    def _end(self) -> None:
        for descriptor in self._open:
            with contextlib.suppress(OSError):  # it has ended
                signal.pidfd_send_signal(descriptor, signal.SIGKILL)

    def __str__(self) -> str:
        told = [
            f"rank {sign['rank']} ({sign['host']}, pid {sign['pid']}), last seen {doing(sign)},"
            for sign in signs(self._run_dir)
            if sign["rank"] in self._first
        ]
        return " or ".join(told) or "a rank"

    def _watch(self) -> None:
        poll, late = select.poll(), math.inf
        while not self._over.is_set():
            if len(self._open) < self._ranks:
                self._look(poll)
            if time.monotonic() > late:  # mpiexec would wait for ever for one that has stopped
                self._end()
            if self._first:
                self._over.wait(LOOK_S)
            else:
                ended = poll.poll(1e3 * LOOK_S)
                self._first = sorted(self._open[descriptor] for descriptor, _ in ended)
                if self._first and self._patience_s is not None:
                    late = time.monotonic() + self._patience_s

    def _look(self, poll: "select.poll") -> None:
        """Open the processes of ranks that have given a sign of life in this start."""
        for sign in signs(self._run_dir):
            if sign["heartbeat"] < self._began or sign["rank"] in self._open.values() or sign["host"] != HOST:
                continue
            try:
                descriptor = os.pidfd_open(sign["pid"])
            except OSError:  # gone already, or a kernel before 5.3
                continue
            if not _started_here(sign["pid"]):  # another command's, which trains in this folder
                os.close(descriptor)
                continue
            self._open[descriptor] = sign["rank"]
            poll.register(descriptor, select.POLLIN)


def _started_here(pid: int) -> bool:
    """Has this process started that one, or one that has?"""
    while pid > 1 and pid != os.getpid():
        try:
            pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        except (OSError, ValueError, IndexError):
            return False
    return pid > 1
