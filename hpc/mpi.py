"""Many ranks, over MPI.

Every wait has a deadline. Collectives are started non-blocking and polled: on shared memory this costs what
the blocking call costs (measured with MPICH 5.0, 2 ranks: in-place sum of 1.8M floats 1.9 ms against 1.7 ms,
of 20M floats 30.8 ms against 30.7 ms), Python's signal handlers run while waiting, and a rank that never comes
becomes an error instead of a hang. A watchdog thread around blocking calls was the alternative; it can only
kill the process, and it cannot say what it was waiting for as simply.
"""

from __future__ import annotations  # torch is only named here: ranks meet before anybody takes seconds to load it

import json
import math
import os
import signal
import sys
import time
from typing import TYPE_CHECKING, Any

import numpy as np

from hpc.channel import MpiChannel
from hpc.config.devices import cuda_aware
from hpc.errors import ConfigError, RankTimeoutError
from hpc.mean import MpiMean

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

    from hpc.communicator import Channel, Mean, Pending

_MEANS = 2**14  # so many means have tags of their own: MPI promises 2^15 tags, and a mean takes two
_YIELD_S = 1.0  # poll without sleeping for so long: big messages make progress only inside these polls
_SLEEP_S, _NAP_S = 1e-3, 2e-4  # between two polls after that; from the start where ranks share cores
_CORES = 4096  # more than any node has
_LEAVING_S = 30  # the end of torch takes seconds on a busy machine
_HEARD_S = 0.2
_LONGEST_S = 2**31 - 1  # no alarm can be later


class Mpi:
    """The ranks of an MPI communicator.

    Args:
        mpi: the module, loaded by :func:`hpc.comm.connect`.
        comm: its communicator.
        deadline_s: longest wait for another rank.
    """

    def __init__(self, mpi: Any, comm: Any, deadline_s: float) -> None:
        self._mpi, self._comm, self._deadline_s = mpi, comm, deadline_s
        self.rank, self.size = int(comm.rank), int(comm.size)
        node = comm.Split_type(mpi.COMM_TYPE_SHARED)
        self.local_rank, self.local_size = int(node.rank), int(node.size)
        cores = np.zeros(_CORES, np.uint8)
        cores[sorted(os.sched_getaffinity(0)) if sys.platform == "linux" else range(os.cpu_count() or 1)] = 1
        node.Allreduce(mpi.IN_PLACE, cores, mpi.MAX)
        self._crowded = int(cores.sum()) < self.local_size
        """Do ranks share cores? One that polls without sleeping then takes the time of those that it waits for."""
        node.Free()
        self.vendor = mpi.Get_library_version().split("\n")[0].strip("\x00 ").replace("\t", " ")
        self.device_pointers = False
        self._stream: torch.cuda.Stream | None = None
        self._means = 0
        self._spare: dict[tuple[torch.dtype, int], list[torch.Tensor]] = {}

    def cuda_aware(self) -> bool:
        """What the library says that mpi4py was loaded with."""
        return cuda_aware(self._mpi.__file__)

    def takes(self, device: torch.device) -> bool:
        """Host memory always."""
        return device.type == "cpu" or self.device_pointers

    def sum_(self, values: torch.Tensor, what: str) -> None:
        """In place: the extra copy of the other form costs half as much again.

        Values on a CUDA device go the way of means, and are added by torch: Open MPI's Iallreduce, and whatever else
        adds without blocking, crashes there, though the library says that it takes such memory (its issue 9845).
        """
        if values.is_cuda:
            self._start(values, what, 1).wait()
            return
        self._wait(self._comm.Iallreduce(self._mpi.IN_PLACE, values.numpy()), what)

    def start_mean(self, values: torch.Tensor, what: str) -> Mean:
        """Tags tell means apart: a rank may be two further than another."""
        if self._mpi.Query_thread() < self._mpi.THREAD_SERIALIZED and not self._mpi.Is_thread_main():
            raise ConfigError(
                "exchange.name: sync needs an MPI library that lets any thread call it (MPI_THREAD_SERIALIZED) where "
                "there are CUDA devices: torch computes gradients in threads of its own; use exchange.name: persyn"
            )
        return self._start(values, what, self.size)

    def _start(self, values: torch.Tensor, what: str, divisor: int) -> MpiMean:
        tag = 2 * self._means
        self._means = (self._means + 1) % _MEANS

        def wait(request: Any) -> None:
            self._wait(request, what)

        if not values.is_cuda:
            spare = self._spare.setdefault((values.dtype, len(values)), [])
            return MpiMean(wait, self._mpi, self._comm, values, divisor, tag, spare)
        if self._stream is None:  # of its own: on one that backward's kernels go to, the sums would wait for them
            import torch

            self._stream = torch.cuda.Stream(values.device)
        return MpiMean(wait, self._mpi, self._comm, values, divisor, tag, [], self._stream)

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

    def channel(self) -> Channel:
        """A duplicate of the communicator: its messages are told apart from collectives of the same ranks."""
        if self._mpi.Query_thread() < self._mpi.THREAD_SERIALIZED:
            raise ConfigError(
                "exchange.progress: thread needs an MPI library that lets any thread call it "
                "(MPI_THREAD_SERIALIZED); use exchange.progress: inline"
            )
        return MpiChannel(self._mpi, self._copy())

    def _copy(self) -> Any:
        copy, request = self._comm.Idup()
        self._wait(request, "open a channel")
        return copy

    def agree(self, what: str, *, fine: bool) -> bool:
        """Whoever is not fine ends all ranks: those who meet are fine."""
        self.barrier(what)
        return fine

    def lost(self, error: BaseException) -> bool:
        """What MPI cannot name is trouble with the other side: a rank killed while MPICH read its memory, say.

        Errors with a name of their own (a message too long, a wrong argument) are mistakes on this side.
        """
        mpi = self._mpi
        nameless = {mpi.ERR_OTHER, mpi.ERR_INTERN, mpi.ERR_UNKNOWN, mpi.ERR_PROC_FAILED, mpi.ERR_REVOKED}
        return isinstance(error, mpi.Exception) and error.Get_error_class() in nameless

    def leave(self) -> None:
        """MPI's end is a meeting without a deadline, and no loss is noticed in it: the kernel keeps the time.

        A rank that stops, or hangs in the end of torch, would hold all others for ever, though their run is done.
        """
        self._end_within(max(_LEAVING_S, math.ceil(min(self._deadline_s, _LONGEST_S))))

    def _end_within(self, seconds: int) -> None:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(seconds)

    def abort(self, code: int) -> None:
        """MPI_Abort: the launcher ends the other ranks.

        Of the world, not of its copy: over TCP, MPICH 5.0.2 waits in the copy's for ranks that do not answer. Its
        mpiexec ends without reading what this rank has just said, if it has not done so by then.
        """
        time.sleep(_HEARD_S)
        self._mpi.COMM_WORLD.Abort(code)

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
            if waited > _YIELD_S:
                time.sleep(_SLEEP_S)
            elif self._crowded:
                time.sleep(_NAP_S)
            else:
                os.sched_yield()


class _Request:
    def __init__(self, wait: Callable[[], None], buffer: np.ndarray[Any, np.dtype[np.int64]]) -> None:
        self._wait, self._buffer = wait, buffer

    def wait(self) -> int:
        self._wait()
        return int(self._buffer[0])
