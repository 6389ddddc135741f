"""Signs of life: ``status.json`` for the run, ``logs/rank-0000.json`` for each rank.

A rank that waits in vain for another reads the others' files, and can say who was last seen doing what.
"""

import contextlib
import json
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from hpc.config.folder import LOGS, STATUS, write_atomically

EVERY_S: Final = 5.0
GONE: Final = "that process is gone"


class Heartbeat:
    """Writes the signs of life of one rank, at most every few seconds.

    Args:
        run_dir: the run's folder.
        rank: this rank; rank 0 also writes the run's status.
        size: number of ranks.
        facts: what else the status says (run_id, epochs, ...).
    """

    def __init__(self, run_dir: Path, rank: int, size: int, facts: dict[str, Any]) -> None:
        self._run_dir, self._rank, self._size = run_dir, rank, size
        self._facts = {
            **facts,
            "world_size": size,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "started": time.time(),
        }
        self._next = 0.0

    def due(self) -> bool:
        """Whether it has been a while: the only cost in a step where it has not."""
        return time.monotonic() >= self._next

    def beat(self, state: str, doing: str, **progress: Any) -> None:
        """Write a sign of life now: the run's ``state`` and what this rank is ``doing``."""
        self._next = time.monotonic() + EVERY_S
        now = {"heartbeat": time.time(), "doing": doing, **progress}
        mine = {"rank": self._rank, "pid": self._facts["pid"], "host": self._facts["host"], **now}
        # A disk that is full this moment must not end the training; the next checkpoint will say so if it still is.
        with contextlib.suppress(OSError):
            write_atomically(rank_file(self._run_dir, self._rank), json.dumps(mine), durable=False)
            if self._rank == 0:
                self.status(state, **now)

    def status(self, state: str, **more: Any) -> None:
        """Replace the run's status."""
        write_atomically(
            self._run_dir / STATUS, json.dumps({"state": state, **self._facts, **more}, indent=1) + "\n",
            durable=state != "running",
        )  # fmt: skip


def rank_file(run_dir: Path, rank: int) -> Path:
    """Where a rank writes its signs of life."""
    return run_dir / LOGS / f"rank-{rank:04d}.json"


def forget(run_dir: Path, rank: int, size: int) -> None:
    """A rank starts: remove its sign of life of an earlier start, and, as rank 0, those of ranks that are no more."""
    rank_file(run_dir, rank).unlink(missing_ok=True)
    if rank == 0:
        forget_from(run_dir, size)


def forget_from(run_dir: Path, size: int) -> None:
    """Remove the signs of life of ranks from number ``size`` on: there are fewer now."""
    for path in (run_dir / LOGS).glob("rank-*.json"):
        if int(path.stem.removeprefix("rank-")) >= size:
            path.unlink(missing_ok=True)


def signs(run_dir: Path) -> list[dict[str, Any]]:
    """The last sign of life of every rank, in their order."""
    found = []
    for path in sorted((run_dir / LOGS).glob("rank-*.json")):
        try:
            found.append(json.loads(path.read_text()))
        except (OSError, ValueError):  # being replaced, or gone: the others still tell
            continue
    return found


def doing(sign: dict[str, Any]) -> str:
    """What a rank did, and where, when it gave a sign of life."""
    place = f"step {sign['step']}" if "step" in sign else "start"
    return f"{sign['doing']} at {place}"


def last_seen(run_dir: Path, clock: Callable[[], float] = time.time) -> str:
    """What every rank was last seen doing: for the error of a rank that waited.

    One that this machine knows to be stopped or gone comes first; then the longest silent.
    """
    seen, found = [], signs(run_dir)
    begun = any((sign["host"], sign["pid"]) == (socket.gethostname(), os.getpid()) for sign in found)
    for sign in found:
        ago, trouble = clock() - sign["heartbeat"], _trouble(sign) if begun else ""  # before, they are of another start
        text = f"rank {sign['rank']} ({sign['host']}, pid {sign['pid']}): {doing(sign)}, {ago:.0f} s ago"
        seen.append((bool(trouble), ago, f"{text}; {trouble}" if trouble else text))
    seen.sort(reverse=True)
    return "\n  ".join(text for _, _, text in seen)


def _trouble(sign: dict[str, Any]) -> str:
    """What keeps a rank of this machine from going on, as far as Linux says; nothing where it does not."""
    if sign["host"] != socket.gethostname() or not Path("/proc/self/stat").exists():
        return ""
    try:
        state = Path("/proc", str(sign["pid"]), "stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return GONE
    return {"T": "that process is stopped (SIGSTOP)", "t": "a debugger holds it", "Z": GONE}.get(state, "")
