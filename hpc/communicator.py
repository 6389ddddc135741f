"""The contract of talk between ranks."""

from __future__ import annotations  # torch is only named here: ranks meet before anybody takes seconds to load it

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import numpy as np
    import torch

    Buffer = np.ndarray[Any, np.dtype[Any]]


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

    def sender(self) -> int | None:
        """The rank whose message comes into it; None while none has been found."""
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
    """The ranks of one run.

    All methods but ``abort``, ``lost``, ``takes`` and ``cuda_aware`` are collective: all call them in one order.
    """

    rank: int
    size: int
    local_rank: int
    local_size: int
    vendor: str
    device_pointers: bool
    """May sums and means be of CUDA tensors? No, until :mod:`hpc.pointers` has tried it."""

    def cuda_aware(self) -> bool:
        """Does the MPI library say that it takes memory of CUDA devices?"""
        ...

    def takes(self, device: torch.device) -> bool:
        """May sums and means be of tensors there? Else they go through the host."""
        ...

    def sum_(self, values: torch.Tensor, what: str) -> None:
        """Replace a contiguous tensor by its sum over ranks, bit-identical on all of them.

        It lies on a device that :meth:`takes` says, and whatever writes it there has finished.
        ``what`` names the operation in the error of a rank that waits in vain.
        """
        ...

    def start_mean(self, values: torch.Tensor, what: str) -> Mean:
        """Start to replace a contiguous tensor by its mean over ranks, bit-identical on all of them.

        It lies on a device that :meth:`takes` says, and whatever writes it there has finished.
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

    def leave(self) -> None:
        """Nothing but the end of this process comes, in which it meets the others once more: with a deadline."""
        ...

    def abort(self, code: int) -> None:
        """End every rank at once with an exit code. Does not return where there are other ranks."""
        ...
