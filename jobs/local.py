"""This machine as a cluster: jobs that go on without the terminal, as many at a time as there are CPU cores and GPUs.

What waits and what runs is found out from files that living processes hold (:mod:`jobs.queues`). A sweep's folder may
be on a file system that machines share: a job's name has its machine's, and of another machine's jobs only what its
runner said last is known.
"""

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Final

from hpc.errors import ConfigError, RunError
from hpc.output import say
from jobs.queues import Queue, tidy
from jobs.resources import Resources
from jobs.runner import Order, beat, train_command
from jobs.states import SILENT_S, Scheduled
from jobs.tokens import Need, Tokens, machine

_OURS: Final = frozenset({"ranks", "cpus_per_rank", "gpus_per_rank", "parallel", "pack"})
"""The resources that have a meaning here; the others are SLURM's."""
_STARTING_S: Final = 120.0


def submit(jobs: Sequence[Sequence[Path]], resources: Resources, logs: Path) -> list[str]:
    """Start a process that makes jobs; their names, in their order. Returns when it has begun.

    Args:
        jobs: for each job the folders of its runs.
        resources: what every run needs.
        logs: where it says what it has to do, and where the jobs write.

    Raises:
        ConfigError: a run needs more than this machine has.
        RunError: the process does not start.
    """
    check(resources, machine())
    for line in remarks(resources, machine()):
        say(line, sys.stderr)
    order = Order(
        f"{_host()}-{secrets.token_hex(4)}", time.time(), [list(map(str, run_dirs)) for run_dirs in jobs], resources
    )
    path, tokens = logs / f"{order.name}.json", Tokens()
    order.write(path)
    with tokens.locked():
        tidy(tokens)
        queue, descriptor = Queue.make(tokens.path / order.name, len(jobs))
    try:
        _detach(path, descriptor)
    except RunError:
        shutil.rmtree(queue.path, ignore_errors=True)
        raise
    finally:
        os.close(descriptor)
    return [order.job(index) for index in range(len(jobs))]


def _detach(path: Path, descriptor: int) -> None:
    """Start the runner of an order, in a session of its own: it does not end with the terminal."""
    log = path.with_suffix(".log")
    program = [sys.executable, "-m", "jobs.runner", "queue", str(path), str(descriptor)]
    with log.open("ab") as file:
        try:
            done = subprocess.run(
                program, stdin=subprocess.DEVNULL, stdout=file, stderr=file, pass_fds=(descriptor,),
                start_new_session=True, timeout=_STARTING_S, check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            raise RunError(
                f"{log}: the process that starts the jobs did not begin in {_STARTING_S:g} s; try again"
            ) from None
    if done.returncode:
        raise RunError(f"{log}: the process that starts the jobs ended with {done.returncode}; it says there why")


def check(resources: Resources, most: Need) -> None:
    """Refuse what could never start.

    More ranks than CPU cores are no reason: such a run takes all cores, and its ranks share them, as with
    ``structlearn train --ranks``.

    Raises:
        ConfigError: a rank needs more CPU cores, or a run more GPUs, than this machine has.
    """
    if resources.cpus_per_rank > most.cpus:
        raise ConfigError(
            f"resources.cpus_per_rank: got {resources.cpus_per_rank}, but this machine has {most.cpus} CPU core(s); "
            f"give --resources.cpus_per_rank {most.cpus} or fewer"
        )
    if resources.ranks * resources.gpus_per_rank > most.gpus:
        fewer = most.gpus // resources.ranks
        raise ConfigError(
            f"resources.gpus_per_rank: {resources.ranks} rank(s) with {resources.gpus_per_rank} each need "
            f"{resources.ranks * resources.gpus_per_rank} GPU(s), but {most.gpus} can be used on this machine; give "
            f"--resources.gpus_per_rank {fewer}, or fewer ranks"
        )


def remarks(resources: Resources, most: Need) -> list[str]:
    """What of the resources is otherwise here than with SLURM."""
    standard, found = Resources(), []
    other = [field.name for field in fields(Resources) if field.name not in _OURS]
    if given := [name for name in other if getattr(resources, name) != getattr(standard, name)]:
        found.append(
            f"resources: {', '.join(given)}: SLURM's, and without effect here: all ranks are on this machine, "
            f"and there is no limit of time"
        )
    if (wanted := resources.ranks * resources.cpus_per_rank) > most.cpus:
        found.append(
            f"resources: a run asks for {wanted} CPU core(s), and this machine has {most.cpus}: runs go on one after "
            f"the other, and their ranks share the cores"
        )
    if most.gpus and not resources.gpus_per_rank:
        found.append(
            f"resources.gpus_per_rank: 0, so these runs do not see the {most.gpus} GPU(s) of this machine; "
            f"--resources.gpus_per_rank 1 gives one to each rank"
        )
    return found


def preview(resources: Resources, count: int) -> str:
    """The command of each run, and how many jobs go on at the same time.

    Raises:
        ConfigError: a run needs more than this machine has.
    """
    most = machine()
    check(resources, most)
    need = Order("", 0.0, [], resources).need
    fit = min(have // each for have, each in ((most.cpus, need.cpus), (most.gpus, need.gpus)) if each)
    cards = f" and {need.gpus} GPU(s)" if need.gpus else ""
    takes = f"each job takes {need.cpus} CPU core(s){cards} of this machine"
    goes = f"at most {min(fit, count, resources.parallel)} go on at the same time, without a limit of time"
    line = " ".join(train_command(Path("RUN"), resources.ranks))
    return "\n".join([*remarks(resources, most), f"{takes}; {goes}; each run is", line, ""])


def scheduled(names: Iterable[str], logs: Path) -> dict[str, Scheduled]:
    """Which of these jobs wait or run.

    Args:
        names: of the jobs.
        logs: of the sweep whose jobs they are: there the runners of other machines and users leave word.

    Raises:
        RunError: the tokens of this machine are locked, or in a folder that cannot be used.
    """
    found: dict[str, Scheduled] = {}
    for name, jobs in _by_order(names).items():
        has = _held(name) if name.rpartition("-")[0] == _host() else None
        has = _heard(logs / f"{name}.json") if has is None else has
        found |= {f"{name}_{index}": has[index] for index in jobs if index in has}
    return found


def cancel(names: Iterable[str]) -> None:
    """What waits never starts; what runs is told to stop.

    Those of another machine are left alone: they see the mark in their runs' folders (:class:`jobs.controller.Step`).

    Raises:
        RunError: the tokens of this machine are locked, or in a folder that cannot be used.
    """
    for name, jobs in _by_order(names).items():
        if name.rpartition("-")[0] == _host():
            tokens = Tokens()
            with tokens.locked():
                for index in jobs:
                    Queue(tokens.path / name).cancel(index)


def _by_order(names: Iterable[str]) -> dict[str, list[int]]:
    """The numbers of jobs by the names of their submissions."""
    found: dict[str, list[int]] = {}
    for name in names:
        order, _, index = name.rpartition("_")
        found.setdefault(order, []).append(int(index))
    return found


def _held(name: str) -> dict[int, Scheduled] | None:
    """What waits and runs of a submission on this machine; None where it is another user's, or over."""
    tokens = Tokens()
    with tokens.locked():
        return Queue(tokens.path / name).jobs() if (tokens.path / name).is_dir() else None


def _heard(path: Path) -> dict[int, Scheduled]:
    """What the runner of a submission said last, unless that is long ago: then it is gone."""
    try:
        said = json.loads(beat(path).read_text(encoding="utf-8"))
        fresh = time.time() - said["time"] < SILENT_S
        return {index: kind for kind in ("pending", "running") for index in said[kind]} if fresh else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _host() -> str:
    return socket.gethostname()
