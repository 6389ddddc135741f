"""Talk between ranks. The only file that imports mpi4py, and only inside functions: the import starts MPI.

Every wait has a deadline. Collectives are started non-blocking and polled: on shared memory this costs what
the blocking call costs (measured with MPICH 5.0, 2 ranks: in-place sum of 1.8M floats 1.9 ms against 1.7 ms,
of 20M floats 30.8 ms against 30.7 ms), Python's signal handlers run while waiting, and a rank that never comes
becomes an error instead of a hang. A watchdog thread around blocking calls was the alternative; it can only
kill the process, and it cannot say what it was waiting for as simply.
"""

from __future__ import annotations  # torch is only named here: ranks meet before anybody takes seconds to load it

import contextlib
import json
import os
import time
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from hpc.config.launcher import broken, promise
from hpc.errors import ConfigError, RankTimeoutError
from hpc.watchdog import Watchdog

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

_YIELD_S = 1.0  # poll without sleeping for so long: big messages make progress only inside these polls


class Pending(Protocol):
    """An operation under way."""

    def wait(self) -> int:
        """Wait for it and return its result."""
        ...


class Communicator(Protocol):
    """The ranks of one run. All methods but ``abort`` are collective: every rank calls them in one order."""

    rank: int
    size: int
    local_rank: int
    local_size: int
    vendor: str

    def sum_(self, values: torch.Tensor, what: str) -> None:
        """Replace a contiguous CPU tensor by its sum over ranks, bit-identical on all of them.

        ``what`` names the operation in the error of a rank that waits in vain.
        """
        ...

    def broadcast_(self, values: torch.Tensor, what: str, root: int = 0) -> None:
        """Replace a contiguous CPU tensor by rank ``root``'s."""
        ...

    def start_max(self, value: int, what: str) -> Pending:
        """Start to find the largest of every rank's value; returns at once."""
        ...

    def gather(self, value: Any, what: str) -> list[Any]:
        """Every rank's value (anything JSON can hold), in the order of ranks, on all ranks."""
        ...

    def barrier(self, what: str) -> None:
        """Wait until every rank is here."""
        ...

    def abort(self, code: int) -> None:
        """End every rank at once with an exit code. Does not return where there are other ranks."""
        ...


class _Done:
    def __init__(self, value: int) -> None:
        self._value = value

    def wait(self) -> int:
        return self._value


class Alone:
    """The one-process communicator: everything runs without MPI."""

    rank, size, local_rank, local_size = 0, 1, 0, 1
    vendor = "none"

    def sum_(self, values: torch.Tensor, what: str) -> None:
        """The sum over one rank is the value."""

    def broadcast_(self, values: torch.Tensor, what: str, root: int = 0) -> None:
        """There is nobody to tell."""

    def start_max(self, value: int, what: str) -> Pending:
        """The value itself."""
        return _Done(value)

    def gather(self, value: Any, what: str) -> list[Any]:
        """One value, as it looks after a journey (tuples become lists)."""
        return [json.loads(json.dumps(value))]

    def barrier(self, what: str) -> None:
        """Nobody to wait for."""

    def abort(self, code: int) -> None:
        """Nobody to end, and the caller leaves by itself, unless others wait for this rank in MPI's start.

        Open MPI's launcher ends them when one leaves with a number, MPICH's (Hydra) only when it is asked, in the
        words of PMI 1; it then ends this process as well.
        """
        if "PMI_FD" in os.environ and "MPI_LOCALRANKID" in os.environ and os.environ.get("PMI_SIZE") != "1":
            with contextlib.suppress(OSError):
                os.write(int(os.environ["PMI_FD"]), f"cmd=abort exitcode={code}\n".encode())
                time.sleep(10)


class Mpi:
    """The ranks of an MPI communicator."""

    def __init__(self, comm: Any, deadline_s: float) -> None:
        from mpi4py import MPI

        self._mpi, self._comm, self._deadline_s = MPI, comm, deadline_s
        self.rank, self.size = int(comm.rank), int(comm.size)
        node = comm.Split_type(MPI.COMM_TYPE_SHARED)
        self.local_rank, self.local_size = int(node.rank), int(node.size)
        node.Free()
        self.vendor = MPI.Get_library_version().split("\n")[0].strip("\x00 ").replace("\t", " ")

    def sum_(self, values: torch.Tensor, what: str) -> None:
        """In place: the extra copy of the other form costs half as much again."""
        self._wait(self._comm.Iallreduce(self._mpi.IN_PLACE, values.numpy()), what)

    def broadcast_(self, values: torch.Tensor, what: str, root: int = 0) -> None:
        """Bytes travel as they are."""
        self._wait(self._comm.Ibcast(values.numpy(), root), what)

    def start_max(self, value: int, what: str) -> Pending:
        """The request and its buffer live until the result is asked for."""
        buffer = np.array([value], np.int64)
        request = self._comm.Iallreduce(self._mpi.IN_PLACE, buffer, self._mpi.MAX)
        return _Request(lambda: self._wait(request, what), buffer)

    def gather(self, value: Any, what: str) -> list[Any]:
        """JSON text, lengths first: mpi4py's own way pickles, and it blocks without a deadline."""
        text = np.frombuffer(json.dumps(value).encode(), np.uint8)
        lengths = np.zeros(self.size, np.int64)
        self._wait(self._comm.Iallgather(np.array([text.size], np.int64), lengths), what)
        everything = np.zeros(int(lengths.sum()), np.uint8)
        counts = [int(length) for length in lengths]
        self._wait(self._comm.Iallgatherv(text, [everything, counts]), what)
        parts = np.split(everything, np.cumsum(counts)[:-1])
        return [json.loads(part.tobytes()) for part in parts]

    def barrier(self, what: str) -> None:
        """A barrier with a deadline."""
        self._wait(self._comm.Ibarrier(), what)

    def abort(self, code: int) -> None:
        """MPI_Abort: the launcher ends the other ranks."""
        self._comm.Abort(code)

    def _wait(self, request: Any, what: str) -> None:
        if request.Test():
            return
        start = time.monotonic()
        while not request.Test():
            waited = time.monotonic() - start
            if waited > self._deadline_s:
                raise RankTimeoutError(
                    f"waited {waited:.0f} s for another rank in: {what} (compute.deadline_s: "
                    f"{self._deadline_s:g}; raise it if steps can take that long)"
                )
            if waited < _YIELD_S:
                os.sched_yield()
            else:
                time.sleep(1e-3)


class _Request:
    def __init__(self, wait: Callable[[], None], buffer: np.ndarray[Any, np.dtype[np.int64]]) -> None:
        self._wait, self._buffer = wait, buffer

    def wait(self) -> int:
        self._wait()
        return int(self._buffer[0])


def connect(deadline_s: float, reason: str = "") -> Communicator:
    """The communicator of this process: alone, or the ranks that its launcher started.

    MPI's own start waits for every rank, in C, where no Python code runs: a watchdog ends this process, with a
    message, if another never comes.

    Args:
        deadline_s: longest wait for another rank.
        reason: what to say before, if they do not come: a rank that meets the others only to end them has one.

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
        return Mpi(MPI.COMM_WORLD.Dup(), deadline_s)
