"""Device pointers: may MPI be handed values in the memory of a CUDA device?

A library that cannot take them crashes. So it is asked first, and tried only where it says yes on all ranks: the very
calls that training makes, compared with what must come out.

They serve those who wait for a sum (sync, persyn, synchronous easgd, the evaluation of a mean): the way over the host
is a part of that wait. Messages that nobody waits for (gossip, downpour, easgd with a master) stay on it: their copy
runs on a stream beside the training, which it costs nothing, and the header in front of the values, the masses and the
centre are the host's.
"""

from typing import Final

import torch

from hpc.communicator import Communicator
from hpc.config.root import Config
from hpc.config.training import Easgd, PerSyn, Sync
from hpc.errors import RunError
from hpc.flat import FlatBuffer

_COUNTS: Final = (7, 2**22)
"""Numbers in short messages, and in those that libraries send in another way."""
_WHAT: Final = "try device pointers (compute.device_pointers: never does without)"


def choose(config: Config, comm: Communicator, device: torch.device) -> None:
    """Find out whether ``comm`` takes tensors of the ranks' devices; it knows from here on. Collective."""
    asked = config.compute.device_pointers == "auto" and device.type == "cuda" and _waits(config) and comm.cuda_aware()
    if all(comm.gather(asked, "ask whether MPI takes device pointers")):
        comm.device_pointers = all(comm.gather(works(comm, device), "agree on device pointers"))


def _waits(config: Config) -> bool:
    """Does anybody wait for a sum? A library that crashes in the trial must not end a run without any."""
    match config.exchange:
        case Sync() | PerSyn() | Easgd(mode="sync"):
            return True
    return False


def works(comm: Communicator, device: torch.device) -> bool:
    """Do sums and means of tensors there come out right on this rank? Collective.

    A rank on which a call fails is told by the others' deadline, if theirs do not fail, too.
    """
    right = True
    try:
        for count in _COUNTS:
            shared = (torch.arange(count, device=device) % 251).float()
            own, total = shared + comm.rank, shared * comm.size + comm.size * (comm.size - 1) // 2
            buffer = FlatBuffer([own], direct=True)
            values = buffer.pack([own])
            comm.sum_(values, _WHAT)
            right &= torch.equal(values, total)
            values = buffer.pack([own])
            comm.start_mean(values, _WHAT).wait()
            right &= torch.allclose(values, total / comm.size)
    except RunError:  # another rank did not come
        raise
    except Exception:  # noqa: BLE001 - whatever it is, the way over the host is left
        return False
    return right
