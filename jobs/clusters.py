"""Who makes the jobs of a sweep: SLURM, this machine, or this process."""

import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, Literal, Protocol

from hpc.errors import RunError
from jobs import local, slurm
from jobs.controller import STOPPED, Controller
from jobs.resources import Resources
from jobs.runner import train_command
from jobs.slurmjob import SlurmJob
from jobs.states import Scheduled, State, look, newest_jobs
from jobs.sweepfolder import SweepFolder

Name = Literal["slurm", "local", "debug"]

Jobs = Sequence[Sequence[Path]]
"""For each job the folders of its runs."""


class Cluster(Protocol):
    """Takes jobs, and says what has become of them."""

    def submit(self, jobs: Jobs, resources: Resources, logs: Path, name: str) -> Iterator[list[str]]:
        """Take jobs, each with the folders of its runs; their names, in their order, as many at a time as were taken.

        The caller notes them before it asks for more. Raises RunError.
        """

    def preview(self, resources: Resources, logs: Path, name: str, count: int) -> str:
        """What would be handed over for `count` jobs."""

    def scheduled(self, names: Sequence[str], logs: Path) -> dict[str, Scheduled] | None:
        """Which of these jobs, which write into `logs`, wait or run; None where nobody can say."""

    def cancel(self, names: Sequence[str]) -> None:
        """End jobs; what runs stops at a checkpoint. Raises RunError."""


class Slurm:
    """The scheduler of a cluster."""

    def submit(self, jobs: Jobs, resources: Resources, logs: Path, name: str) -> Iterator[list[str]]:
        """One array, or as many as SLURM's largest array asks for."""
        mpi = resources.mpi or plugin()
        return slurm.submit([SlurmJob(run_dirs, resources, mpi) for run_dirs in jobs], resources, logs, name)

    def preview(self, resources: Resources, logs: Path, name: str, count: int) -> str:
        """The text that sbatch would be given."""
        return slurm.preview(resources, logs, name, count)

    def scheduled(self, names: Sequence[str], logs: Path) -> dict[str, Scheduled] | None:
        """By squeue."""
        return slurm.scheduled(names) if names else {}

    def cancel(self, names: Sequence[str]) -> None:
        """By scancel."""
        slurm.cancel(names)


class Local:
    """This machine, while nobody waits."""

    def submit(self, jobs: Jobs, resources: Resources, logs: Path, name: str) -> Iterator[list[str]]:
        """A process of their own starts them."""
        yield local.submit(jobs, resources, logs)

    def preview(self, resources: Resources, logs: Path, name: str, count: int) -> str:
        """The command of each run, and how many jobs go on at the same time."""
        return local.preview(resources, count)

    def scheduled(self, names: Sequence[str], logs: Path) -> dict[str, Scheduled] | None:
        """By what living processes hold; None where that cannot be seen."""
        try:
            return local.scheduled(names, logs)
        except RunError:
            return None

    def cancel(self, names: Sequence[str]) -> None:
        """By SIGTERM for those that run."""
        local.cancel(names)


class Debug:
    """This process, job by job, while the command waits."""

    def submit(self, jobs: Jobs, resources: Resources, logs: Path, name: str) -> Iterator[list[str]]:
        """Make all runs; a signal stops the one that trains, and leaves the others for later."""
        stopped = False
        for number, run_dirs in enumerate(jobs):
            job = f"debug-{number}"
            yield [job]
            if not stopped:
                made = Controller(run_dirs, lambda run_dir: train_command(run_dir, resources.ranks), job)()
                stopped = made == STOPPED

    def preview(self, resources: Resources, logs: Path, name: str, count: int) -> str:
        """The command of each run."""
        return " ".join(train_command(Path("RUN"), resources.ranks)) + "\n"

    def scheduled(self, names: Sequence[str], logs: Path) -> dict[str, Scheduled] | None:
        """Nothing waits: a job that runs has a fresh sign of life."""
        return {}

    def cancel(self, names: Sequence[str]) -> None:
        """Only whoever started it can."""
        raise RunError("--cluster debug makes runs in the command that was started: end that, with Ctrl-C")


CLUSTERS: Final[dict[Name, Cluster]] = {"slurm": Slurm(), "local": Local(), "debug": Debug()}


def plugin() -> str:
    """What srun's --mpi is for the MPI library that mpi4py loads here. Asked in a process of its own."""
    program = "from mpi4py import rc; rc.initialize = False; from mpi4py import MPI; print(MPI.Get_library_version())"
    try:
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    except subprocess.TimeoutExpired:
        done = None
    if done is None or done.returncode:
        raise RunError(
            "resources.mpi: mpi4py does not load here, so it is not known which plugin of srun suits its MPI library; "
            "set resources.mpi, for example to pmi2 (MPICH) or pmix (Open MPI)"
        )
    return suited(done.stdout)


def suited(library: str) -> str:
    """What srun's --mpi is for an MPI library, by what it calls itself."""
    return "pmix" if "Open MPI" in library else "pmi2"


def states_of(folder: SweepFolder) -> list[State]:
    """The state of every run of a sweep, as its folder and the clusters that have its jobs say."""
    names: dict[str, list[str]] = {}
    for cluster, job in newest_jobs(folder.submissions()).values():
        names.setdefault(cluster, []).append(job)
    answers = [
        CLUSTERS[cluster].scheduled(list(dict.fromkeys(jobs)), folder.logs)  # type: ignore[index]
        for cluster, jobs in names.items()
    ]
    known: dict[str, Scheduled] = {}
    for answer in answers:
        known |= answer or {}
    return look(folder, None if None in answers else known)
