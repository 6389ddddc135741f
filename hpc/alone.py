"""One process, without MPI."""

from __future__ import annotations  # torch is only named here: ranks meet before anybody takes seconds to load it

import contextlib
import json
import os
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from hpc.communicator import Channel, Mean, Pending


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
    device_pointers = False

    def cuda_aware(self) -> bool:
        """There is no MPI library to say so."""
        return False

    def takes(self, device: torch.device) -> bool:
        """As where there are others and nothing has been tried."""
        return device.type == "cpu"

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

    def leave(self) -> None:
        """Nobody to meet."""

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
