"""Inside a job: make its runs, one after the other, start again what can go on, and say what the job is to end with."""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from hpc.config.folder import CHECKPOINTS, LOGS, ended, read_status, resumable
from hpc.signals import StopRequest, end_with_parent
from jobs.attempts import Attempt, history, hopeless, note

DONE: Final = 0
FAILED: Final = 1
USAGE: Final = 2
STOPPED: Final = 75
OUTPUT: Final = "output.log"
"""In a run's logs/: what its ranks print, of all its starts."""
PAUSE_S: Final = 5.0
"""Before a run that has failed starts again: what it met with may be over."""

Command = Callable[[Path], Sequence[str]]
"""Of a run's folder: the command that starts its ranks, and ends when they have."""


class Controller:
    """Makes the runs of one job.

    A run is started until it is done, is told to stop, or has failed in the same way three times without coming any
    further (:func:`jobs.attempts.hopeless`). What fails for a mistake in its configuration (exit code 2) is not started
    again. The others of the job are made whatever becomes of one of them.

    Args:
        run_dirs: the folders of its runs, with their frozen configurations.
        command: how a run is started.
        job: the scheduler's name of the job, for the history.
        env: of the ranks.
    """

    def __init__(self, run_dirs: Sequence[Path], command: Command, job: str, env: dict[str, str] | None = None) -> None:
        self._run_dirs, self._command, self._job, self._env = list(run_dirs), command, job, env

    def __call__(self) -> int:
        """The job's exit code: 0 all are done; 75 stopped, and to be started again; 1 some have failed."""
        codes = []
        with StopRequest() as stop:
            for run_dir in self._run_dirs:
                codes.append(self._make(run_dir, stop))
                if codes[-1] == STOPPED:
                    return STOPPED
        return FAILED if any(codes) else DONE

    def _make(self, run_dir: Path, stop: StopRequest) -> int:
        """One run, to its end or to a stop; 0, 1 or 75."""
        while read_status(run_dir).get("state") != "done":
            if hopeless(history(run_dir)):
                return FAILED
            if stop.requested:
                return STOPPED
            attempt = self._attempt(run_dir, stop)
            note(run_dir, attempt)
            if attempt.how == "stopped":
                return STOPPED
            if attempt.code == USAGE:
                return FAILED
            if attempt.how == "failed" and not hopeless(history(run_dir)):
                _wait(PAUSE_S, stop)
        return DONE

    def _attempt(self, run_dir: Path, stop: StopRequest) -> Attempt:
        began = time.time()
        code = self._start(self._command(run_dir), run_dir / LOGS / OUTPUT, stop)
        how, reason = outcome(run_dir, began, code, asked=stop.requested)
        return Attempt(self._job, began, time.time(), code, how, reason, newest(run_dir))

    def _start(self, line: Sequence[str], output: Path, stop: StopRequest) -> int:
        """The exit code of a command, of which a signal to this process asks the ranks to stop."""
        here = os.getpid()
        output.parent.mkdir(exist_ok=True)
        with output.open("ab") as file:
            child = subprocess.Popen(
                line, env=self._env, stdin=subprocess.DEVNULL, stdout=file, stderr=file,
                preexec_fn=lambda: end_with_parent(here),  # noqa: PLW1509
            )  # fmt: skip
        told = False
        while True:
            try:
                code = child.wait(timeout=0.5)
            except subprocess.TimeoutExpired:
                if stop.requested and not told:
                    child.send_signal(signal.SIGUSR1)
                    told = True
            else:
                return code if code >= 0 else 128 - code


def outcome(run_dir: Path, began: float, code: int, *, asked: bool) -> tuple[str, str]:
    """(how a start ended: done, stopped or failed; the reason), by what the ranks said, or by the exit code.

    Where they could not say anything (killed, out of memory) the run's status is told what is known.
    """
    status = read_status(run_dir)
    fresh = status.get("heartbeat", 0) >= began
    if fresh and status.get("state") == "done":
        return "done", ""
    if fresh and "exit_code" in status:  # a failure that the ranks have told themselves
        return ("stopped" if asked else "failed"), str(status.get("error", "")).partition("\n")[0]
    if fresh and status.get("state") == "stopped":
        return "stopped", ""
    if asked:
        ended(run_dir, "stopped", "stopped while the ranks were starting", STOPPED)
        return "stopped", ""
    reason = f"the ranks ended with code {code} and said nothing: killed, out of memory, or as their output says"
    state = "stopped" if resumable(run_dir) else "failed"
    ended(run_dir, state, reason, code or FAILED)
    return "failed", reason


def newest(run_dir: Path) -> str:
    """The name of the newest complete checkpoint; empty where there is none."""
    return max((path.parent.name for path in (run_dir / CHECKPOINTS).glob("step-*/manifest.json")), default="")


def _wait(seconds: float, stop: StopRequest) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until and not stop.requested:
        time.sleep(0.1)
