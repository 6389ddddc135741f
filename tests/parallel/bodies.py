"""Test bodies that hold for any number of ranks: the same body runs on the one-process communicator and on MPI.

mpiexec -n 3 python bodies.py sum_is_over_all_ranks max_is_the_largest
"""

import os
import sys
import time

import pytest
import torch

from hpc.alone import Alone
from hpc.comm import connect
from hpc.communicator import Communicator
from hpc.errors import RankTimeoutError


def sum_is_over_all_ranks(comm: Communicator) -> None:
    for count in (1, 1000, 300_000):
        values = torch.arange(count, dtype=torch.float32) + comm.rank
        comm.sum_(values, "test")
        ranks = comm.size * (comm.size - 1) / 2
        assert torch.equal(values, torch.arange(count, dtype=torch.float32) * comm.size + ranks)


def sum_is_bit_identical_on_all_ranks(comm: Communicator) -> None:
    generator = torch.Generator().manual_seed(comm.rank)
    values = torch.randn(100_003, generator=generator)
    comm.sum_(values, "test")
    digests = comm.gather(values.view(torch.int32).sum(dtype=torch.int64).item(), "test")
    assert len(set(digests)) == 1


def broadcast_comes_from_the_root(comm: Communicator) -> None:
    for root in range(comm.size):
        values = torch.full((7,), float(comm.rank))
        comm.broadcast_(values, "test", root)
        assert torch.equal(values, torch.full((7,), float(root)))


def gather_keeps_order_and_content(comm: Communicator) -> None:
    mine = {"rank": comm.rank, "text": "ä" * comm.rank, "none": None, "list": list(range(comm.rank))}
    everyone = comm.gather(mine, "test")
    assert [value["rank"] for value in everyone] == list(range(comm.size))
    assert everyone[comm.rank] == mine


def max_is_the_largest(comm: Communicator) -> None:
    pending = comm.start_max(comm.rank, "test")
    assert pending.wait() == comm.size - 1


def local_ranks_are_known(comm: Communicator) -> None:
    everyone = comm.gather([comm.local_rank, comm.local_size], "test")
    apart = os.environ.get("MPIR_CVAR_NOLOCAL") == "1" and comm.vendor.startswith("MPICH")  # told that no rank is near
    assert everyone == [[0, 1] if apart else [rank, comm.size] for rank in range(comm.size)]


def what_mpi_cannot_name_is_a_rank_that_is_gone(comm: Communicator) -> None:
    assert not comm.lost(ValueError("something else"))
    if comm.size > 1:
        from mpi4py import MPI

        assert comm.lost(MPI.Exception(MPI.ERR_OTHER))
        assert not comm.lost(MPI.Exception(MPI.ERR_TRUNCATE))


def a_rank_that_never_comes_is_an_error(comm: Communicator) -> None:
    if comm.size == 1:
        comm.barrier("nobody to wait for")
        return
    if comm.rank == 0:
        with pytest.raises(RankTimeoutError, match="the test's barrier"):
            comm.barrier("the test's barrier")
        print("passed", "a_rank_that_never_comes", flush=True)
        comm.abort(0)
    time.sleep(60)  # then comes after all: a rank that still waits fails, for its barrier ends well


BODIES = [body for name, body in list(globals().items()) if getattr(body, "__module__", "") == __name__]

if __name__ == "__main__":
    chosen = [body for body in BODIES if body.__name__ in sys.argv[1:]]
    communicator = connect(deadline_s=10.0 if "never" in sys.argv[1] else 300.0)
    assert not isinstance(communicator, Alone)
    try:
        for body in chosen:
            body(communicator)
            communicator.barrier("end")
            print(f"passed {body.__name__}\n", end="", flush=True)  # in one piece: other ranks write, too
    except BaseException:  # noqa: BLE001 - one rank must end all
        import traceback

        traceback.print_exc()
        sys.stderr.flush()
        communicator.abort(1)
