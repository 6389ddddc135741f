"""The folder of a sweep: its runs, and which jobs were made for them.

ID/                        one folder a run (see hpc.config.folder), named by the run's id
sweep/runs.json            the runs, in their order, with their labels and what they need; replaced atomically
sweep/submissions.jsonl    one line for each submission: which jobs make which runs
sweep/logs/                what the jobs print, and what submitit keeps
"""

import contextlib
import fcntl
import json
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from hpc.config.folder import append_line, write_atomically
from hpc.errors import ConfigError, RunError
from jobs.resources import Resources
from jobs.sweep import Run

OWN: Final = "sweep"
RUNS: Final = "runs.json"
SUBMISSIONS: Final = "submissions.jsonl"
LOGS: Final = "logs"
PATIENCE_S: Final = 120.0
"""For another command's submission; one of thousands of runs takes seconds."""


@dataclass(frozen=True)
class Planned:
    """A run of a sweep, as its folder knows it."""

    id: str
    label: str
    resources: Resources


@dataclass(frozen=True)
class Submission:
    """Jobs that were handed over at once.

    Attributes:
        time: seconds since 1970.
        cluster: to whom.
        jobs: for each job, by the scheduler's name of it: the ids of its runs, in their order.
        origin: the code and the environment that it was made with (:func:`jobs.origin.origin`).
    """

    time: float
    cluster: str
    jobs: dict[str, list[str]]
    origin: dict[str, Any] = field(default_factory=dict)


class SweepFolder:
    """A sweep's folder. Several commands may use it at the same time.

    Args:
        path: the folder; `run_dir` of the sweep file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.own = path / OWN

    @classmethod
    def existing(cls, path: Path) -> "SweepFolder":
        """One that was submitted from. Raises ConfigError where there is none."""
        folder = cls(path)
        if not (folder.own / RUNS).exists():
            raise ConfigError(f"{path}: holds no sweep; give the run_dir of a sweep file that was submitted")
        return folder

    @property
    def logs(self) -> Path:
        """Where jobs write."""
        return self.own / LOGS

    def run_dir(self, identifier: str) -> Path:
        """The folder of a run."""
        return self.path / identifier

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """One command at a time that changes what is submitted: nothing is handed over twice.

        Raises:
            RunError: another one does not come to its end.
        """
        self.own.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.own / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
        try:
            self._lock(descriptor, time.monotonic() + PATIENCE_S)
            yield
        finally:
            os.close(descriptor)

    def _lock(self, descriptor: int, until: float) -> None:
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > until:
                    raise RunError(
                        f"{self.path}: another structlearn command has been submitting this sweep for more than "
                        f"{PATIENCE_S:.0f} s; wait for it, or end it"
                    ) from None
                time.sleep(0.1)
            except OSError:  # a file system without locks: nothing can be said
                return
            else:
                return

    def runs(self) -> dict[str, Planned]:
        """All runs, by id, in their order.

        Raises:
            ConfigError: the list is damaged.
        """
        path = self.own / RUNS
        try:
            entries = json.loads(path.read_text(encoding="utf-8"))["runs"]
            return {key: Planned(key, each["label"], Resources(**each["resources"])) for key, each in entries.items()}
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ConfigError(
                f"{path}: cannot be read ({error}); submit the sweep again with this file moved away: runs that are "
                f"done stay done"
            ) from None

    def add(self, runs: Sequence[Run]) -> None:
        """Note runs, those that are known with what they need now."""
        known = self.runs() | {run.id: Planned(run.id, run.label, run.resources) for run in runs}
        entries = {key: {"label": each.label, "resources": asdict(each.resources)} for key, each in known.items()}
        self.logs.mkdir(parents=True, exist_ok=True)
        write_atomically(self.own / RUNS, json.dumps({"runs": entries}) + "\n")

    def submissions(self) -> list[Submission]:
        """All of them, the oldest first. A line that was broken off by a crash is passed over."""
        try:
            lines = (self.own / SUBMISSIONS).read_text(encoding="utf-8").splitlines()
        except OSError:
            return []
        found = []
        for line in lines:
            with contextlib.suppress(ValueError, TypeError, KeyError):
                values: dict[str, Any] = json.loads(line)
                found.append(Submission(values["time"], values["cluster"], values["jobs"], values.get("origin", {})))
        return found

    def note(self, submission: Submission) -> None:
        """Add a submission; on the disk when this returns."""
        append_line(self.own / SUBMISSIONS, json.dumps(asdict(submission)))
