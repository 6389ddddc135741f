"""Inside a job of SLURM: each run in a step of its own, and back into the queue with what is left."""

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from hpc.config.folder import read_status
from hpc.errors import RunError
from hpc.output import say
from jobs.attempts import cancelled, given_up, history
from jobs.controller import STOPPED, Controller
from jobs.origin import origin
from jobs.resources import Resources
from jobs.slurm import ask, submit_one
from jobs.states import newest_jobs
from jobs.sweepfolder import Submission, SweepFolder

_LEAKING: Final = ("SUBMITIT_",)
_THERE: Final = "Job is pending"
"""What SLURM says of a job that is in the queue already."""
AWAY_S: Final = 3600.0
"""For so long SLURM's controller is waited for: jobs go on while it is upgraded."""
AGAIN_S: Final = 5.0
_OVERLAP: Final = {"SLURM_OVERLAP": "1"}
"""A node that was lost, and is back before SLURM has noticed, never says that its ranks have ended. Their step holds
the job's cores for ever, and srun would wait for them for the next one. SLURM before 20.11 does so by itself."""
_EMPTY_STEP_S: Final = 300.0
"""For a step that does nothing. Where the controller is restarted while srun asks for it, it comes after 125 s."""
_STEP_S: Final = 30.0
"""In which SLURM has noted the end of a step, where its nodes are there."""


class SlurmJob:
    """What one job does: it makes its runs, each in a step of its own, and goes back into the queue if told to stop.

    Pickled by submitit, and called once, in the batch script: what the script survives (a rank that is killed, a step
    that runs out of memory) the job survives, and starts the run again. Ranks under submitit's own srun would take it
    with them.

    Args:
        run_dirs: of its runs.
        resources: what a run needs.
        mpi: srun's --mpi.
    """

    def __init__(self, run_dirs: Sequence[Path], resources: Resources, mpi: str) -> None:
        self.run_dirs, self.resources, self.mpi = list(run_dirs), resources, mpi

    def __call__(self) -> None:
        """Exits with the job's code."""
        name = job_name(os.environ)
        self.claim(name)
        pass_over_steps(self.run_dirs, name, int(os.environ.get("SLURM_RESTART_COUNT", "0")))
        environment = self.environment(os.environ)
        code = Controller(
            self.run_dirs, self.start, name, environment,
            mine=lambda run_dir: self.owns(name, run_dir), sound=lambda: no_step_left(name),
            seconds=60 * self.resources.timeout_min - self.resources.signal_s,
        )()  # fmt: skip
        if code == STOPPED:
            self.go_on(name)
        sys.exit(code)

    @property
    def folder(self) -> SweepFolder:
        """Of the sweep."""
        return SweepFolder(self.run_dirs[0].parent)

    def claim(self, name: str) -> None:
        """Note this job where the command that submitted it died before it could, unless another was made meanwhile."""
        if any(name in each.jobs for each in self.folder.submissions()):
            return
        made = origin()
        with self.folder.locked():
            submissions = self.folder.submissions()
            if not any(name in each.jobs for each in submissions):
                known = newest_jobs(submissions)
                runs = [run_dir.name for run_dir in self.run_dirs if run_dir.name not in known]
                self.folder.note(Submission(time.time(), "slurm", {name: runs}, made))

    def owns(self, name: str, run_dir: Path) -> bool:
        """Is this job the newest that was made for a run?"""
        return newest_jobs(self.folder.submissions()).get(run_dir.name) == ("slurm", name)

    def left(self, name: str) -> list[Path]:
        """The runs that are still this job's to make."""
        mine = [run_dir for run_dir in self.run_dirs if self.owns(name, run_dir)]
        pasts = {run_dir: history(run_dir) for run_dir in mine if read_status(run_dir).get("state") != "done"}
        return [run_dir for run_dir, past in pasts.items() if not cancelled(past) and not given_up(past)]

    def go_on(self, job: str) -> None:
        """Back into the queue with what is left of this job, which ends it here; as a new job where that is forbidden.

        Args:
            job: its name. Not SLURM_JOB_ID: an array's last task has the id of the array, and all of it would be put
                back, with what goes on and what is done.

        Raises:
            RunError: neither is allowed; ``structlearn retry`` goes on from the login node.
        """
        try:
            requeue(job)
        except RunError as error:
            say(f"structlearn: {error}; so a new job is made", sys.stderr)
            with self.folder.locked():
                rest = SlurmJob(self.left(job), self.resources, self.mpi)
                runs = [run_dir.name for run_dir in rest.run_dirs]
                folder = self.folder
                name = submit_one(rest, self.resources, folder.logs, folder.path.name)
                folder.note(Submission(time.time(), "slurm", {name: runs}, origin()))

    def start(self, run_dir: Path) -> list[str]:
        """The command of a run, when SLURM can start it."""
        wait_for_controller()
        return self.command(run_dir)

    def command(self, run_dir: Path) -> list[str]:
        """How srun starts a run's ranks."""
        return [*self.step(), sys.executable, "-m", "hpc.rank", str(run_dir), "--progress", "plain"]

    def step(self) -> list[str]:
        """How srun starts ranks, of whatever program follows."""
        needs = self.resources
        step = [
            "srun", f"--ntasks={needs.ranks}", f"--nodes={needs.nodes}", f"--cpus-per-task={needs.cpus_per_rank}",
            f"--mpi={self.mpi}", "--kill-on-bad-exit=1", "--unbuffered",
        ]  # fmt: skip
        if needs.gpus_per_rank:
            step.append(f"--gpus-per-task={needs.gpus_per_rank}")  # each task sees its own: srun's manual, --gpu-bind
        return step

    def environment(self, outer: Mapping[str, str]) -> dict[str, str]:
        """Of the ranks."""
        kept = {key: value for key, value in outer.items() if not key.startswith(_LEAKING)}
        return kept | _OVERLAP | {"OMP_NUM_THREADS": str(self.resources.cpus_per_rank)}


def job_name(environ: Mapping[str, str]) -> str:
    """The scheduler's name of the job that this process is in: 12, or 12_3 in an array."""
    array, index = environ.get("SLURM_ARRAY_JOB_ID"), environ.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{index}" if array and index else environ.get("SLURM_JOB_ID", "")


def pass_over_steps(run_dirs: Sequence[Path], job: str, restarts: int) -> None:
    """Use up the numbers of the steps that the job had before it was put back into the queue.

    MPICH names its shared memory by the numbers of job and step, and SLURM begins to count again at 0: where the ranks
    of a step were killed, those of the next one with its number would find the old memory, and abort or hang.
    """
    known = sum(attempt.job == job for run_dir in run_dirs for attempt in history(run_dir))
    for _ in range(known + restarts if restarts else 0):
        with contextlib.suppress(subprocess.TimeoutExpired):
            subprocess.run(
                ("srun", "--nodes=1", "--ntasks=1", "true"),  # noqa: S607
                env=os.environ | _OVERLAP, check=False, timeout=_EMPTY_STEP_S,
            )  # fmt: skip


def requeue(job: str) -> None:
    """Put a running job back into the queue, which ends it here; a controller that is away is waited for.

    Raises:
        RunError: it is refused.
    """
    until = time.monotonic() + AWAY_S
    while True:
        try:
            ask("scontrol", "requeue", job)
        except RunError as error:
            if _THERE in str(error):  # it was preempted meanwhile
                return
            if answers() or time.monotonic() > until:
                raise
            time.sleep(AGAIN_S)
        else:
            return


def wait_for_controller() -> None:
    """Return when the controller answers: without it no step starts, and each that cannot would be a failed start."""
    until = time.monotonic() + AWAY_S
    while not answers() and time.monotonic() < until:
        time.sleep(AGAIN_S)


def answers() -> bool:
    """Does the controller answer?"""
    try:
        ask("squeue", "--noheader", "--me", "--states=running")
    except RunError as error:  # without squeue, or with one that does not know these options, nothing can be said
        return any(word in str(error) for word in ("not found", "option"))
    return True


def no_step_left(job: str) -> bool:
    """Have all steps of a job ended, for SLURM as well? One that lingers had ranks on a node that was lost.

    The next step would wait for it, and SLURM itself does not notice where that node was back soon.
    """
    until = time.monotonic() + _STEP_S
    while True:
        try:
            steps = ask("squeue", "--noheader", "--steps", f"--jobs={job}", "--format=%i").split()
        except RunError:  # slurmctld is being restarted, perhaps; srun waits for it, too
            return True
        if not any(step.rpartition(".")[2].isdigit() for step in steps):
            return True
        if time.monotonic() > until:
            return False
        time.sleep(1)
