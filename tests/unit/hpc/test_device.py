"""The device of a rank."""

import os
from types import SimpleNamespace

import pytest
import torch

from hpc import device
from hpc.alone import Alone
from hpc.config.training import Compute
from hpc.errors import RunError


class Rank(Alone):
    """One of several ranks; the identities of the others are known before."""

    def __init__(self, rank: int = 0, others: tuple[str, ...] = (), local_rank: int | None = None, local_size: int = 1):
        self.rank, self.size, self.others = rank, len(others) + 1, list(others)
        self.local_rank, self.local_size = rank if local_rank is None else local_rank, local_size

    def gather(self, value, what):
        return [*self.others[: self.rank], value, *self.others[self.rank :]]


@pytest.fixture
def cuda(monkeypatch):
    """A machine that seems to have CUDA devices: their identities."""

    def install(*identities):
        used = []
        monkeypatch.setattr(torch.cuda, "is_available", lambda: bool(identities))
        monkeypatch.setattr(torch.cuda, "device_count", lambda: len(identities))
        monkeypatch.setattr(
            torch.cuda, "get_device_properties", lambda place: SimpleNamespace(uuid=identities[place.index])
        )
        monkeypatch.setattr(torch.cuda, "set_device", used.append)
        return used

    return install


@pytest.mark.parametrize("wanted", ["auto", "cpu"])
def test_without_cuda_it_is_the_cpu(cuda, wanted):
    cuda()
    assert device.choose(Compute(device=wanted), Alone()) == torch.device("cpu")


def test_cuda_asked_for_and_not_there_is_an_error_that_says_what_to_do(cuda):
    cuda()
    with pytest.raises(RunError, match=r"compute\.device: got cuda, but .* no CUDA device here; use cpu or auto"):
        device.choose(Compute(device="cuda"), Alone())


def test_cpu_is_the_cpu_where_there_is_cuda(cuda):
    assert not cuda("A")
    assert device.choose(Compute(device="cpu"), Alone()).type == "cpu"


@pytest.mark.parametrize("wanted", ["auto", "cuda"])
def test_each_rank_takes_the_device_of_its_place_on_the_machine(cuda, wanted):
    used = cuda("A", "B", "C")
    chosen = device.choose(Compute(device=wanted), Rank(rank=5, others=("X",) * 5, local_rank=1, local_size=3))
    assert chosen == torch.device("cuda", 1)
    assert used == [chosen]


def test_two_ranks_on_one_device_are_refused_and_named(cuda):
    """Seen by its identity: to both it is cuda:0."""
    cuda("A")
    with pytest.raises(RunError, match=r"ranks \[0, 2\] would all use the CUDA device A") as caught:
        device.choose(Compute(), Rank(rank=0, others=("B", "A"), local_rank=0))
    assert "--gpus-per-task=1" in str(caught.value)
    assert "compute.share_devices: true" in str(caught.value)


def test_more_ranks_than_devices_are_refused(cuda):
    cuda("A", "B")
    with pytest.raises(RunError, match=r"ranks \[0, 2\]"):
        device.choose(Compute(), Rank(rank=2, others=("A", "B"), local_rank=2, local_size=3))


def test_they_may_share_where_that_is_asked_for(cuda):
    cuda("A", "B")
    config = Compute(share_devices=True)
    assert device.choose(config, Rank(rank=2, others=("A", "B"), local_rank=2)).index == 0


def test_ranks_on_cpus_never_count_as_sharing(cuda):
    cuda()
    assert device.choose(Compute(), Rank(rank=1, others=("cpu of rank 0",))).type == "cpu"


# --- threads and determinism -------------------------------------------------------------------------------


@pytest.fixture
def called(monkeypatch):
    """What is asked of torch, which these tests must not change."""
    called = {}
    monkeypatch.setattr(torch, "set_num_threads", lambda number: called.update(threads=number))
    monkeypatch.setattr(torch, "use_deterministic_algorithms", lambda on: called.update(deterministic=on))
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    monkeypatch.setenv("OMP_NUM_THREADS", "set")
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "set")
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    return called


@pytest.mark.parametrize(("ranks", "threads"), [(1, 8), (2, 4), (3, 2), (8, 1), (20, 1)])
def test_the_cores_are_shared_among_the_ranks_of_the_machine(called, ranks, threads):
    device.prepare(Compute(), Rank(local_size=ranks))
    assert called == {"threads": threads}


def test_the_environments_number_of_threads_stays(called, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    device.prepare(Compute(), Alone())
    assert called == {}


def test_the_configs_number_of_threads_comes_first(called, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    device.prepare(Compute(threads=5), Alone())
    assert called == {"threads": 5}


def test_determinism_is_asked_for_with_what_cublas_needs(called):
    device.prepare(Compute(deterministic=True, threads=1), Alone())
    assert called["deterministic"] is True
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"


def test_without_asking_nothing_is_made_deterministic(called):
    device.prepare(Compute(), Alone())
    assert "deterministic" not in called
    assert "CUBLAS_WORKSPACE_CONFIG" not in os.environ
