"""Inside a job: make its runs, one after the other, start again what can go on, and say what the job is to end with."""

import math
import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from hpc.config.folder import LOGS, complete, ended, locked, read_status, resumable
from hpc.signals import StopRequest, end_with_parent
from jobs.attempts import Attempt, cancelled, given_up, history, note
from jobs.origin import code_version

DONE: Final = 0
FAILED: Final = 1
STOPPED: Final = 75
OUTPUT: Final = "output.log"
"""In a run's logs/: what its ranks print, of all its starts."""
PAUSE_S: Final = 5.0
"""Before a run that has failed starts again: what it met with may be over."""
LINGER_S: Final = 60.0
"""For so long the command of a run may outlive rank 0. Where a node was lost and is back before the scheduler has
noticed, srun waits for its ranks for ever."""
SILENT_S: Final = 1800.0
"""For so long it may take until the ranks give their first sign of life: all waits of their own end before."""
POLITE_S: Final = 10.0
"""Between asking such a command to end and killing it."""
LETTING_GO_S: Final = 60.0
"""How long a run's folder may be held before it is another process that trains there."""
_TAIL: Final = 8192
LOOK_S: Final = 2.0
"""How often the folder of a run that trains is looked at."""
_UNHEARD: Final = frozenset({128 + signal.SIGUSR1, 128 + signal.SIGUSR2})
"""A scheduler's word that the time is over, before the ranks could listen to it: it ends them."""

Command = Callable[[Path], Sequence[str]]
"""Of a run's folder: the command that starts its ranks, and ends when they have."""


class Controller:
    """Makes the runs of one job.

    A run is started until it is done, is told to stop, is cancelled, or has failed in the same way three times without
    coming any further (:func:`jobs.attempts.hopeless`). What fails for a mistake in its configuration (exit code 2) is
    not started again. The others of the job are made whatever becomes of one of them.

    Args:
        run_dirs: the folders of its runs, with their frozen configurations.
        command: how a run is started.
        job: the scheduler's name of the job, for the history.
        env: of the ranks.
        mine: is a run, by its folder, still this job's to make? Another job may have been made for it meanwhile.
        sound: can this job start another run? A node may be lost; then the job goes back into the queue.
        seconds: after which it starts none any more: it is told when its time is over only while ranks run.
    """

    def __init__(
        self,
        run_dirs: Sequence[Path],
        command: Command,
        job: str,
        env: dict[str, str] | None = None,
        mine: Callable[[Path], bool] = lambda _: True,
        sound: Callable[[], bool] = lambda: True,
        seconds: float = math.inf,
    ) -> None:
        self._run_dirs, self._command, self._job, self._env = list(run_dirs), command, job, env
        self._mine, self._sound, self._code = mine, sound, code_version()
        self._until = time.monotonic() + seconds

    def __call__(self) -> int:
        """The job's exit code: 0 nothing is left to do; 75 stopped, and to be started again; 1 some have failed."""
        codes = []
        with StopRequest() as stop:
            for run_dir in self._run_dirs:
                codes.append(self._make(run_dir, stop))
                if codes[-1] == STOPPED:
                    return STOPPED
        return FAILED if FAILED in codes else DONE

    def _make(self, run_dir: Path, stop: StopRequest) -> int:
        """One run, to its end or to a stop; 0, 1 or 75."""
        while (end := self._end(run_dir)) is None and not stop.requested and time.monotonic() < self._until:
            if not _free(run_dir, stop):
                break  # somebody trains there by hand, or a file server still waits for a node that is lost
            attempt = self._attempt(run_dir, stop)
            note(run_dir, attempt)
            end = self._end(run_dir)
            if attempt.how == "stopped" or (end is None and not self._sound()):
                break
            if end is None:
                _wait(PAUSE_S, stop)
        return STOPPED if end is None else end

    def _end(self, run_dir: Path) -> int | None:
        """The code of a run that is not to be started (again); else None."""
        past = history(run_dir)
        if read_status(run_dir).get("state") == "done":
            return DONE
        if given_up(past):
            return FAILED
        return DONE if cancelled(past) or not self._mine(run_dir) else None

    def _attempt(self, run_dir: Path, stop: StopRequest) -> Attempt:
        began, output = time.time(), run_dir / LOGS / OUTPUT
        before = output.stat().st_size if output.exists() else 0
        step = Step(run_dir, began, self._command(run_dir), self._env)
        code = step.wait(stop)
        how, reason = outcome(run_dir, began, code, asked=step.told or stop.requested, said=tail(output, before))
        return Attempt(
            self._job, began, time.time(), code, how, reason, newest(run_dir), self._code, socket.gethostname()
        )


class Step:
    """The command that starts a run's ranks, while it runs.

    Args:
        run_dir: the run's folder.
        began: seconds since 1970, before now.
        line: the command.
        env: of it.
    """

    def __init__(self, run_dir: Path, began: float, line: Sequence[str], env: dict[str, str] | None) -> None:
        here = os.getpid()
        self._run_dir, self._began, self.told, self._seen = run_dir, began, False, False
        output = run_dir / LOGS / OUTPUT
        output.parent.mkdir(exist_ok=True)
        with output.open("ab") as file:
            self._child = subprocess.Popen(
                line, env=env, stdin=subprocess.DEVNULL, stdout=file, stderr=file,
                preexec_fn=lambda: end_with_parent(here),  # noqa: PLW1509
            )  # fmt: skip

    def wait(self, stop: StopRequest) -> int:
        """Its exit code. The ranks are told to stop where this process is, or where the run is cancelled."""
        look, over = 0.0, None
        while True:
            try:
                code = self._child.wait(timeout=0.5)
            except subprocess.TimeoutExpired:
                if stop.requested:
                    self._tell()
                if (now := time.monotonic()) < look:
                    continue
                look = now + LOOK_S
                if cancelled(history(self._run_dir)):
                    self._tell()
                over = (over or now) if self._over() else None
                if over is not None and now - over > LINGER_S:
                    self._end()
            else:
                return code if code >= 0 else 128 - code

    def _tell(self) -> None:
        if not self.told:
            self._child.send_signal(signal.SIGUSR1)
            self.told = True

    def _over(self) -> bool:
        """Are the ranks gone, as they said themselves, or as this machine knows? Or have they never come?"""
        status = read_status(self._run_dir)
        fresh = status.get("heartbeat", 0) >= self._began
        if fresh and status.get("state") in {"done", "failed", "stopped"}:
            return True
        named = fresh and status.get("host") == socket.gethostname() and Path("/proc", str(status.get("pid"))).exists()
        here = named or rank_here(self._run_dir)
        self._seen = self._seen or here
        if self._seen:  # what was never seen may live in another container
            return not here
        return not fresh and time.time() - self._began > SILENT_S

    def _end(self) -> None:
        """Politely first, then it is killed."""
        self._child.terminate()
        try:
            self._child.wait(timeout=POLITE_S)
        except subprocess.TimeoutExpired:
            self._child.kill()


def outcome(run_dir: Path, began: float, code: int, *, asked: bool, said: str = "") -> tuple[str, str]:
    """(how a start ended: done, stopped or failed; the reason), by what the ranks said, or by the exit code.

    Where they could not say anything (killed, out of memory) the run's status is told what is known, and what their
    output `said` last.
    """
    status = read_status(run_dir)
    fresh = status.get("heartbeat", 0) >= began
    if fresh and status.get("state") == "done":
        return "done", ""
    if fresh and "exit_code" in status:  # a failure that the ranks have told themselves
        return ("stopped" if asked else "failed"), str(status.get("error", "")).partition("\n")[0]
    if fresh and status.get("state") == "stopped":
        return "stopped", ""
    taken = locked(run_dir)  # by somebody else, whose status it is
    if asked or code in _UNHEARD:
        if not taken:
            ended(run_dir, "stopped", "stopped while the ranks were starting", STOPPED)
        return "stopped", ""
    reason = f"the ranks ended with code {code}: {said or 'they were killed, or had no memory left'}"
    if not taken:
        ended(run_dir, "stopped" if resumable(run_dir) else "failed", reason, code or FAILED)
    return "failed", reason


def tail(output: Path, start: int) -> str:
    """The last line that says something in what was added to a file: a rank's own before SLURM's about it."""
    try:
        with output.open("rb") as file:
            file.seek(max(start, output.stat().st_size - _TAIL))
            return last_line(file.read().decode(errors="replace"))
    except OSError:
        return ""


def last_line(output: str) -> str:
    """The last line that says something: a rank's own before SLURM's about it."""
    lines = [line.strip() for line in output.splitlines() if line.strip() and not line.lstrip().startswith("{")]
    own = [line for line in lines if not re.match(r"(srun|slurmstepd)(-\S+)?:", line)]
    return (own or [line for line in lines if "error" in line] or lines or [""])[-1]


def _free(run_dir: Path, stop: StopRequest) -> bool:
    """Does nobody hold a run's folder? Ranks that were killed need a moment to let go."""
    until = time.monotonic() + LETTING_GO_S
    while locked(run_dir):
        if time.monotonic() > until or stop.requested:
            return False
        time.sleep(0.2)
    return True


def rank_here(run_dir: Path) -> bool:
    """Does a rank of a run live on this machine? Also one that has not given a sign of life yet."""
    words = b"\0".join((b"-m", b"hpc.rank", os.fsencode(run_dir))) + b"\0"
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes()
        except OSError:  # it has ended
            continue
        if line.partition(b"\0")[2].startswith(words):  # srun has them, too, further behind
            return True
    return False


def newest(run_dir: Path) -> str:
    """The name of the newest complete checkpoint; empty where there is none."""
    return max((path.name for path in complete(run_dir)), default="")


def _wait(seconds: float, stop: StopRequest) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until and not stop.requested:
        time.sleep(0.1)
