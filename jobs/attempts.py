"""The history of a run's starts, in its folder: when, in which job, and how each ended."""

import json
import re
import time
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Final

from hpc.config.folder import append_line

ATTEMPTS: Final = "attempts.jsonl"
RETRIED: Final = "retried"
"""How a line ends that is no start: somebody wants to see it tried again, and failures are counted anew."""
CANCELLED: Final = "cancelled"
"""The same: somebody has ended its job, which is not to go back into the queue."""
USAGE: Final = 2
"""The exit code of a start that found a mistake in its configuration."""
SAME: Final = 3
"""A run that has failed so often in the same way, without coming any further, is left failed."""


@dataclass(frozen=True)
class Attempt:
    """One start of a run.

    Attributes:
        job: the scheduler's name of the job.
        began: seconds since 1970.
        ended: the same.
        code: the exit code.
        how: "done", "stopped" (it was asked to, and can go on) or "failed"; or RETRIED, CANCELLED.
        reason: the first line of what went wrong; empty where nothing did.
        place: the newest checkpoint that was left behind; empty: none.
        code_version: of structlearn (:func:`jobs.origin.code_version`).
        host: the machine that the job began on: what fails on one alone is that machine's fault.
    """

    job: str
    began: float
    ended: float
    code: int
    how: str
    reason: str = ""
    place: str = ""
    code_version: str = ""
    host: str = ""


def note(run_dir: Path, attempt: Attempt) -> None:
    """Add a start to the history; on the disk when this returns."""
    append_line(run_dir / ATTEMPTS, json.dumps(asdict(attempt)))


def history(run_dir: Path) -> list[Attempt]:
    """All starts that have ended, the oldest first. A line that was broken off by a crash is passed over."""
    try:
        lines = (run_dir / ATTEMPTS).read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    names = {field.name for field in fields(Attempt)}
    found = []
    for line in lines:
        try:
            values: dict[str, Any] = json.loads(line)
            found.append(Attempt(**{key: value for key, value in values.items() if key in names}))
        except (ValueError, TypeError, AttributeError):
            continue
    return found


def mark(run_dir: Path, how: str) -> None:
    """Add a line that is no start: RETRIED or CANCELLED."""
    now = time.time()
    note(run_dir, Attempt("", now, now, 0, how))


def cancelled(past: list[Attempt]) -> bool:
    """Has somebody ended its job, and not asked for another since?"""
    marks = [each.how for each in past if each.how in {RETRIED, CANCELLED}]
    return marks[-1:] == [CANCELLED]


def given_up(past: list[Attempt]) -> bool:
    """Is it not to be started again: hopeless, or with a mistake in its configuration?"""
    return hopeless(past) or bool(past and past[-1].how == "failed" and past[-1].code == USAGE)


def hopeless(past: list[Attempt]) -> bool:
    """Have the last starts failed in the same way, at the same place? Numbers in the reason (of processes) may vary."""
    last = past[-SAME:]
    return (
        len(last) == SAME
        and all(each.how == "failed" for each in last)
        and len({(re.sub(r"\d+", "", each.reason), each.place) for each in last}) == 1
    )
