"""Test bodies of synchronous training on real ranks: mpiexec -n 3 python sync_bodies.py NAME [NAME ...]."""

import ctypes
import sys
import time
import zlib
from typing import Any

import pytest
import torch
from torch import nn

from hpc import mean
from hpc.alone import Alone
from hpc.comm import connect
from hpc.communicator import Communicator
from hpc.config.training import Sync as SyncConfig
from hpc.errors import RankTimeoutError
from hpc.exchange.agenda import Agenda
from hpc.exchange.sync import Sync
from hpc.mpi import Mpi
from structlearn import models


def strategy(comm: Communicator, model: nn.Module, **keys: Any) -> Sync:
    return Sync(comm, model, Agenda(1000, None, comm.size), SyncConfig(**keys))


def net(kind: str = "mlp") -> nn.Module:
    torch.manual_seed(0)
    if kind == "mlp":
        return models.build("mlp", (1, 8, 8), 10, widths=[300, 300, 10])
    return models.build("resnet18", (3, 8, 8), 10, width=0.25)


def batch(shape: tuple[int, ...], number: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(number, *shape, generator=generator), torch.randint(10, (number,), generator=generator)


def checksum(tensors: list[torch.Tensor]) -> int:
    digest = 0
    for tensor in tensors:
        digest = zlib.crc32(tensor.contiguous().view(-1).view(torch.uint8).numpy().data, digest)
    return digest


def train(comm: Communicator, model: nn.Module, batches: list[Any], **keys: Any) -> Sync:
    sync = strategy(comm, model, **keys)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for step, (inputs, targets) in enumerate(batches, 1):
        nn.functional.cross_entropy(model(inputs), targets).backward()
        sync.after_backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        sync.after_step(step)
    sync.close()
    return sync


def means_are_means_whatever_the_size_and_the_kind(comm: Communicator) -> None:
    under_way = []
    for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
        for count in (0, 1, 2, 3, 7, 1000, 300_001):
            given = [
                torch.randint(-50, 50, (count,), generator=torch.Generator().manual_seed(rank)).to(dtype) * comm.size
                for rank in range(comm.size)
            ]
            values = given[comm.rank].clone()
            under_way.append((comm.start_mean(values, "test"), values, given))
    for each, _, _ in reversed(under_way):  # asked in any order
        each.done()
    for each, values, given in under_way:
        each.wait()
        assert each.done()
        exact = torch.stack(given).double().mean(0)
        assert torch.equal(values.double(), exact.to(values.dtype).double())


def sums_go_the_way_of_means_where_they_must(comm: Communicator) -> None:
    """On a CUDA device they do."""
    assert isinstance(comm, Mpi)
    for count in (0, 1, 7, 300_001):
        values = torch.arange(count, dtype=torch.float64) + comm.rank
        comm._start(values, "test", 1).wait()
        ranks = comm.size * (comm.size - 1) / 2
        assert torch.equal(values, torch.arange(count, dtype=torch.float64) * comm.size + ranks)


def mpi_takes_tensors_themselves(comm: Communicator) -> None:
    """As those of a CUDA device are handed to it; on the CPU, that shows."""
    before, mean._bytes = mean._bytes, lambda values: values.view(torch.uint8)
    try:
        means_are_means_whatever_the_size_and_the_kind(comm)
    finally:
        mean._bytes = before


def mpi_is_found_and_asked_whether_it_takes_device_memory(comm: Communicator) -> None:
    from mpi4py import MPI

    assert ctypes.CDLL(MPI.__file__).MPI_Get_library_version
    assert isinstance(comm.cuda_aware(), bool)
    assert comm.takes(torch.device("cpu"))
    assert not comm.takes(torch.device("cuda"))  # nobody has tried


def ranks_follow_one_rank_with_the_whole_batch(comm: Communicator) -> None:
    for bucket_mb in (2.0, 0.05):
        batches = [batch((1, 8, 8), 6 * comm.size, step) for step in range(8)]
        mine = [tuple(part[comm.rank :: comm.size] for part in both) for both in batches]
        model, alone = net(), net()
        train(comm, model, mine, bucket_mb=bucket_mb)
        train(Alone(), alone, batches)
        for weight, other in zip(model.parameters(), alone.parameters(), strict=True):
            torch.testing.assert_close(weight, other, rtol=0, atol=1e-6)


def all_ranks_hold_the_same_bits(comm: Communicator) -> None:
    for payload in ("float32", "bfloat16", "float16"):
        for kind, shape in (("mlp", (1, 8, 8)), ("resnet18", (3, 8, 8))):
            model = net(kind)
            mine = [batch(shape, 4, 100 * step + comm.rank) for step in range(5)]
            sync = train(comm, model, mine, payload=payload, bucket_mb=0.1)
            assert len(set(comm.gather(checksum(list(model.parameters())), "test"))) == 1
            whole = sum(parameter.numel() for parameter in model.parameters())
            assert sync.counters.bytes_sent == 5 * whole * (4 if payload == "float32" else 2)


def the_size_of_buckets_changes_no_bit(comm: Communicator) -> None:
    found = set()
    for bucket_mb in (0.001, 0.1, 100.0):
        model = net()
        mine = [batch((1, 8, 8), 4, 100 * step + comm.rank) for step in range(5)]
        train(comm, model, mine, bucket_mb=bucket_mb)
        found.add(checksum(list(model.parameters())))
    assert len(found) == 1


def sixteen_bits_are_within_their_rounding(comm: Communicator) -> None:
    for payload, unit in (("bfloat16", 2**-8), ("float16", 2**-11)):
        given = [torch.randn(500, 400, generator=torch.Generator().manual_seed(rank)) for rank in range(comm.size)]
        model = nn.Linear(400, 500, bias=False)
        sync = strategy(comm, model, payload=payload, bucket_mb=0.1)
        (model.weight * given[comm.rank]).sum().backward()
        sync.after_backward()
        middle, largest = torch.stack(given).double().mean(0), torch.stack(given).double().abs().mean(0)
        assert ((model.weight.grad.double() - middle).abs() <= unit * largest + 1.01 * unit * middle.abs() + 1e-7).all()
        assert model.weight.grad.dtype == torch.float32


def what_float16_cannot_hold_is_nan_everywhere_and_so_is_the_next_loss(comm: Communicator) -> None:
    model = net()
    sync = strategy(comm, model, payload="float16")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    inputs, targets = batch((1, 8, 8), 4, comm.rank)
    factor = 1e9 if comm.rank == comm.size - 1 else 1.0  # one rank's gradients are too large
    (nn.functional.cross_entropy(model(inputs), targets) * factor).backward()
    sync.after_backward()
    optimizer.step()
    assert nn.functional.cross_entropy(model(inputs), targets).isnan()
    assert len(set(comm.gather(checksum(list(model.parameters())), "test"))) == 1


def what_comes_late_on_one_rank_is_averaged_too(comm: Communicator) -> None:
    model = net()
    sync = strategy(comm, model, bucket_mb=0.1)
    inputs, targets = batch((1, 8, 8), 4, 0)
    for _ in range(2 if comm.rank == 0 else 1):
        nn.functional.cross_entropy(model(inputs), targets).backward()
    sync.after_backward()
    weights = list(model.parameters())
    expected = torch.autograd.grad(nn.functional.cross_entropy(model(inputs), targets), weights)
    for weight, gradient in zip(weights, expected, strict=True):
        torch.testing.assert_close(weight.grad, gradient * (comm.size + 1) / comm.size, rtol=1e-5, atol=1e-7)


def a_rank_that_never_comes_is_named_by_its_bucket(comm: Communicator) -> None:
    model = net()
    sync = strategy(comm, model)
    if comm.rank == 0:
        inputs, targets = batch((1, 8, 8), 4, 0)
        nn.functional.cross_entropy(model(inputs), targets).backward()
        with pytest.raises(RankTimeoutError, match=r"in: average gradients \(bucket 1 of \d\)"):
            sync.after_backward()
        print("passed", "a_rank_that_never_comes", flush=True)
        comm.abort(0)
    time.sleep(60)


BODIES = [
    means_are_means_whatever_the_size_and_the_kind,
    sums_go_the_way_of_means_where_they_must,
    mpi_takes_tensors_themselves,
    mpi_is_found_and_asked_whether_it_takes_device_memory,
    ranks_follow_one_rank_with_the_whole_batch,
    all_ranks_hold_the_same_bits,
    the_size_of_buckets_changes_no_bit,
    sixteen_bits_are_within_their_rounding,
    what_float16_cannot_hold_is_nan_everywhere_and_so_is_the_next_loss,
    what_comes_late_on_one_rank_is_averaged_too,
    a_rank_that_never_comes_is_named_by_its_bucket,
]

if __name__ == "__main__":
    torch.set_num_threads(1)
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
