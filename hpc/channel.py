"""Messages between ranks that wait for nobody."""

from __future__ import annotations  # torch is only named here: ranks meet before anybody takes seconds to load it

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hpc.communicator import Buffer


_LOOKS = 4
"""MPICH takes in one packet a call, and finds a message one call later: it was seen in the second to fourth call (MPICH
5.0.2), in the second with Open MPI 5.0.11. More calls cost some 0.3 us each, a wake of the thread up to 250."""


class _Flight:
    def __init__(self, request: Any, *buffers: Buffer) -> None:
        self._request, self._buffers = request, buffers  # MPI reads and writes them until it is done

    def done(self) -> bool:
        return bool(self._request.Test())

    def cancel(self) -> None:
        self._request.Cancel()
        self._request.Wait()


class _Receive:
    """A receive from whoever sends: a message is looked for first, and received by its name.

    Not a receive posted from any source: between machines MPICH 5.0.2 over UCX loses messages that are received so
    (2 or 3 of 1,000 came; experiments/gossip_chaos). It also leaves nothing to be cancelled.
    """

    def __init__(self, mpi: Any, comm: Any, into: Buffer) -> None:
        self._mpi, self._comm, self._into = mpi, comm, into
        self._request: Any = None
        self._sender: int | None = None

    def done(self) -> bool:
        if self._request is None:
            status = self._mpi.Status()
            for _ in range(_LOOKS):
                if (message := self._comm.Improbe(self._mpi.ANY_SOURCE, status=status)) is not None:
                    break
            else:
                return False
            self._sender = status.Get_source()
            self._request = message.Irecv(self._into)
        return bool(self._request.Test())

    def sender(self) -> int | None:
        return self._sender

    def cancel(self) -> None:
        assert self._request is None, "a message is under way that nobody waits for"


class MpiChannel:
    """Messages on an MPI communicator that nothing else uses.

    Args:
        mpi: the module.
        comm: the communicator.
    """

    def __init__(self, mpi: Any, comm: Any) -> None:
        self._mpi, self._comm = mpi, comm

    def send(self, message: Buffer, to: int) -> _Flight:
        """MPI reads the message until it has left."""
        return _Flight(self._comm.Isend(message, to), message)

    def receive(self, into: Buffer) -> _Receive:
        """From anybody."""
        return _Receive(self._mpi, self._comm, into)

    def sum_(self, values: Buffer) -> _Flight:
        """In place."""
        return _Flight(self._comm.Iallreduce(self._mpi.IN_PLACE, values), values)

    def expect(self, sent: Buffer, expected: Buffer) -> _Flight:
        """A sum of what all sent, of which each rank gets its own place."""
        return _Flight(self._comm.Ireduce_scatter_block(sent, expected), sent, expected)

    def barrier(self) -> _Flight:
        """Nobody waits in it: it is asked for."""
        return _Flight(self._comm.Ibarrier())
