"""Start local MPI ranks, pass signals on to them, and leave none behind."""

import ctypes
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Final, NamedTuple

from hpc.config.devices import cpu_cores
from hpc.errors import ConfigError

_OPEN_MPI: Final = ("Open MPI", "OpenRTE", "PRRTE", "prterun")


def find_mpiexec() -> Path:
    """The mpiexec of this Python environment, else the one on the PATH. Raises ConfigError where there is none."""
    beside = Path(sys.prefix) / "bin" / "mpiexec"
    found = str(beside) if beside.exists() else shutil.which("mpiexec")
    if found is None:
        raise ConfigError(
            "--ranks: no mpiexec in this Python environment or on the PATH; "
            "install an MPI library, for example with pip install 'structlearn[mpich]'"
        )
    return Path(found)


def command(mpiexec: Path, ranks: int, program: Sequence[str]) -> list[str]:
    """The command line that starts ``ranks`` ranks of a program on this machine, for either MPI library."""
    try:
        answer = subprocess.run([mpiexec, "--version"], capture_output=True, text=True, check=False, timeout=60)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ConfigError(f"--ranks: {mpiexec} --version does not answer ({error}); mend that MPI library") from None
    if any(word in answer.stdout + answer.stderr for word in _OPEN_MPI):
        options = ["--oversubscribe", *(["--allow-run-as-root"] if os.geteuid() == 0 else [])]
    else:  # MPICH's Hydra: do not ask a surrounding SLURM job for its nodes
        options = ["-launcher", "fork", "-rmk", "user"]
    return [str(mpiexec), *options, "-n", str(ranks), *program]


def environment(ranks: int) -> dict[str, str]:
    """The ranks' environment: threads shared out, a surrounding SLURM step hidden, the terminal announced."""
    env = {key: value for key, value in os.environ.items() if not key.startswith(("SLURM_", "PMI_", "PMIX_", "OMPI_"))}
    env.setdefault("OMP_NUM_THREADS", str(max(1, cpu_cores() // ranks)))
    env["STRUCTLEARN_RANKS"] = str(ranks)
    env["STRUCTLEARN_TERMINAL"] = str(shutil.get_terminal_size().columns) if sys.stdout.isatty() else "0"
    return env


class Ended(NamedTuple):
    """How the ranks ended."""

    code: int
    """The exit code of the first that failed, as mpiexec gives it; 128 + n for a signal."""
    asked: bool
    """Has somebody asked them to stop?"""


def launch(ranks: int, program: Sequence[str]) -> Ended:
    """Start ranks of a program, and wait for them.

    SIGTERM, SIGUSR1, SIGUSR2 and Ctrl-C reach every rank. If this process dies, however it dies, so do they:
    mpiexec is told by the kernel, and its death ends the ranks.
    """
    line = command(find_mpiexec(), ranks, program)
    # A process group of its own: Ctrl-C on the terminal then comes to the ranks once, through us.
    child = subprocess.Popen(line, env=environment(ranks), preexec_fn=_die_with_parent, process_group=0)  # noqa: PLW1509 - prctl has no other door

    asked = False
    interrupts: list[int] = []

    def forward(number: int, _frame: FrameType | None) -> None:
        nonlocal asked
        asked = True
        # mpiexec passes USR1 on to its ranks; USR2 would end mpiexec itself, TERM some versions, a second INT all.
        interrupts.extend([number] if number == signal.SIGINT else [])
        if number == signal.SIGINT and len(interrupts) > 1:
            child.kill()  # whoever presses Ctrl-C twice does not want to wait; the ranks end with mpiexec
        else:
            child.send_signal(signal.SIGUSR1)

    numbers = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT)
    before = {number: signal.signal(number, forward) for number in numbers}
    try:
        code = child.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return Ended(code if code >= 0 else 128 - code, asked)


def _die_with_parent() -> None:
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL, 0, 0, 0)
