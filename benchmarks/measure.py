"""Two things measured side by side: interleaved, medians and spread, printed and written to a dated file."""

import argparse
import datetime as dt
import json
import os
import platform
import runpy
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from jobs.launch import command, environment, find_mpiexec

RESULTS = Path(__file__).parent / "results"
_WAYS = runpy.run_path(str(Path(__file__).parent.parent / "tests" / "support" / "transports.py"))
TRANSPORTS: dict[str, dict[str, str]] = {"shared memory": _WAYS["TRANSPORTS"]["shm"], "TCP": _WAYS["TRANSPORTS"]["tcp"]}
loopback: Callable[[], int] = _WAYS["loopback"]
_CORES = "BENCHMARK_CORES"


def parser(doc: str | None, rounds: int) -> argparse.ArgumentParser:
    """Of a benchmark: ``--rounds``, and ``--help`` with the script's docstring."""
    made = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--rounds", type=int, default=rounds)
    return made


def one_core() -> None:
    """Keep this process on one core, with one thread."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    torch.set_num_threads(1)


def on_ranks(ranks: int, program: Sequence[str], *, limit_s: float, transport: str = "shared memory") -> Any:
    """What rank 0 prints last, as JSON, of a script on so many ranks with the MPI library of this Python."""
    cores = {"OMP_NUM_THREADS": "1", _CORES: json.dumps(sorted(os.sched_getaffinity(0)))}
    line = command(find_mpiexec(), ranks, [sys.executable, *program])
    env = environment(ranks) | TRANSPORTS[transport] | cores
    done = subprocess.run(line, env=env, stdout=subprocess.PIPE, text=True, check=True, timeout=limit_s)
    return json.loads(done.stdout.splitlines()[-1])


def is_rank() -> bool:
    """Is this process one that `on_ranks` has started?"""
    return _CORES in os.environ


def pin(rank: int | None) -> None:
    """Give this process the core of a rank, or all cores, whatever core the launcher gave it."""
    cores = json.loads(os.environ[_CORES])
    os.sched_setaffinity(0, {cores[rank % len(cores)]} if rank is not None else cores)
    torch.set_num_threads(1)


def stolen() -> float:
    """Seconds for which the host of a virtual machine has kept this process's one core for others, so far."""
    (core,) = os.sched_getaffinity(0)
    line = next(line for line in Path("/proc/stat").read_text().splitlines() if line.startswith(f"cpu{core} "))
    return int(line.split()[8]) / os.sysconf("SC_CLK_TCK")


def interleave(sides: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Call each side once a round, in turn; each returns its own measure (seconds, say). The order alternates."""
    found: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(rounds):
        names = list(sides) if number % 2 == 0 else list(reversed(sides))
        for name in names:
            found[name].append(sides[name]())
    return found


def spread(values: Sequence[float]) -> str:
    """Median, and the quartiles beside it."""
    low, middle, high = statistics.quantiles(values, n=4)
    return f"{middle:.4g} [{low:.4g}, {high:.4g}]"


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> str:
    """The median of the ratios of each round, with quartiles: what is common to a round cancels."""
    return spread([a / b for a, b in zip(ours, theirs, strict=True)])


def publish(name: str, title: str, lines: Sequence[str]) -> None:
    """Print a table and write it to ``results/NAME-DATE.md`` with the machine it was measured on."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    machine = (
        f"{_processor()}, {len(os.sched_getaffinity(0))} cores, {torch.get_num_threads()} thread(s), {gpu}; "
        f"torch {torch.__version__}, Python {platform.python_version()}"
    )
    text = "\n".join([f"# {title}", "", machine, "", *lines, ""])
    print(text)
    RESULTS.mkdir(exist_ok=True)
    today = dt.datetime.now(tz=dt.UTC).date().isoformat()
    (RESULTS / f"{name}-{today}.md").write_text(text)


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()
