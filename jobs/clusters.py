"""Who makes the jobs of a sweep: SLURM, this machine, or this process."""

import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, Literal, Protocol

from hpc.errors import RunError
from hpc.output import say
from jobs import local, slurm
from jobs.attempts import Attempt, note
from jobs.controller import STOPPED, newest, outcome
from jobs.origin import code_version
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

    def reasons(self, names: Sequence[str]) -> dict[str, str]:
        """Why jobs wait, by their names, where that can be said."""

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

    def reasons(self, names: Sequence[str]) -> dict[str, str]:
        """By squeue."""
        return slurm.reasons(names)

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

    def reasons(self, names: Sequence[str]) -> dict[str, str]:
        """There is one: others have the cores or the GPUs."""
        return {}

    def cancel(self, names: Sequence[str]) -> None:
        """By SIGTERM for those that run."""
        local.cancel(names)


class Debug:
    """This process, run by run, while the command waits; the runs' output is the command's."""

    def submit(self, jobs: Jobs, resources: Resources, logs: Path, name: str) -> Iterator[list[str]]:
        """Make all runs, each once; a signal stops the one that trains, and leaves the others for later."""
        code = 0
        for number, run_dirs in enumerate(jobs):
            yield [f"debug-{number}"]
            for run_dir in run_dirs:
                if code != STOPPED:
                    code = self._make(run_dir, resources.ranks, f"debug-{number}")

    @staticmethod
    def _make(run_dir: Path, ranks: int, job: str) -> int:
        from jobs.train import train  # one rank trains in this process: torch comes with it

        began, config, several = time.time(), run_dir / "config.yaml", ranks if ranks > 1 else None
        said = ""
        try:
            code = train(
                config, ["--run_dir", str(run_dir)], ranks=several, progress="auto", as_json=False,
                print_config=False, print_schema=False,
            )  # fmt: skip
        except RunError as error:
            say(f"structlearn: {error}", sys.stderr)
            code, said = error.exit_code, str(error).partition("\n")[0]
        how, reason = outcome(run_dir, began, code, asked=code == STOPPED, said=said)
        note(run_dir, Attempt(job, began, time.time(), code, how, reason, newest(run_dir), code_version()))
        return code

    def preview(self, resources: Resources, logs: Path, name: str, count: int) -> str:
        """The command of each run."""
        return " ".join(train_command(Path("RUN"), resources.ranks)) + "\n"

    def scheduled(self, names: Sequence[str], logs: Path) -> dict[str, Scheduled] | None:
        """Nothing waits: a job that runs has a fresh sign of life."""
        return {}

    def reasons(self, names: Sequence[str]) -> dict[str, str]:
        """Nothing waits."""
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


def why_waiting(folder: SweepFolder, states: Sequence[State]) -> dict[str, str]:
    """Why runs that are pending wait, by their ids, as far as the clusters say."""
    newest = newest_jobs(folder.submissions())
    jobs = {state.id: newest[state.id] for state in states if state.kind == "pending" and state.id in newest}
    said = {
        (cluster, job): why
        for cluster in dict.fromkeys(cluster for cluster, _ in jobs.values())
        for job, why in CLUSTERS[cluster].reasons([name for where, name in jobs.values() if where == cluster]).items()  # type: ignore[index]
    }
    return {run: said[job] for run, job in jobs.items() if job in said}
