"""What a sweep's runs need of a machine: the section ``resources`` of a sweep file."""

from typing import Annotated, Final

from pydantic import Field

from hpc.config.types import Count, Natural, Positive, Text, section

_OWN: Final = "structlearn sets it; leave it out"
OURS: Final = {
    "time": "set resources.timeout_min", "nodes": "set resources.nodes", "ntasks": "set resources.ranks",
    "ntasks-per-node": "set resources.ranks and resources.nodes", "cpus-per-task": "set resources.cpus_per_rank",
    "mem": "set resources.mem_gb", "partition": "set resources.partition", "account": "set resources.account",
    "qos": "set resources.qos", "constraint": "set resources.constraint",
    "gpus-per-task": "set resources.gpus_per_rank",
    "array": _OWN, "signal": _OWN, "output": _OWN, "error": _OWN, "job-name": _OWN, "open-mode": _OWN,
    "parsable": _OWN, "wait": _OWN, "test-only": "use structlearn submit --dry-run",
    "export": "ranks need the environment of submit; leave it out",
}  # fmt: skip
"""Options of sbatch that are not to be given a second time, and what to do instead."""


@section
class Resources:
    """For each run of the sweep. With --cluster debug only `ranks` counts: runs are made here, one after the other."""

    ranks: Count = 1
    """MPI ranks of a run; each has a device."""
    nodes: Count = 1
    """Nodes that the ranks of a run are spread over, equally many on each. With --cluster local all are on this
    machine."""
    cpus_per_rank: Count = 1
    """CPU cores of each rank, and so its threads."""
    gpus_per_rank: Natural = 0
    """GPUs of each rank; with one, each rank sees its own and no other."""
    mem_gb: Positive | None = None
    """SLURM's: memory on each node; null: what the site gives."""
    timeout_min: Count = 60
    """SLURM's: minutes that a job has. A run that is not done by then is told to stop, and goes on in another job, as
    often as it takes. With --cluster local there is no limit."""
    signal_s: Count = 120
    """SLURM's: seconds before the end of its time, or before it is preempted, that a run is told so: enough for a step
    and a checkpoint."""
    parallel: Count = 256
    """Jobs of one array that go on at the same time, at most. Runs with other resources, and what goes beyond SLURM's
    largest array, are arrays of their own. With --cluster local also no more than this machine has CPU cores and GPUs
    for, whatever else was submitted here."""
    pack: Count = 1
    """Runs that one job makes, one after the other: for runs of a minute, where the queue would take longer."""
    partition: Text | None = None
    """SLURM's partition; null: the site's default."""
    account: Text | None = None
    """SLURM's account."""
    qos: Text | None = None
    """SLURM's quality of service."""
    constraint: Text | None = None
    """SLURM's: features that nodes must have."""
    mpi: Text | None = None
    """srun's --mpi: pmi2, pmix, cray_shasta, ...; null: pmi2 for MPICH, pmix for Open MPI, by the library that mpi4py
    has here."""
    setup: tuple[Text, ...] = ()
    """SLURM's: lines of shell before the ranks start, such as module load ..."""
    sbatch: Annotated[dict[str, str | int | bool], Field()] = Field(default_factory=dict)
    """SLURM's: further options of sbatch, by their long names without dashes; true: an option without a value."""

    def problems(self) -> list[str]:
        """What does not go together in it."""
        found = []
        if self.ranks % self.nodes:
            found.append(
                f"resources.nodes: got {self.nodes}, but {self.ranks} rank(s) cannot be spread evenly over them"
            )
        if self.signal_s >= 60 * self.timeout_min:
            found.append(
                f"resources.signal_s: got {self.signal_s}, but jobs have {60 * self.timeout_min} s "
                f"(resources.timeout_min), so they would be told to stop as they begin; give it less"
            )
        for key in self.sbatch:
            if key.lstrip("-") != key or not key:
                found.append(f"resources.sbatch: got {key!r}; options are named without dashes, as in exclusive: true")
            elif key.replace("_", "-") in OURS:
                found.append(f"resources.sbatch.{key}: {OURS[key.replace('_', '-')]}")
        return found
