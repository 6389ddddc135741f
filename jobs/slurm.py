"""SLURM: arrays of jobs through submitit, and what the scheduler says of them."""

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from hpc.errors import RunError
from jobs import probe
from jobs.resources import Resources
from jobs.states import Scheduled

_WAITING: Final = frozenset(
    {"PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT", "RESV_DEL_HOLD"}
)
_OF_JOBS: Final = ("SLURM_", "SRUN_", "SUBMITIT_", "PMI_", "PMIX_")
_OF_SCRIPTS: Final = (
    "SBATCH_TIMELIMIT", "SBATCH_ARRAY_INX", "SBATCH_SIGNAL", "SBATCH_NO_REQUEUE", "SBATCH_REQUEUE", "SBATCH_OPEN_MODE",
    "SBATCH_JOB_NAME", "SBATCH_EXPORT", "SBATCH_WAIT",
)  # fmt: skip
_TIMEOUT_S: Final = 60.0


def submit(calls: Sequence[Callable[[], object]], resources: Resources, logs: Path, name: str) -> Iterator[list[str]]:
    """Hand jobs over to SLURM, in as many arrays as its limit asks for; of each the names of the jobs, in their order.

    Args:
        calls: what each job calls in its batch script; pickled.
        resources: what a job needs.
        logs: where submitit writes.
        name: of the jobs, as squeue shows it.

    Raises:
        RunError: there is no SLURM here, or it refuses.
    """
    check_there("sbatch")
    limit = array_limit()
    for start in range(0, len(calls), limit):
        with _plainly(), _hidden(resources):
            taken = executor(resources, logs, name).submit_array(list(calls[start : start + limit]))
        yield [job.job_id for job in taken]


def submit_one(call: Callable[[], object], resources: Resources, logs: Path, name: str) -> str:
    """Hand over one job; its name. Raises RunError."""
    ((taken,),) = submit([call], resources, logs, name)
    return taken


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
    asked = {key.replace("_", "-"): value for key, value in needs.sbatch.items()}
    more = ({} if "no-requeue" in asked else {"requeue": True}) | asked
    options["additional_parameters"] = {key: value for key, value in more.items() if value is not False}
    made = Executor(folder=logs)
    made.update_parameters(**options)
    return made


def scheduled(names: Sequence[str]) -> dict[str, Scheduled] | None:
    """What SLURM has of these jobs, by name, in one question; None where it does not answer."""
    try:
        rows = _rows(names, "%i|%T")
    except RunError:
        return None
    return {job: "pending" if state in _WAITING else "running" for job, state in rows}


def reasons(names: Sequence[str]) -> dict[str, str]:
    """Why jobs wait, as far as SLURM says: in its words, with what to do where somebody has to."""
    try:
        rows = _rows(names, "%i|%r|%S", "--states=pending")
    except RunError:
        return {}
    return {job: _in_words(job, reason, start) for job, reason, start in rows}


def _rows(names: Sequence[str], form: str, *options: str) -> list[list[str]]:
    """Of jobs, whoever has submitted them: what squeue says, in fields; those that it has forgotten are left out."""
    arrays = dict.fromkeys(name.partition("_")[0] for name in names)
    if not arrays:
        return []
    try:
        said = ask("squeue", "--noheader", "--array", f"--jobs={','.join(arrays)}", f"--format={form}", *options)
    except RunError as error:
        if "Invalid job id" in str(error):  # it has forgotten all of them
            return []
        raise
    wanted = set(names)
    rows = [[field.strip() for field in line.split("|")] for line in said.splitlines()]
    return [row for row in rows if row[0] in wanted and len(row) == form.count("|") + 1]


def _in_words(job: str, reason: str, start: str) -> str:
    if reason == "BeginTime":
        return f"it goes on at {start.replace('T', ' ')}"
    if "held" in reason.lower():
        return f"{reason}: scontrol release {job}"
    return reason


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
    answer = probe.ask(command, _TIMEOUT_S)
    if not answer.ok:
        raise RunError(f"{command[0]}: {answer.problem}; see that SLURM answers here (sinfo), or use another --cluster")
    return answer.out


@contextlib.contextmanager
def _hidden(resources: Resources) -> Iterator[None]:
    """Hide variables from sbatch that would change what it is given.

    What a job that this process is in has got goes along with sbatch, and srun would take it for wishes; outside of
    jobs such variables are the user's own. Those of sbatch come before the lines of its script: such as the script has
    are hidden, others (an account that a shell's start-up file sets) are the user's wish.
    """
    inherited = (*os.environ,) if "SLURM_JOB_ID" in os.environ else ()
    names = [key for key in inherited if key.startswith(_OF_JOBS) and key != "SLURM_CONF"]
    given = [key for key in ("partition", "account", "qos", "constraint") if getattr(resources, key) is not None]
    names += [key for key in (*_OF_SCRIPTS, *(f"SBATCH_{key.upper()}" for key in given)) if key in os.environ]
    hidden = {key: os.environ[key] for key in names}
    for key in hidden:
        del os.environ[key]
    try:
        yield
    finally:
        os.environ.update(hidden)


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
