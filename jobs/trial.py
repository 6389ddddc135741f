"""A job of two ranks, to see that this cluster starts them and that they find each other: ``doctor --test-job``.

It is made as the jobs of sweeps are: a batch script through submitit, in which srun starts the ranks.
"""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, NamedTuple

from hpc.config.folder import write_atomically
from hpc.errors import ConfigError, RunError
from hpc.output import say
from jobs import partitions, probe, slurm, sweep
from jobs.clusters import plugin
from jobs.machine import Finding
from jobs.resources import Resources
from jobs.slurmjob import SlurmJob, pass_over_steps
from jobs.verdict import refused, verdict, without_ranks

NAME: Final = "structlearn-doctor"
LIMIT_S: Final = 10.0
"""For each question to SLURM."""
MINUTES: Final = 5
"""Of the job: short, so that it soon finds a place."""
STEP_S: Final = 200
"""For the ranks: a cold network disk may take minutes over torch."""
PAUSE_S: Final = 1.0
"""Between questions to SLURM; after the first minute five times as long."""
SETTLE_S: Final = 40.0
"""What a job that is over has written is seen here by then, on a network disk."""
OUTCOME: Final = "outcome.json"
OUTPUT: Final = "ranks.log"
_OVER: Final = frozenset(
    {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "BOOT_FAIL", "OUT_OF_MEMORY", "DEADLINE", "PREEMPTED"}
)


@dataclass
class Trial:
    """What the job does: it starts the ranks, and writes down how that went.

    Args:
        folder: where.
        resources: of the job.
        mpi: srun's --mpi.
    """

    folder: Path
    resources: Resources
    mpi: str

    def __call__(self) -> None:
        """Called once, in the batch script."""
        job = SlurmJob([], self.resources, self.mpi)
        began = time.time()
        pass_over_steps([], "", int(os.environ.get("SLURM_RESTART_COUNT", "0")))
        line = [*job.step(), *probe.python(probe.WORLD, STEP_S)]
        env, nothing = job.environment(os.environ), subprocess.DEVNULL
        with (self.folder / OUTPUT).open("wb") as file:
            try:
                code = subprocess.run(
                    line, env=env, stdin=nothing, stdout=file, stderr=file, check=False, timeout=STEP_S + 10
                ).returncode
            except subprocess.TimeoutExpired:
                code = 124
        outcome = {"began": began, "ended": time.time(), "code": code}
        write_atomically(self.folder / OUTCOME, json.dumps(outcome))
        sys.exit(0)


class Seen(NamedTuple):
    """What SLURM says of the job."""

    state: str
    reason: str
    nodes: str


def needs(path: Path | None, overrides: Sequence[str]) -> Resources:
    """What the test job asks for: what the runs of a sweep file do, with two ranks, and not for long.

    The ranks are on two nodes where a job can get two, and on as many as `resources.nodes` says where that is given.

    Args:
        path: of the sweep file; None: all defaults.
        overrides: ``--resources.KEY VALUE``.

    Raises:
        ConfigError: they have mistakes.
    """
    for word in overrides:
        if word.startswith("--") and not word.startswith("--resources."):
            raise ConfigError(f"{word}: not understood; the test job takes --resources.KEY VALUE, as a sweep file does")
    asked, given = sweep.resources(path, overrides)
    nodes = min(2, asked.nodes) if "nodes" in given else min(2, _nodes(asked.partition))
    made = replace(asked, ranks=2, nodes=nodes, timeout_min=MINUTES, signal_s=60)
    if problems := made.problems():
        raise ConfigError(problems)
    return made


def _nodes(name: str | None) -> int:
    """How many nodes a job can get in a partition (None: the default one); 1 where that is not known."""
    found = partitions.read(probe.ask(partitions.QUESTION, LIMIT_S).out)
    chosen = [each for each in found if (each.name in name.split(",") if name else each.default)]
    return max(1, min((each.usable for each in chosen), default=1))


def trial(resources: Resources, limit_s: float) -> list[Finding]:
    """Submit the job, wait for it, and say how it went. It is cancelled when the time is over, or by Ctrl-C.

    Args:
        resources: of the job, of :func:`needs`.
        limit_s: how long to wait for its end.
    """
    try:
        slurm.check_there("srun")
        mpi = resources.mpi or plugin()
    except RunError as error:
        return [Finding("test job", "fail", str(error))]
    try:
        folder = Path(tempfile.mkdtemp(prefix=".structlearn-doctor-", dir=Path.cwd()))
    except OSError as error:
        return [Finding("test job", "fail", f"no folder can be made here ({error.strerror})", "go where you may write")]
    with _interruptible():
        job, keep = "", False
        try:
            try:
                job = slurm.submit_one(Trial(folder, resources, mpi), resources, folder, NAME)
            except RunError as error:
                return [refused(str(error))]
            what = f"{resources.ranks} ranks on {resources.nodes} node(s), --mpi={mpi}"
            _say(f"job {job}: {what}; waiting for it, at most {limit_s / 60:g} min (Ctrl-C cancels it)")
            submitted = time.time()
            seen = _watch(job, folder, time.monotonic() + limit_s)
            found = _findings(job, folder, submitted, seen, mpi, resources)
            keep = any(each.status == "fail" for each in found) and (folder / OUTPUT).exists()
            return (
                [*found, Finding("files", "warn", f"what they have printed is kept: {folder / OUTPUT}", "")]
                if keep
                else found
            )
        finally:
            _ignore_signals()
            _end(job, folder, keep=keep)


def _watch(job: str, folder: Path, until: float) -> Seen | None:
    """Wait for the job; what SLURM said of it last."""
    began, over = time.monotonic(), None
    seen: Seen | None = None
    told = ""
    while not (folder / OUTCOME).exists():
        now = time.monotonic()
        known, answer = _look(job)
        seen = answer or seen
        if seen and (text := _told(seen)) != told:
            _say(f"job {job}: {text}")
            told = text
        if known and (answer is None or answer.state in _OVER):
            over = over or now
        if now > until or (over and now - over > SETTLE_S):
            break
        list(folder.iterdir())  # so that a network file system looks again
        time.sleep(PAUSE_S if now - began < 60 else 5 * PAUSE_S)
    return seen


def _told(seen: Seen) -> str:
    why = seen.nodes or ("" if seen.reason == "None" else seen.reason)
    return f"{seen.state.lower()} ({why})" if why else seen.state.lower()


def _look(job: str) -> tuple[bool, Seen | None]:
    """(did SLURM answer? what it says of the job, None where it has forgotten it)."""
    said = probe.ask(("squeue", "--noheader", "--states=all", f"--jobs={job}", "--format=%T|%r|%N"), LIMIT_S)
    if not said.ok:
        return "Invalid job id" in said.problem, None
    fields = [field.strip() for field in said.out.strip().split("|")]
    return (True, Seen(*fields)) if len(fields) == len(Seen._fields) else (not said.out.strip(), None)


def _findings(
    job: str, folder: Path, submitted: float, seen: Seen | None, mpi: str, resources: Resources
) -> list[Finding]:
    try:
        outcome: Mapping[str, Any] = json.loads((folder / OUTCOME).read_text(encoding="utf-8"))
        output = (folder / OUTPUT).read_text(encoding="utf-8", errors="replace")
    except (OSError, ValueError):
        logs = sorted(folder.glob(f"{job}*.out"))
        said = logs[0].read_text(encoding="utf-8", errors="replace") if logs else None
        state, reason = (seen.state, seen.reason) if seen else ("", "")
        return [without_ranks(job, state, reason, said, folder)]
    queued, ran = max(0.0, outcome["began"] - submitted), max(0.0, outcome["ended"] - outcome["began"])
    head = Finding("test job", "ok", f"job {job}: {queued:.0f} s in the queue, {ran:.0f} s of work")
    return [head, *verdict(output, int(outcome["code"]), mpi, resources)]


def _end(job: str, folder: Path, *, keep: bool) -> None:
    """Leave neither the job behind, nor its files."""
    if job:
        until = time.monotonic() + SETTLE_S
        _, seen = _look(job)
        if seen and seen.state not in _OVER and not (folder / OUTCOME).exists():
            _say(f"cancelling job {job}")
            if not (said := probe.ask(("scancel", job), LIMIT_S)).ok:
                _say(f"scancel: {said.problem}; do it by hand: scancel {job}")
        while seen and seen.state not in _OVER and time.monotonic() < until:
            time.sleep(min(PAUSE_S, 0.5))
            _, seen = _look(job)
    if not keep:
        shutil.rmtree(folder, ignore_errors=True)
        if folder.exists():
            _say(f"cannot be removed yet: {folder}")


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """A signal that would end this process interrupts it, like Ctrl-C, so that it can tidy up."""

    def interrupt(number: int, _frame: object) -> None:
        raise KeyboardInterrupt(signal.Signals(number).name)

    handlers = {number: signal.signal(number, interrupt) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def _ignore_signals() -> None:
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def _say(text: str) -> None:
    say(f"structlearn: {text}", sys.stderr)
