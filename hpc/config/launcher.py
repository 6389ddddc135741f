"""What started this process: does a launcher promise more ranks than this one?"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from hpc.errors import ConfigError

OUR_LAUNCHER: Final = "STRUCTLEARN_RANKS"
"""Set for ranks that ``structlearn train --ranks N`` started."""


@dataclass(frozen=True)
class Promise:
    """A launcher's word on the number of ranks."""

    variable: str
    """The environment variable that gives it."""
    ranks: int
    rank: int | None
    """Which of them this process is, where the launcher says so."""
    certain: bool = True
    """False where the number may be a SLURM allocation's, seen by a batch script that starts its own ranks."""

    @property
    def binding(self) -> bool:
        """Has a launcher started other ranks, which this one has to join?"""
        return self.certain and self.ranks > 1


# The launcher closest to the process comes first: an mpiexec inside a SLURM job counts, not the job.
_VARIABLES = (
    ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"),
    ("PMI_SIZE", "PMI_RANK"),
    ("SLURM_NTASKS", "SLURM_PROCID"),
)


def promise(environ: Mapping[str, str] = os.environ) -> Promise | None:
    """What the launcher promised, or None where the process was started alone.

    A wrong pairing of launcher and MPI library (srun without ``--mpi=pmi2``, one library's mpiexec with the
    other's wheel) otherwise gives N silent runs of one rank each, all writing the same checkpoint.
    """
    for size_name, rank_name in _VARIABLES:
        if size_name not in environ:
            continue
        size, rank = environ[size_name], environ.get(rank_name, "")
        if not size.isdigit() or int(size) < 1:
            raise ConfigError(f"{size_name}: got {size!r} in the environment, but it is a number of ranks; unset it")
        certain = size_name != "SLURM_NTASKS" or "PMIX_RANK" in environ  # srun --mpi=pmix sets no size of its own
        return Promise(size_name, int(size), int(rank) if rank.isdigit() else None, certain)
    return None


class BrokenPromiseError(ConfigError):
    """MPI found another number of ranks than the launcher promised. Every rank finds this alike."""


def broken(made: Promise, found: int) -> BrokenPromiseError:
    """The error for a promise that was not kept."""
    remedies = {
        "SLURM_NTASKS": "start with srun --mpi=pmi2 (MPICH) or --mpi=pmix (Open MPI), "
        "or with --ranks N to use this machine alone",
        "PMI_SIZE": "use the mpiexec of the MPI library that mpi4py was built for, "
        "or srun with the --mpi plugin of that library",
        "OMPI_COMM_WORLD_SIZE": "use the mpiexec of the MPI library that mpi4py was built for",
    }
    return BrokenPromiseError(
        f"{made.variable}={made.ranks}: the launcher promised {made.ranks} rank(s), but MPI found {found}; "
        f"each would train alone and overwrite the others. To mend it, {remedies[made.variable]} "
        f"(structlearn doctor shows the pairing)"
    )
