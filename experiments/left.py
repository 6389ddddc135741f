"""What a run leaves behind on this machine: experiments that kill runs ask it after each."""

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import psutil

if TYPE_CHECKING:
    import subprocess

LOOK_S = 0.002
ORPHAN_S = 5.0
"""For so long a process may live on when the command has returned."""


class End(NamedTuple):
    """How a command ended."""

    hang: bool
    at: float
    """When it returned or was killed, by `time.monotonic`."""
    orphans: int
    """Processes that were left when their time was over; they are killed."""


def named(run_dir: Path, variable: str = "") -> list[psutil.Process]:
    """Every living process that names the run folder, in its command line or in that variable of its environment."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.pid == os.getpid() or process.status() == psutil.STATUS_ZOMBIE:
                continue
            words = process.cmdline()
            words += " ".join(words).split()  # a launcher's command line may be one word of another's
            if variable:
                words.append(process.environ().get(variable, ""))
            if any(word.endswith(str(run_dir)) for word in words):  # as a word, or as --KEY=PATH
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found


def wait(command: "subprocess.Popen[bytes]", run_dir: Path, hang_s: float, variable: str = "") -> End:
    """Wait for a command, and then for all that names its run folder.

    Args:
        command: what was started.
        run_dir: the run's folder.
        hang_s: a command that has not returned by then hangs, and is killed with all that is its own.
        variable: of the environment, see `named`.
    """
    until = time.monotonic() + hang_s
    while command.poll() is None and time.monotonic() < until:
        time.sleep(LOOK_S)
    at, hang = time.monotonic(), command.poll() is None
    if hang:
        _kill(named(run_dir, variable))
        command.wait()
    until = time.monotonic() + ORPHAN_S
    while (left := named(run_dir, variable)) and time.monotonic() < until:
        time.sleep(10 * LOOK_S)
    _kill(left)
    return End(hang, at, len(left))


def _kill(processes: list[psutil.Process]) -> None:
    for process in processes:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue  # it has ended meanwhile
