"""The device of a rank, and how it computes."""

import os

import torch

from hpc.communicator import Communicator
from hpc.config.devices import cpu_cores
from hpc.config.training import Compute
from hpc.errors import RunError


def choose(config: Compute, comm: Communicator) -> torch.device:
    """This rank's device: the CUDA device of its place on the machine, or the CPU. Collective.

    Raises:
        RunError: there is no device, or two ranks would use one.
    """
    cuda = torch.cuda.is_available() and config.device != "cpu"
    if config.device == "cuda" and not cuda:
        raise RunError("compute.device: got cuda, but torch finds no CUDA device here; use cpu or auto")
    if not cuda:
        device, identity = torch.device("cpu"), f"cpu of rank {comm.rank}"
    else:
        device = torch.device("cuda", comm.local_rank % torch.cuda.device_count())
        identity = str(torch.cuda.get_device_properties(device).uuid)
        torch.cuda.set_device(device)
    # A launcher may show each rank one device of its own, all called cuda:0, or the same one to all of them:
    # only the device's identity tells.
    identities = comm.gather(identity, "compare devices")
    if identities.count(identity) > 1 and not config.share_devices:
        same = [rank for rank, other in enumerate(identities) if other == identity]
        raise RunError(
            f"ranks {same} would all use the CUDA device {identity}; give each rank one (for example "
            f"srun --gpus-per-task=1), start fewer ranks, or set compute.share_devices: true"
        )
    return device


def prepare(config: Compute, comm: Communicator) -> None:
    """Set threads and determinism for this process."""
    threads = config.threads
    if threads is None and "OMP_NUM_THREADS" not in os.environ:
        threads = max(1, cpu_cores() // comm.local_size)
    if threads is not None:
        torch.set_num_threads(threads)
    if config.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS asks for it
        torch.use_deterministic_algorithms(True)
