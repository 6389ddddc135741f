"""How the runs of a sweep are doing: from their folders, refined by the scheduler where one answers."""

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal

from hpc.config.folder import read_status
from jobs.attempts import CANCELLED, RETRIED, Attempt, cancelled, given_up, history
from jobs.controller import tail
from jobs.sweepfolder import Planned, Submission, SweepFolder

Kind = Literal["new", "pending", "running", "stopped", "lost", "failed", "done"]
KINDS: Final[tuple[Kind, ...]] = ("new", "pending", "running", "stopped", "lost", "failed", "done")
SILENT_S: Final = 120.0
"""A run that has given no sign of life for so long does not run any more, where no scheduler says otherwise."""
_READERS: Final = 16
"""Files are read by so many threads: on a network file system each waits for a server."""
_AT_ONCE: Final = 32
"""Runs that a thread looks at before it asks for more."""

Scheduled = Literal["pending", "running"]
"""What a scheduler says of a job that it has; it does not name those that are over."""


@dataclass(frozen=True)
class State:
    """How one run is doing.

    Attributes:
        id: of the run.
        label: what varies.
        kind: "new": never submitted, or its jobs are gone before it began. "pending": a job waits for it. "running".
            "stopped": it was told to stop; a job that waits goes on with it, or `structlearn retry`. "lost": it was
            running, and nothing runs it any more. "failed". "done".
        job: the scheduler's name of its newest job; empty: none.
        epoch: epochs made.
        epochs: epochs planned; 0: not known yet.
        samples_per_second: lately; None where it does not train.
        seconds_left: by the pace so far; None where it does not train.
        accuracy: on the test set, where it is done.
        error: the first line of what went wrong.
        starts: how often it has been started.
        stops: how often it was preempted or came to the end of its time, and could go on.
        host: the machine that its last start that has ended began on.
    """

    id: str
    label: str
    kind: Kind
    job: str = ""
    epoch: int = 0
    epochs: int = 0
    samples_per_second: float | None = None
    seconds_left: float | None = None
    accuracy: float | None = None
    error: str = ""
    starts: int = 0
    stops: int = 0
    host: str = ""


def counts(states: Sequence[State]) -> dict[str, int]:
    """How many runs are in each state; only those that there are."""
    found = Counter(state.kind for state in states)
    return {kind: found[kind] for kind in KINDS if found[kind]}


def newest_jobs(submissions: list[Submission]) -> dict[str, tuple[str, str]]:
    """For each run that was submitted: (cluster, the scheduler's name of its newest job)."""
    found = {}
    for submission in submissions:
        for job, runs in submission.jobs.items():
            for run in runs:
                found[run] = submission.cluster, job
    return found


def look(folder: SweepFolder, scheduled: Mapping[str, Scheduled] | None, now: float | None = None) -> list[State]:
    """The state of every run of a sweep, in their order.

    Args:
        folder: of the sweep.
        scheduled: what the scheduler says, by job; None: it was not asked, or does not answer.
        now: seconds since 1970.
    """
    runs, jobs = folder.runs(), newest_jobs(folder.submissions())
    at = time.time() if now is None else now

    def one(run: Planned) -> State:
        run_dir, (_, job) = folder.run_dir(run.id), jobs.get(run.id, ("", ""))
        has = scheduled.get(job) if scheduled is not None else None
        state = state_of(run, job, read_status(run_dir), history(run_dir), has, known=scheduled is not None, now=at)
        if state.kind == "new" and (log := log_of(folder, job)) is not None:  # its job ended before it began
            return replace(state, error=tail(log, 0))
        return state

    every = list(runs.values())
    parts = [every[start : start + _AT_ONCE] for start in range(0, len(every), _AT_ONCE)]
    with ThreadPoolExecutor(_READERS) as pool:
        return [state for part in pool.map(lambda part: [one(run) for run in part], parts) for state in part]


def log_of(folder: SweepFolder, job: str) -> Path | None:
    """What a job has printed itself, before and between its runs; None where it has not."""
    files = (folder.logs / f"{job}_0_log.out", folder.logs / f"{job}.log")  # by submitit; on this machine
    return next((file for file in files if job and file.exists()), None)


def state_of(
    run: Planned,
    job: str,
    status: Mapping[str, Any],
    past: list[Attempt],
    has: Scheduled | None,
    *,
    known: bool,
    now: float,
) -> State:
    """The state of one run.

    Args:
        run: which.
        job: its newest job.
        status: what its folder's status says.
        past: its starts that have ended.
        has: what the scheduler says of its job.
        known: has the scheduler answered?
        now: seconds since 1970.
    """
    if cancelled(past) and status.get("state") != "running":  # its job, if there is one, is for others
        kind = _kind("", status, None, given_up=given_up(past), known=True, now=now)
    else:
        kind = _kind(job, status, has, given_up=given_up(past), known=known, now=now)
    trains = kind == "running"
    made = [each for each in past if each.how not in {RETRIED, CANCELLED}]
    under_way = status.get("started", 0) > max((each.ended for each in made), default=0)  # its job has not noted it yet
    error = str(status.get("error", "")).partition("\n")[0] if kind in {"failed", "lost", "stopped"} else ""
    return State(
        id=run.id,
        label=run.label,
        kind=kind,
        job=job,
        epoch=int(status.get("epoch", 0)),
        epochs=int(status.get("epochs", 0)),
        samples_per_second=status.get("samples_per_second") if trains else None,
        seconds_left=status.get("seconds_left") if trains else None,
        accuracy=status.get("test_accuracy") if kind == "done" else None,
        error=error,
        starts=len(made) + under_way,
        stops=sum(each.how == "stopped" for each in made),
        host=made[-1].host if made else "",
    )


def _kind(
    job: str, status: Mapping[str, Any], has: Scheduled | None, *, given_up: bool, known: bool, now: float
) -> Kind:
    said = status.get("state")
    if said == "done":
        return "done"
    if said == "running" and has != "pending":
        alive = has == "running" or now - status.get("heartbeat", 0) < SILENT_S  # it may be run by hand
        return "running" if alive else "lost"
    if given_up:  # whatever its job does: it makes others
        return "failed"
    if has is not None or (job and not known and said is None):
        return "pending"  # its job starts it, perhaps again, or makes others first
    kinds: dict[Any, Kind] = {"failed": "failed", "stopped": "stopped", "running": "lost"}
    return kinds.get(said, "new")
