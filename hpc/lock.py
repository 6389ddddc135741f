"""One run at a time in a folder."""

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hpc.comm import Communicator
from hpc.config.folder import LOCK
from hpc.errors import RunError


@contextmanager
def alone_in(run_dir: Path, comm: Communicator) -> Iterator[None]:
    """Hold the run folder: two runs in one would overwrite each other's checkpoints."""
    problem = None
    descriptor = -1
    if comm.rank == 0:
        run_dir.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(run_dir / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
        problem = _lock(descriptor, run_dir)
    problem = comm.gather(problem, "lock the run folder")[0]
    try:
        if problem:
            raise RunError(problem)
        yield
    finally:
        if descriptor >= 0:
            os.close(descriptor)


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
