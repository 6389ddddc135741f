"""What became of the test job, in words: from what its ranks have printed, or what SLURM says of it."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from jobs.clusters import suited
from jobs.controller import last_line
from jobs.machine import Finding
from jobs.resources import Resources

RANKS: Final = 2
_FABRIC: Final = (
    "let them go over plain TCP, and see: resources.setup: ['export FI_PROVIDER=tcp'] (MPICH) or "
    "['export OMPI_MCA_pml=ob1 OMPI_MCA_btl=tcp,self'] (Open MPI)"
)
_SLURM: Final[Mapping[str, str]] = {
    r"invalid account|InvalidAccount|AssocNotAllowed|account/partition": "set resources.account (and "
    "resources.partition) to what is yours: sacctmgr show assoc user=$USER format=account,partition,qos",
    r"invalid qos|QOSNotAllowed": "set resources.qos to one that is yours: "
    "sacctmgr show assoc user=$USER format=account,qos",
    r"invalid partition|PartitionDown|PartitionInactive": "set resources.partition to one that sinfo shows as up",
    r"time limit is invalid|PartitionTimeLimit|QOSMaxWall": "the test job asks for 5 minutes: another partition or QOS",
    r"configuration is not available|feature|BadConstraints|PartitionNodeLimit|PartitionConfig": "no node has what "
    "is asked for: less of it, or other resources.partition, constraint, gpus_per_rank, mem_gb, nodes",
    r"wckey": "set yours, resources.sbatch: {wckey: NAME}: submitit writes submitit",
    r"\bgres\b": "the site asks for GPUs in another way: resources.gpus_per_rank: 0 and, for example, "
    "resources.sbatch: {gpus-per-node: 2} or {gres: 'gpu:2'}",
    r"memory specification|MaxMemPer": "set resources.mem_gb to what a node has, or to null",
    r"Assoc|QOS": "a limit of your account or QOS is reached: wait, or use another resources.account or qos",
    r"^(Resources|Priority|BeginTime)": "the cluster is busy: --wait MINUTES, or a partition for short jobs",
    r"ReqNodeNotAvail|Reservation|DOWN": "nodes are down, or reserved: sinfo -R says why; another resources.partition",
    r"held": "it is held: scontrol show job says by whom; scontrol release lets it go",
}
"""What to do about what sbatch says, and about reasons for which a job waits."""
_RANKS: Final[Mapping[str, str]] = {
    r"mpi plugin|Invalid MPI type|plugin name for mpi": "set resources.mpi to one that srun --mpi=list shows: "
    "pmi2 (MPICH), pmix (Open MPI); where it is shown and not taken, the site has not installed all of it",
    r"No module named|No such file|command not found": "Python and its packages are to lie on the disk that all nodes "
    "share; what else they need is loaded in resources.setup: [module load ...]",
    r"cannot load MPI|shared object|undefined symbol": "load the MPI library on the nodes, too: "
    "resources.setup: [module load ...]",
    r"step creation|Unable to create step": "the job has less than its ranks ask for: cpus_per_rank, gpus_per_rank",
}
"""What to do about what srun and ranks print."""
_LOOK: Final = "see what they have printed"
_STAFF: Final = "show this to the cluster's staff"


def advice(text: str, table: Mapping[str, str], otherwise: str = "") -> str:
    """What to do about what SLURM or a rank has said."""
    return next((remedy for pattern, remedy in table.items() if re.search(pattern, text, re.IGNORECASE)), otherwise)


def refused(said: str) -> Finding:
    """SLURM did not take the job."""
    return Finding("test job", "fail", said, advice(said, _SLURM, _STAFF))


def without_ranks(job: str, state: str, reason: str, said: str | None, folder: Path) -> Finding:
    """The job has left no outcome.

    Args:
        job: its name.
        state: what SLURM says of it; empty: nothing.
        reason: why it waits, in SLURM's words.
        said: what its script has printed; None where there is no such file.
        folder: where all that should be.
    """
    how = state.lower() or "it is gone"
    if state == "PENDING":
        says = f"job {job} has not started in time: {reason}; cancelled"
        remedy = advice(reason, _SLURM, "see squeue --start; wait longer with --wait MINUTES")
    elif state in {"RUNNING", "COMPLETING", "CONFIGURING", "SUSPENDED"}:
        says, remedy = f"job {job} did not end in time ({how}); cancelled", "wait longer with --wait MINUTES"
    elif said is None:
        says = f"job {job} ended and left nothing ({how}): does its node see {folder.parent}?"
        remedy = "go to the disk that all nodes share, and have Python there, too"
    else:
        says = f"job {job} ended before it had started its ranks ({how}): {last_line(said) or 'without a word'}"
        remedy = advice(said, _RANKS, "see resources.setup, and what else its script does before")
    return Finding("test job", "fail", says, remedy)


def verdict(output: str, code: int, mpi: str, resources: Resources) -> list[Finding]:
    """What the ranks found.

    Args:
        output: all that they and srun have printed.
        code: srun's.
        mpi: its --mpi.
        resources: of the job.
    """
    up = [task for task in told(output) if "size" in task]
    last = last_line(output) or f"srun ended with code {code} and said nothing"
    if not up:
        says = f"they do not come up under --mpi={mpi}: {last}"
        return [Finding("ranks", "fail", says, advice(output, _RANKS, _LOOK))]
    if all(task["size"] == 1 for task in up):
        return [_alone(up, mpi)]
    places = ", ".join(f"rank {task['rank']} on {task['node']}" for task in up)
    if len(up) < RANKS or any(task["size"] != RANKS for task in up):
        says = f"{RANKS} were started, but only this came up: {places}; {last}"
        return [Finding("ranks", "fail", says, advice(output, _RANKS, _LOOK))]
    if any(task.get("sum") != RANKS for task in up):
        return [Finding("ranks", "fail", f"they find each other ({places}), but no message comes through", _FABRIC)]
    says = f"world size {RANKS} under --mpi={mpi}: {places}; {up[0]['library']}; {up[0]['cores']} core(s) each"
    found = [Finding("ranks", "ok", says)]
    if len({task["node"] for task in up}) < resources.nodes:
        says = f"{resources.nodes} were asked for, and all ranks are on one"
        found.append(Finding("nodes", "warn", says, "see whether resources.sbatch has an option that changes that"))
    broken = [str(task.get("problem", last)) for task in up if "torch" not in task]
    if broken:
        says = f"it does not load on the nodes: {broken[0]}"
        return [*found, Finding("torch", "fail", says, advice(broken[0], _RANKS, _LOOK))]
    return [*found, Finding("torch", "ok", f"torch {up[0]['torch']}"), *_devices(up, resources)]


def _alone(up: Sequence[Mapping[str, Any]], mpi: str) -> Finding:
    """Each rank is a world of its own: srun and the MPI library do not speak the same language."""
    library, takes = str(up[0]["library"]), suited(str(up[0]["library"]))
    says = f"{len(up)} were started under --mpi={mpi}, and each finds itself alone (world size 1)"
    says += f": it does not suit {library}"
    if mpi != takes:
        return Finding("ranks", "fail", says, f"set resources.mpi: {takes}")
    others = "pmix for an MPICH that was built for it, cray_shasta on a Cray; or install mpi4py for the site's MPI"
    return Finding("ranks", "fail", says, f"set resources.mpi to another one that srun --mpi=list shows: {others}")


def _devices(up: Sequence[Mapping[str, Any]], resources: Resources) -> list[Finding]:
    """Which CUDA devices the ranks see; not a word where neither asked for nor there."""
    wanted = resources.gpus_per_rank
    if not wanted and not any(task["devices"] for task in up):
        return []
    says = "; ".join(_sees(task) for task in up)
    if any(not task["devices"] for task in up):
        remedy = "is torch built for CUDA (see structlearn doctor on a node)? are GPUs asked for in another way here, "
        remedy += "through resources.sbatch: {gres: 'gpu:2'} or {gpus-per-node: 2}?"
        return [Finding("gpus", "fail", says, remedy)]
    if wanted and any(len(task["devices"]) > wanted for task in up):
        remedy = "the nodes do not hide other jobs' devices: ask the staff about ConstrainDevices"
        return [Finding("gpus", "warn", f"{says}: more than the {wanted} that each has asked for", remedy)]
    seen = [(task["node"], device) for task in up for _, device in task["devices"] if device]
    if wanted and len(set(seen)) < len(seen):
        remedy = "srun does not bind them here: ask the staff about gres.conf and cgroups"
        return [Finding("gpus", "fail", f"{says}: the ranks share a device", remedy)]
    return [Finding("gpus", "ok", says)]


def _sees(task: Mapping[str, Any]) -> str:
    names = ", ".join(str(name) for name, _ in task["devices"])
    visible = task["cuda"] if task["cuda"] is not None else "not set"
    count = len(task["devices"])
    return f"rank {task['rank']}: {count} device(s){f' ({names})' if names else ''}, CUDA_VISIBLE_DEVICES {visible}"


def told(output: str) -> list[dict[str, Any]]:
    """What each rank has said, in one piece, in the order of the ranks."""
    found: dict[str, dict[str, Any]] = {}
    for line in output.splitlines():
        try:
            words = json.loads(line)
        except ValueError:
            continue
        if isinstance(words, dict) and "task" in words:
            found.setdefault(str(words["task"]), {}).update(words)
    return [found[task] for task in sorted(found)]
