"""Ask another process, and never wait for it longer than agreed.

What a machine offers is asked in processes of its own: importing torch takes seconds, importing mpi4py starts
MPI, a broken installation of either ends the process, and a dead file server or scheduler does not answer at all.
"""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

# The alarm ends a program that is stuck where nobody can reach it: behind an mpiexec that was killed, say.
_PRELUDE: Final = "import json, os, signal, sys; signal.alarm({limit}); "

TORCH: Final = """
import torch
devices = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
print(json.dumps({"version": torch.__version__, "built_for": torch.version.cuda or torch.version.hip,
                  "devices": [[device.name, device.total_memory] for device in devices]}))
"""

COMPILER: Final = """
from structlearn import native
from structlearn.regularizers import fused
print(json.dumps(native.compiled(fused.SOURCE) is not None))
"""

MPI: Final = """
from mpi4py import MPI
from hpc.config.devices import cuda_aware
levels = {MPI.THREAD_SINGLE: "MPI_THREAD_SINGLE", MPI.THREAD_FUNNELED: "MPI_THREAD_FUNNELED",
          MPI.THREAD_SERIALIZED: "MPI_THREAD_SERIALIZED", MPI.THREAD_MULTIPLE: "MPI_THREAD_MULTIPLE"}
library = " ".join(MPI.Get_library_version().split("\\n")[0].strip("\\x00 ").split())
print(json.dumps({"library": library, "standard": MPI.Get_version(), "level": levels[MPI.Query_thread()],
                  "cuda": cuda_aware(MPI.__file__)}))
"""

# One write of one short line: the lines of two ranks never mix.
RANK: Final = """
from mpi4py import MPI
os.write(1, json.dumps({"rank": MPI.COMM_WORLD.rank, "size": MPI.COMM_WORLD.size}).encode() + b"\\n")
"""

# What a rank of the test job says, in lines of its own: what comes before a crash has been said.
WORLD: Final = """
import socket
from mpi4py import MPI
import numpy
world, task = MPI.COMM_WORLD, os.environ.get("SLURM_PROCID", "0")
def say(**words):
    os.write(1, json.dumps({"task": task, **words}).encode() + b"\\n")
say(rank=world.rank, size=world.size, node=os.environ.get("SLURMD_NODENAME") or socket.gethostname(),
    library=" ".join(MPI.Get_library_version().split("\\n")[0].strip("\\x00 ").split()),
    cores=len(os.sched_getaffinity(0)))
values = numpy.ones(1 << 17)
world.Allreduce(MPI.IN_PLACE, values)
say(sum=float(values[-1]))
try:
    import torch
    devices = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    say(torch=torch.__version__, cuda=os.environ.get("CUDA_VISIBLE_DEVICES"),
        devices=[[device.name, str(getattr(device, "uuid", ""))] for device in devices])
except Exception as error:
    say(problem=f"{type(error).__name__}: {error}")
world.Barrier()
"""

FILES: Final = """
import fcntl, shutil, tempfile
import h5py, numpy
found = {"h5py": h5py.__version__, "hdf5": h5py.version.hdf5_version, "free": shutil.disk_usage(".").free}
try:
    with tempfile.TemporaryDirectory(dir=".") as folder:
        with open(os.path.join(folder, "lock"), "w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                found["lock"] = str(error)
        path = os.path.join(folder, "probe.h5")
        with h5py.File(path, "w") as file:
            file["values"] = numpy.arange(1000)
        with h5py.File(path, "r") as file:
            found["same"] = bool((file["values"][()] == numpy.arange(1000)).all())
except OSError as error:
    found["problem"] = str(error)
print(json.dumps(found))
"""


@dataclass(frozen=True)
class Answer:
    """What another process said."""

    ok: bool
    """It ended in time with exit code 0."""
    out: str
    problem: str
    """Why it is not ok: the last line it wrote, or that it did not start or end."""


def python(program: str, limit_s: int) -> list[str]:
    """The command line of a small program, which ends itself when its time is over."""
    return [sys.executable, "-c", _PRELUDE.format(limit=limit_s) + program]


def ask(line: Sequence[str | os.PathLike[str]], limit_s: float, env: Mapping[str, str] | None = None) -> Answer:
    """Run a command line to its end, or end it (and what it started) when its time is over."""
    try:
        child = subprocess.Popen(
            line,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            start_new_session=True,
        )
    except OSError as error:
        return Answer(ok=False, out="", problem=f"{line[0]} cannot be started ({error.strerror})")
    try:
        out, err = child.communicate(timeout=limit_s)
    except subprocess.TimeoutExpired:
        _end(child)
        return Answer(ok=False, out="", problem=f"no answer within {limit_s:g} s")
    if child.returncode:
        lines = [text.strip() for text in (err.strip() or out.strip()).splitlines()]
        return Answer(ok=False, out=out, problem=lines[-1] if lines else f"exit code {child.returncode}")
    return Answer(ok=True, out=out, problem="")


def _end(child: "subprocess.Popen[str]") -> None:
    """Politely first: mpiexec then ends its ranks. A process that is stuck in the kernel is left behind."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.communicate(timeout=1.0)
            return
