"""A rank that is killed by SIGKILL when it calls a method of the engine for the n-th time.

mpiexec --with-ft ulfm -n 4 python mortal.py CONFIG.yaml RUN_DIR RANK@CLASS.METHOD:CALL ...
"""

import os
import signal
import sys
from pathlib import Path

from hpc.config.read import read
from hpc.rank import train
from hpc.signals import StopRequest

RANK = int(os.environ["OMPI_COMM_WORLD_RANK"])


def mortal(kind, method, call):
    """Let the call with this number be the last thing that the process does."""
    before, calls = getattr(kind, method), 0

    def counting(*arguments, **keys):
        nonlocal calls
        calls += 1
        if calls == call:
            os.kill(os.getpid(), signal.SIGKILL)
        return before(*arguments, **keys)

    setattr(kind, method, counting)


if __name__ == "__main__":
    from hpc.engine import Engine
    from hpc.survive import Survival

    with StopRequest(last=True) as stop:
        for word in sys.argv[3:]:
            who, where = word.split("@")
            name, call = where.split(":")
            kind, method = name.split(".")
            if int(who) == RANK:
                mortal({"Engine": Engine, "Survival": Survival}[kind], method, int(call))
        config = read(Path(sys.argv[1]), ["--run_dir", sys.argv[2]])
        sys.exit(train(config, stop, progress="none", as_json=True))
