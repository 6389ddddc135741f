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


def forget(run_dir: Path, size: int) -> None:
    """Remove the signs of life of ranks from number ``size`` on: there are fewer now."""
    for path in (run_dir / LOGS).glob("rank-*.json"):
        if path >= rank_file(run_dir, size):
            path.unlink(missing_ok=True)


def last_seen(run_dir: Path, clock: Callable[[], float] = time.time) -> str:
    """What every rank was last seen doing, the longest silent first: for the error of a rank that waited."""
    seen = []
    for path in sorted((run_dir / LOGS).glob("rank-*.json")):
        try:
            sign = json.loads(path.read_text())
        except (OSError, ValueError):  # being replaced, or gone: the others still tell
            continue
        ago = clock() - sign["heartbeat"]
        place = f"step {sign['step']}" if "step" in sign else "start"
        seen.append((ago, f"rank {sign['rank']} ({sign['host']}, pid {sign['pid']}): {sign['doing']} at {place}"))
    seen.sort(reverse=True)
    return "\n  ".join(f"{text}, {ago:.0f} s ago" for ago, text in seen)
