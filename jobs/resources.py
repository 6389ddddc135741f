"""What a sweep's runs need of a machine: the section ``resources`` of a sweep file."""

from typing import Annotated

from pydantic import Field

from hpc.config.types import Count, Natural, Positive, Text, section


@section
class Resources:
    """For each run of the sweep."""

    ranks: Count = 1
    """MPI ranks of a run; each has a device."""
    nodes: Count = 1
    """Nodes that the ranks of a run are spread over, equally many on each."""
    cpus_per_rank: Count = 1
    """CPU cores of each rank."""
    gpus_per_rank: Natural = 0
    """GPUs of each rank; with one, each rank sees its own and no other."""
    mem_gb: Positive | None = None
    """Memory on each node; null: what the site gives."""
    timeout_min: Count = 60
    """Minutes after which a run is told to stop; it goes on in another job, as often as it takes."""
    signal_s: Count = 120
    """Seconds before the end of its time, or before it is preempted, that a run is told so: enough for a step and a
    checkpoint."""
    parallel: Count = 256
    """Jobs of one array that go on at the same time, at most."""
    pack: Count = 1
    """Runs that one job makes, one after the other: for runs of a minute, where the queue would take longer."""
    partition: Text | None = None
    """SLURM's partition; null: the site's default."""
    account: Text | None = None
    """SLURM's account."""
    qos: Text | None = None
    """SLURM's quality of service."""
    constraint: Text | None = None
    """Features that nodes must have."""
    mpi: Text | None = None
    """srun's --mpi: pmi2, pmix, cray_shasta, ...; null: pmi2 for MPICH, pmix for Open MPI, by the library that mpi4py
    has here."""
    setup: tuple[Text, ...] = ()
    """Lines of shell before the ranks start, such as module load ..."""
    sbatch: Annotated[dict[str, str | int | bool], Field()] = Field(default_factory=dict)
    """Further options of sbatch, by their long names without dashes; true: an option without a value."""
