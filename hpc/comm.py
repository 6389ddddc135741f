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
import math
import os
import sys
import time
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from hpc.config.launcher import broken, promise
from hpc.errors import ConfigError, RankTimeoutError
from hpc.watchdog import Watchdog

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import torch

    Buffer = np.ndarray[Any, np.dtype[Any]]

_MEANS = 2**14  # so many means have tags of their own: MPI promises 2^15 tags, and a mean takes two
_YIELD_S = 1.0  # poll without sleeping for so long: big messages make progress only inside these polls
_SLEEP_S, _NAP_S = 1e-3, 2e-4  # between two polls after that; from the start where ranks share cores
_CORES = 4096  # more than any node has


class Pending(Protocol):
    """An operation under way."""

    def wait(self) -> int:
        """Wait for it and return its result."""
        ...


class Mean(Protocol):
    """A mean under way."""

    def done(self) -> bool:
        """Is it there? Asking moves it on."""
        ...

    def wait(self) -> None:
        """Wait until it is there."""
        ...


class Flight(Protocol):
    """A message or a collective under way. Nothing moves unless somebody asks."""

    def done(self) -> bool:
        """Has it arrived? Asking moves it on."""
        ...

    def cancel(self) -> None:
        """Give up a receive that nothing was sent for."""
        ...


class Arrival(Flight, Protocol):
    """A receive under way."""

    def begun(self) -> bool:
        """Has a message been found that comes into it?"""
        ...


class Channel(Protocol):
    """Messages between ranks that wait for nobody, on a communicator of their own.

    Buffers are contiguous numpy arrays, and belong to MPI until the flight is done. One thread at a time.
    """

    def send(self, message: Buffer, to: int) -> Flight:
        """Send bytes to a rank."""
        ...

    def receive(self, into: Buffer) -> Arrival:
        """Receive a message of at most so many bytes from whoever sends one."""
        ...

    def sum_(self, values: Buffer) -> Flight:
        """Replace values by their sums over ranks. Collective, in the order of calls."""
        ...

    def expect(self, sent: Buffer, expected: Buffer) -> Flight:
        """Each rank says how much it sent to each; one number comes back: how much was sent here. Collective."""
        ...

    def barrier(self) -> Flight:
        """Done when every rank has called it. Collective."""
        ...


class Communicator(Protocol):
    """The ranks of one run. All methods but ``abort`` and ``lost`` are collective: all call them in one order."""

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

    def start_mean(self, values: torch.Tensor, what: str) -> Mean:
        """Start to replace a contiguous CPU tensor by its mean over ranks, bit-identical on all of them.

        The values belong to MPI until the mean is there. They are added in the order of ranks. 16-bit values are added
        and divided in float32, and rounded once; what is infinite then, or was, comes back as nan.
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

    def channel(self) -> Channel:
        """Messages apart from all others."""
        ...

    def lost(self, error: BaseException) -> bool:
        """Does this error say that another rank, or the way to it, is gone?"""
        ...

    def agree(self, what: str, *, fine: bool) -> bool:
        """Is everything fine on every rank? A meeting that holds, and is answered alike, even if ranks are lost."""
        ...

    def abort(self, code: int) -> None:
        """End every rank at once with an exit code. Does not return where there are other ranks."""
        ...


class _Done:
    def __init__(self, value: int) -> None:
        self._value = value

    def wait(self) -> int:
        return self._value


class _Ready:
    def done(self) -> bool:
        return True

    def wait(self) -> None:
        pass


class Alone:
    """The one-process communicator: everything runs without MPI."""

    rank, size, local_rank, local_size = 0, 1, 0, 1
    vendor = "none"

    def sum_(self, values: torch.Tensor, what: str) -> None:
        """The sum over one rank is the value."""

    def start_mean(self, values: torch.Tensor, what: str) -> Mean:
        """The sum, at once, and divided."""
        self.sum_(values, what)
        values.div_(self.size)
        return _Ready()

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

    def channel(self) -> Channel:
        """There is nobody to send messages to."""
        raise NotImplementedError("one process has no channel")

    def lost(self, error: BaseException) -> bool:
        """There is nobody to lose."""
        return False

    def agree(self, what: str, *, fine: bool) -> bool:
        """What this process says."""
        return fine

    def abort(self, code: int) -> None:
        """Nobody to end, and the caller leaves by itself, unless others wait for this rank in MPI's start.

        Open MPI's launcher ends them when one leaves with a number, MPICH's (Hydra) only when it is asked, in the
        words of PMI 1; it then ends this process as well.
        """
        if "PMI_FD" in os.environ and "MPI_LOCALRANKID" in os.environ and os.environ.get("PMI_SIZE") != "1":
            time.sleep(1.0)  # it hands on what this rank has just said only while it has not been asked
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
        cores = np.zeros(_CORES, np.uint8)
        cores[sorted(os.sched_getaffinity(0)) if sys.platform == "linux" else range(os.cpu_count() or 1)] = 1
        node.Allreduce(MPI.IN_PLACE, cores, MPI.MAX)
        self._crowded = int(cores.sum()) < self.local_size
        """Do ranks share cores? One that polls without sleeping then takes the time of those that it waits for."""
        node.Free()
        self.vendor = MPI.Get_library_version().split("\n")[0].strip("\x00 ").replace("\t", " ")
        self._means = 0
        self._spare: dict[tuple[torch.dtype, int], list[torch.Tensor]] = {}

    def sum_(self, values: torch.Tensor, what: str) -> None:
        """In place: the extra copy of the other form costs half as much again."""
        self._wait(self._comm.Iallreduce(self._mpi.IN_PLACE, values.numpy()), what)

    def start_mean(self, values: torch.Tensor, what: str) -> Mean:
        """Tags tell means apart: a rank may be two further than another."""
        if self._mpi.Query_thread() < self._mpi.THREAD_SERIALIZED and not self._mpi.Is_thread_main():
            raise ConfigError(
                "exchange.name: sync needs an MPI library that lets any thread call it (MPI_THREAD_SERIALIZED) where "
                "there are CUDA devices: torch computes gradients in threads of its own; use exchange.name: persyn"
            )
        tag = 2 * self._means
        self._means = (self._means + 1) % _MEANS
        spare = self._spare.setdefault((values.dtype, len(values)), [])
        return _Mean(lambda requests: self._wait(requests, what), self._mpi, self._comm, values, tag, spare)

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
        return _MpiChannel(self._mpi, self._copy())

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


class _Mean:
    """Each rank averages one piece of everybody's values, and hands it to all.

    Messages between pairs do it: as many bytes travel as in the best allreduce, and each element is added by one rank
    alone, in the order of ranks. Iallreduce was the alternative. It takes fresh memory in every call, and the division
    is one more pass over all values instead of over 1/W of them (2 ranks, in place, without the division: MPICH 5.0,
    20M floats 36 ms against 18, 5M 4.3 against 3.5, 262,144 0.19 against 0.28; Open MPI 5.0 on a busy machine 458
    against 109, 36 against 14, 7.0 against 3.3). MPI cannot add bfloat16, and would round each partial sum of float16.

    Args:
        wait: waits for requests, with the deadline.
        mpi: the module.
        comm: its communicator.
        values: what is averaged.
        tag: of its messages; the next number is its own, too.
        spare: buffers for means of this size. One is taken, and given back: fresh memory costs as much as the message.
    """

    def __init__(
        self,
        wait: Callable[[Any], None],
        mpi: Any,
        comm: Any,
        values: torch.Tensor,
        tag: int,
        spare: list[torch.Tensor],
    ) -> None:
        self._wait, self._mpi, self._comm, self._tag, self._spare = wait, mpi, comm, tag, spare
        size, self._rank = int(comm.size), int(comm.rank)
        counts = [len(values) // size + (rank < len(values) % size) for rank in range(size)]
        self._pieces = list(values.split(counts))
        self._room = spare.pop() if spare else values.new_empty((size, counts[0]))
        self._mine = [row[: counts[self._rank]] for row in self._room]
        """What each rank has for the piece of this one."""
        self._mine[self._rank] = self._pieces[self._rank]
        self._added = False
        self._requests = self._swap(tag, self._mine, self._pieces)

    def done(self) -> bool:
        while self._requests and self._mpi.Request.Testall(self._requests):
            self._advance()
        return not self._requests

    def wait(self) -> None:
        while self._requests:
            self._wait(_All(self._mpi, self._requests))
            self._advance()

    def _advance(self) -> None:
        if self._added:
            self._spare.append(self._room)
            self._requests = []
            return
        import torch

        own, narrow = self._pieces[self._rank], self._room.element_size() == 2
        total = self._mine[0].float() if narrow else self._mine[0]
        for theirs in self._mine[1:]:
            total += theirs
        torch.div(total, len(self._mine), out=own)
        if narrow:  # an infinite weight can hide behind a ReLU, one that is no number cannot
            own.nan_to_num_(math.nan, math.nan, math.nan)
        self._added = True
        self._requests = self._swap(self._tag + 1, self._pieces, [own] * len(self._pieces))

    def _swap(self, tag: int, into: Sequence[torch.Tensor], out: Sequence[torch.Tensor]) -> list[Any]:
        """Start to receive something from every other rank, and to send it something: the next rank first."""
        others = [(self._rank + step) % len(out) for step in range(1, len(out))]
        receives = [self._comm.Irecv(_bytes(into[rank]), rank, tag) for rank in reversed(others)]
        return receives + [self._comm.Isend(_bytes(out[rank]), rank, tag) for rank in others]


class _All:
    """Several requests as one."""

    def __init__(self, mpi: Any, requests: list[Any]) -> None:
        self._mpi, self._requests = mpi, requests

    def Test(self) -> bool:  # noqa: N802 - as MPI's own
        return bool(self._mpi.Request.Testall(self._requests))


def _bytes(values: torch.Tensor) -> Buffer:
    """Values as bytes: MPI moves them and need not know what they are, numpy does not know bfloat16."""
    import torch

    return values.view(torch.uint8).numpy()


class _MpiFlight:
    def __init__(self, request: Any, *buffers: Buffer) -> None:
        self._request, self._buffers = request, buffers  # MPI reads and writes them until it is done

    def done(self) -> bool:
        return bool(self._request.Test())

    def cancel(self) -> None:
        self._request.Cancel()
        self._request.Wait()


class _MpiReceive:
    """A receive from whoever sends: a message is looked for first, and received by its name.

    Not a receive posted from any source: between machines MPICH 5.0.2 over UCX loses messages that are received so
    (2 or 3 of 1,000 came; experiments/gossip_chaos). It also leaves nothing to be cancelled.
    """

    def __init__(self, comm: Any, anybody: int, into: Buffer) -> None:
        self._comm, self._anybody, self._into = comm, anybody, into
        self._request: Any = None

    def done(self) -> bool:
        if self._request is None:
            message = self._comm.Improbe(self._anybody)
            if message is None:
                return False
            self._request = message.Irecv(self._into)
        return bool(self._request.Test())

    def begun(self) -> bool:
        return self._request is not None

    def cancel(self) -> None:
        assert self._request is None, "a message is under way that nobody waits for"


class _MpiChannel:
    def __init__(self, mpi: Any, comm: Any) -> None:
        self._mpi, self._comm = mpi, comm

    def send(self, message: Buffer, to: int) -> _MpiFlight:
        return _MpiFlight(self._comm.Isend(message, to), message)

    def receive(self, into: Buffer) -> _MpiReceive:
        return _MpiReceive(self._comm, self._mpi.ANY_SOURCE, into)

    def sum_(self, values: Buffer) -> _MpiFlight:
        return _MpiFlight(self._comm.Iallreduce(self._mpi.IN_PLACE, values), values)

    def expect(self, sent: Buffer, expected: Buffer) -> _MpiFlight:
        return _MpiFlight(self._comm.Ireduce_scatter_block(sent, expected), sent, expected)

    def barrier(self) -> _MpiFlight:
        return _MpiFlight(self._comm.Ibarrier())


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
        return (kind or Mpi)(MPI.COMM_WORLD.Dup(), deadline_s)
