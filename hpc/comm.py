"""How ranks meet. The only file that imports mpi4py, and only inside a function: the import starts MPI."""

from hpc.alone import Alone
from hpc.communicator import Communicator
from hpc.config.launcher import broken, promise
from hpc.errors import ConfigError
from hpc.mpi import Mpi
from hpc.watchdog import Watchdog


def connect(deadline_s: float, reason: str = "", kind: type[Mpi] | None = None) -> Communicator:
    """The communicator of this process: alone, or the ranks that its launcher started.

    MPI's own start waits for every rank, in C, where no Python code runs: a watchdog ends this process, with a
    message, if another never comes.

    Args:
        deadline_s: longest wait for another rank.
        reason: what to say before, if they do not come: a rank that meets the others only to end them has one.
        kind: of communicator, where there are other ranks; None: Mpi.

    Raises:
        ConfigError: MPI found another number of ranks than the launcher promised, or mpi4py is not there.
    """
    made = promise()
    if made is None or made.ranks == 1:
        return Alone()
    who = f"rank {made.rank}: " if made.rank is not None else ""
    alone = (
        f"{reason}structlearn: {who}waited {deadline_s:g} s for the other ranks to start MPI (compute.deadline_s), but "
        f"not all {made.ranks} came; look for another rank's message, and run the same command again\n"
    )
    with Watchdog(deadline_s, alone):
        try:
            from mpi4py import MPI
        except (ImportError, RuntimeError) as error:
            raise ConfigError(
                f"{made.variable}={made.ranks}: started as one of {made.ranks} ranks, but MPI cannot be loaded "
                f"({error}); install an MPI library, for example with pip install 'structlearn[mpich]'"
            ) from None
        if made.ranks != MPI.COMM_WORLD.size:
            raise broken(made, MPI.COMM_WORLD.size)
        return (kind or Mpi)(MPI, MPI.COMM_WORLD.Dup(), deadline_s)
