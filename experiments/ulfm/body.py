"""A rank that may be the victim: it is killed by SIGKILL, shortly after one of its steps.

    mpiexec --with-ft ulfm -n 4 python experiments/ulfm/body.py RUN_DIR VICTIM STEP DELAY_S

The signal comes from a thread of the victim, so that it hits whatever the training and the thread that calls MPI are
doing just then. Each rank writes down when (time.time): RUN_DIR/killed, RUN_DIR/noticed-RANK.
"""

import os
import signal
import sys
import threading
import time
from pathlib import Path

from hpc.config.read import read
from hpc.rank import train
from hpc.signals import StopRequest

RUN_DIR, VICTIM, STEP, DELAY_S = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])
RANK = int(os.environ["OMPI_COMM_WORLD_RANK"])


class Dying(StopRequest):
    """Asked once a step whether to stop: the victim counts."""

    asked = 0

    def __getattribute__(self, name: str) -> object:
        if name == "requested" and RANK == VICTIM:
            self.asked += 1
            if self.asked == STEP:
                threading.Timer(DELAY_S, die).start()
        return super().__getattribute__(name)


def die() -> None:
    (RUN_DIR / "killed").write_text(str(time.time()))
    os.kill(os.getpid(), signal.SIGKILL)


def watched() -> None:
    """Note when a survivor knows of the loss, and that all others do."""
    from hpc.survive import Survival

    shrink = Survival.shrink

    def noting(self: Survival) -> None:
        (RUN_DIR / f"noticed-{RANK}").write_text(str(time.time()))
        shrink(self)

    Survival.shrink = noting  # type: ignore[method-assign]


if __name__ == "__main__":
    with Dying(last=True) as stop:
        watched()
        sys.exit(train(read(Path(__file__).parent / "small.yaml", ["--run_dir", str(RUN_DIR)]), stop, progress="none"))
