"""One run at a time in a folder."""

import fcntl
import os
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hpc.communicator import Communicator
from hpc.config.folder import LOCK
from hpc.errors import ConfigError, RunError


@contextmanager
def alone_in(run_dir: Path, comm: Communicator) -> Iterator[None]:
    """Hold the run folder: two runs in one would overwrite each other's checkpoints."""
    problem = None
    mark = ""
    descriptor = -1
    try:
        if comm.rank == 0:
            run_dir.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(run_dir / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
            problem = _lock(descriptor, run_dir)
            mark = secrets.token_hex(8)
            if problem is None:
                os.truncate(descriptor, 0)
                os.write(descriptor, mark.encode())
                os.fsync(descriptor)
        problem, mark = comm.gather([problem, mark], "lock the run folder")[0]
        if problem:
            raise RunError(problem)
        _share(run_dir, mark, comm)
        yield
    finally:
        if descriptor >= 0:
            os.close(descriptor)


def _share(run_dir: Path, mark: str, comm: Communicator, patience_s: float = 10.0) -> None:
    """Every rank must see the folder of rank 0: a checkpoint in parts on several nodes is none.

    What rank 0 has just written is compared, not the folder's number, which a network file system may give anew.
    """
    until = time.monotonic() + (patience_s if comm.rank else 0.0)
    seen = _read(run_dir)
    while seen != mark and time.monotonic() < until:  # a network file system may need a moment
        time.sleep(0.1)
        seen = _read(run_dir)
    for rank, theirs in enumerate(comm.gather(seen, "look for the run folder")):
        if theirs != mark:
            raise ConfigError(
                f"run_dir: rank {rank} does not see the {run_dir} of rank 0; give all ranks one folder, on a file "
                f"system that their machines share"
            )


def _read(run_dir: Path) -> str:
    try:
        return (run_dir / LOCK).read_text()
    except OSError:
        return ""


def _lock(descriptor: int, run_dir: Path, patience_s: float = 10.0) -> str | None:
    """Try for a while: a run that was just killed needs a moment to let go."""
    until = time.monotonic() + patience_s
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > until:
                return f"{run_dir}: another process is training in this folder; wait for it, or choose another run_dir"
            time.sleep(0.1)
        except OSError:  # a file system without locks: nothing can be said
            return None
        else:
            return None
