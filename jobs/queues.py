"""The jobs of one submission on this machine: files in the folder of its tokens, true whatever is killed.

QUEUE/runner     locked by the process that starts the jobs, as long as it lives
QUEUE/N.waits    job N is to be started; whoever takes the file away cancels it
QUEUE/N.runs     locked by job N as long as it lives; the number of its process
QUEUE/place      since when the next job waits for tokens, and for how many
"""

import contextlib
import json
import os
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from hpc.config.folder import write_atomically
from jobs.states import Scheduled
from jobs.tokens import Need, Tokens, held, hold

_RUNNER: Final = "runner"
_PLACE: Final = "place"


class Queue:
    """One submission's. The caller has the lock of the tokens.

    Args:
        path: its folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def make(cls, path: Path, count: int) -> tuple["Queue", int]:
        """A queue in which so many jobs wait, and the descriptor that whoever is to start them inherits."""
        path.mkdir(mode=0o700)
        made, descriptor = cls(path), hold(path / _RUNNER)
        assert descriptor is not None
        for index in range(count):
            made._waiting(index).touch()
        return made, descriptor

    def lives(self) -> bool:
        """Is there somebody to start its jobs?"""
        return held(self.path / _RUNNER)

    def jobs(self) -> dict[int, Scheduled]:
        """Those that wait or run, by their numbers."""
        found: dict[int, Scheduled] = {}
        lives = self.lives()
        for file in self._files():
            number, _, kind = file.name.partition(".")
            if kind == "waits" and lives:
                found[int(number)] = "pending"
            elif kind == "runs" and held(file):
                found[int(number)] = "running"
        return found

    def waits(self, index: int) -> bool:
        """Has nobody cancelled a job that is still to be started?"""
        return self._waiting(index).exists()

    def start(self, index: int) -> int:
        """A job goes from those that wait to those that run; the descriptor with which it does."""
        descriptor = hold(self._running(index))
        assert descriptor is not None
        self.leave(index)
        return descriptor

    def began(self, descriptor: int, process: int) -> None:
        """Note the process of a job, for whoever cancels it."""
        os.pwrite(descriptor, str(process).encode(), 0)

    def leave(self, index: int) -> None:
        """A job waits no longer."""
        self._waiting(index).unlink(missing_ok=True)

    def cancel(self, index: int) -> None:
        """A job that waits never starts; one that runs is told to stop."""
        self.leave(index)
        with contextlib.suppress(FileNotFoundError, ProcessLookupError, ValueError):
            _tell(self._running(index))

    def wait_for(self, need: Need) -> float:
        """Its next job waits for tokens; since when."""
        before = self.place()
        if before is not None:
            return before[0]
        now = time.time()
        write_atomically(self.path / _PLACE, json.dumps([now, need.cpus, need.gpus]), durable=False)
        return now

    def wait_no_more(self) -> None:
        """Its next job does not wait for tokens."""
        (self.path / _PLACE).unlink(missing_ok=True)

    def place(self) -> tuple[float, Need] | None:
        """Since when its next job waits for tokens, and for how many; None: it does not."""
        with contextlib.suppress(OSError, ValueError):
            since, cpus, cards = json.loads((self.path / _PLACE).read_text(encoding="ascii"))
            return since, Need(cpus, cards)
        return None

    def _waiting(self, index: int) -> Path:
        return self.path / f"{index}.waits"

    def _running(self, index: int) -> Path:
        return self.path / f"{index}.runs"

    def _files(self) -> list[Path]:
        try:
            return list(self.path.iterdir())
        except FileNotFoundError:
            return []


def queues(tokens: Tokens) -> Iterator[Queue]:
    """All queues on this machine, those left behind included."""
    for path in tokens.path.iterdir():
        if path.is_dir():
            yield Queue(path)


def earlier(tokens: Tokens, mine: Queue, since: float) -> list[Need]:
    """What the next jobs of other queues need, of those that have waited for longer."""
    places = [(each.place(), each) for each in queues(tokens) if each.path != mine.path]
    return [place[1] for place, each in places if place is not None and place[0] < since and each.lives()]


def tidy(tokens: Tokens) -> None:
    """Remove queues of which nothing waits or runs: whoever was killed has left them behind."""
    for each in queues(tokens):
        if not each.lives() and not each.jobs():
            shutil.rmtree(each.path, ignore_errors=True)


def _tell(running: Path) -> None:
    """SIGTERM for the process that holds a file.

    It is looked up, and only then is the lock looked at: where that is held, whoever has written the number lives, and
    the number was nobody else's.
    """
    process = int(running.read_text(encoding="ascii"))
    try:
        descriptor = os.pidfd_open(process)
    except ProcessLookupError:
        return
    except (AttributeError, OSError):  # a kernel without: another process may have got the number just now
        if held(running):
            os.kill(process, signal.SIGTERM)
        return
    try:
        if held(running):
            signal.pidfd_send_signal(descriptor, signal.SIGTERM)
    finally:
        os.close(descriptor)
