"""SLURM: arrays of jobs through submitit, and what the scheduler says of them."""

import contextlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from hpc.errors import RunError
from hpc.output import say
from jobs.attempts import history
from jobs.controller import STOPPED, Controller
from jobs.origin import origin
from jobs.resources import Resources
from jobs.states import Scheduled, newest_jobs
from jobs.sweepfolder import Submission, SweepFolder

Jobs = Sequence[Sequence[Path]]
"""For each job the folders of its runs."""
_WAITING: Final = frozenset(
    {"PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT", "RESV_DEL_HOLD"}
)
_LEAKING: Final = ("SUBMITIT_",)
_INHERITED: Final = ("SLURM_", "SBATCH_", "SRUN_", "SUBMITIT_")
_TIMEOUT_S: Final = 60.0
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
        with self.folder.locked():
            submissions = self.folder.submissions()
            if not any(name in each.jobs for each in submissions):
                known = newest_jobs(submissions)
                runs = [run_dir.name for run_dir in self.run_dirs if run_dir.name not in known]
                self.folder.note(Submission(time.time(), "slurm", {name: runs}, origin()))

    def owns(self, name: str, run_dir: Path) -> bool:
        """Is this job the newest that was made for a run?"""
        return newest_jobs(self.folder.submissions()).get(run_dir.name) == ("slurm", name)

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
            for key in [key for key in os.environ if key.startswith(_INHERITED) and key != "SLURM_CONF"]:
                del os.environ[key]  # sbatch would take them for wishes
            with self.folder.locked():
                runs = [run_dir.name for run_dir in self.run_dirs]
                folder = self.folder
                for (name,) in submit([self.run_dirs], self.resources, self.mpi, folder.logs, folder.path.name):
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
    except RunError:
        return False
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


def submit(
    jobs: Sequence[Sequence[Path]], resources: Resources, mpi: str, logs: Path, name: str
) -> Iterator[list[str]]:
    """Hand jobs over to SLURM, in as many arrays as its limit asks for; of each the names of the jobs, in their order.

    Args:
        jobs: for each job the folders of its runs.
        resources: what every run needs.
        mpi: srun's --mpi.
        logs: where submitit writes.
        name: of the jobs, as squeue shows it.

    Raises:
        RunError: there is no SLURM here, or it refuses.
    """
    check_there("sbatch")
    limit = array_limit()
    for start in range(0, len(jobs), limit):
        part = [SlurmJob(run_dirs, resources, mpi) for run_dirs in jobs[start : start + limit]]
        with _plainly():
            taken = executor(resources, logs, name).submit_array(part)
        yield [job.job_id for job in taken]


def submit_one(call: Callable[[], object], resources: Resources, logs: Path, name: str) -> str:
    """Hand over one job that calls something; its name. Raises RunError."""
    with _plainly():
        return str(executor(resources, logs, name).submit(call).job_id)


def preview(resources: Resources, logs: Path, name: str, count: int) -> str:
    """The batch scripts of `count` jobs, one for each array. Also where there is no SLURM."""
    from submitit.slurm.slurm import _make_sbatch_string  # submitit has no public door

    made = executor(resources, logs, name)
    command = made._submitit_command_str  # noqa: SLF001
    try:
        limit = array_limit()
    except RunError:  # one array; more is not known here
        limit = count
    sizes = [min(limit, count - start) for start in range(0, count, limit)]
    parameters: dict[str, Any] = made.parameters
    texts = {
        size: _make_sbatch_string(command, logs, **parameters, map_count=size if size > 1 else None)
        for size in dict.fromkeys(sizes)
    }
    return "\n".join(
        f"{sizes.count(size)} array(s) of {size} job(s):\n{text}" if len(sizes) > 1 else text
        for size, text in texts.items()
    )


def executor(resources: Resources, logs: Path, name: str) -> Any:
    """Submitit's, with all that the resources ask for."""
    import submitit

    class Executor(submitit.SlurmExecutor):
        """Made where there is no srun, too: on a laptop, to show what sbatch would get."""

        @classmethod
        def affinity(cls) -> int:
            return 2

    needs = resources
    options: dict[str, Any] = {
        "job_name": name,
        "nodes": needs.nodes,
        "ntasks_per_node": needs.ranks // needs.nodes,
        "cpus_per_task": needs.cpus_per_rank,
        "time": needs.timeout_min,
        "array_parallelism": needs.parallel,
        "signal_delay_s": needs.signal_s,
        "use_srun": False,
        "setup": list(needs.setup),
        "stderr_to_stdout": True,
    }
    named = {"partition": needs.partition, "account": needs.account, "qos": needs.qos, "constraint": needs.constraint}
    options |= {key: value for key, value in named.items() if value is not None}
    if needs.mem_gb is not None:
        options["mem"] = f"{round(needs.mem_gb * 1024)}M"
    if needs.gpus_per_rank:
        options["gpus_per_task"] = needs.gpus_per_rank
    more = ({} if "no-requeue" in needs.sbatch else {"requeue": True}) | needs.sbatch
    options["additional_parameters"] = {key: value for key, value in more.items() if value is not False}
    made = Executor(folder=logs)
    made.update_parameters(**options)
    return made


def scheduled(names: Sequence[str]) -> dict[str, Scheduled] | None:
    """What SLURM has of these jobs, by name, in one question; None where it does not answer."""
    try:
        said = ask("squeue", "--me", "--noheader", "--array", "--format=%i %T")
    except RunError:
        return None
    wanted, found = set(names), dict[str, Scheduled]()
    for line in said.splitlines():
        job, _, state = line.partition(" ")
        if job in wanted:
            found[job] = "pending" if state.strip() in _WAITING else "running"
    return found


def cancel(names: Sequence[str]) -> None:
    """End jobs, waiting or running: these stop at a checkpoint."""
    for start in range(0, len(names), 500):  # a command line has an end
        ask("scancel", *names[start : start + 500])


def array_limit() -> int:
    """How many jobs an array may have."""
    for line in ask("scontrol", "show", "config").splitlines():
        key, _, value = line.partition("=")
        if key.strip() == "MaxArraySize" and value.strip().isdigit():
            return max(1, int(value))
    return 1000


def check_there(command: str) -> None:
    """Raises RunError where one of SLURM's commands is not to be found."""
    if shutil.which(command) is None:
        raise RunError(
            f"{command}: not found, so there is no SLURM here; use --cluster local, or log in to the cluster"
        )


def ask(*command: str) -> str:
    """What one of SLURM's commands answers.

    Raises:
        RunError: it is not there, fails, or does not answer within a minute.
    """
    check_there(command[0])
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired:
        raise RunError(f"{command[0]}: no answer within {_TIMEOUT_S:.0f} s; is slurmctld running? try again") from None
    if done.returncode:
        said = done.stderr.strip().splitlines() or [f"failed with code {done.returncode}"]
        raise RunError(f"{command[0]}: {said[-1]}; see that SLURM answers here (sinfo), or use another --cluster")
    return done.stdout


@contextlib.contextmanager
def _plainly() -> Iterator[None]:
    """Submitit's failures as ours."""
    try:
        yield
    except Exception as error:
        if type(error).__module__.startswith("submitit"):
            text = str(error).strip().splitlines()
            raise RunError(f"SLURM did not take the jobs: {text[-1] if text else error}") from error
        raise
