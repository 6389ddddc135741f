"""Device pointers: who is asked, what is tried, and what a mean does on a device."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from hpc import pointers
from hpc.alone import Alone
from hpc.config.root import Config
from hpc.config.training import Compute, Downpour, Easgd, Gossip, PerSyn, Sync
from hpc.errors import RankTimeoutError
from hpc.mean import MpiMean

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


class Rank(Alone):
    """Rank 0 of three; what the others answer is known before, and their values are this one's and their number."""

    size = 3

    def __init__(self, says: bool = True, ask: bool = True, agree: bool = True, add: float = 0, move: float = 0):
        self.says, self.others = says, {"ask": [True, ask], "agree": [True, agree]}
        self.add, self.move = add, move
        self.asked, self.tried = 0, 0

    def cuda_aware(self):
        self.asked += 1
        return self.says

    def gather(self, value, what):
        return [value, *self.others[what.split()[0]]]

    def sum_(self, values, what):
        self.tried += 1
        values.mul_(3).add_(3)[-1:].add_(self.add)

    def start_mean(self, values, what):
        values.add_(1)[-1:].add_(self.move)
        return super().start_mean(torch.ones(1), what)


@pytest.fixture
def cpu_for_cuda(monkeypatch):
    """The trial takes place on the CPU."""
    works = pointers.works
    monkeypatch.setattr(pointers, "works", lambda comm, device: works(comm, CPU if device == CUDA else device))


@pytest.mark.usefixtures("cpu_for_cuda")
@pytest.mark.parametrize(
    ("comm", "tried", "allowed"),
    [
        (Rank(), True, True),
        (Rank(says=False), False, False),
        (Rank(ask=False), False, False),  # the library of one rank's machine says no
        (Rank(agree=False), True, False),  # numbers are wrong on one rank
        (Rank(add=1), True, False),
        (Rank(move=0.25), True, False),
    ],
)
def test_a_library_is_asked_then_tried_and_all_ranks_must_agree(comm, tried, allowed):
    assert not comm.device_pointers
    pointers.choose(Config(), comm, CUDA)
    assert comm.asked == 1
    assert (comm.tried > 0, comm.device_pointers) == (tried, allowed)


@pytest.mark.parametrize(
    ("config", "device"),
    [
        (Config(compute=Compute(device_pointers="never")), CUDA),
        (Config(), CPU),
        (Config(exchange=Gossip(rho=0.1)), CUDA),  # nobody waits for a sum
        (Config(exchange=Easgd(tau=3)), CUDA),
        (Config(exchange=Downpour(tau=3)), CUDA),
    ],
)
def test_it_is_not_even_asked_where_it_is_not_needed(config, device):
    comm = Rank()
    pointers.choose(config, comm, device)
    assert (comm.asked, comm.tried, comm.device_pointers) == (0, 0, False)


@pytest.mark.usefixtures("cpu_for_cuda")
@pytest.mark.parametrize("exchange", [Sync(), PerSyn(tau=3), Easgd(tau=3, mode="sync")])
def test_it_is_asked_where_somebody_waits_for_a_sum(exchange):
    comm = Rank()
    pointers.choose(Config(exchange=exchange), comm, CUDA)
    assert comm.device_pointers


def test_alone_there_is_nobody_to_hand_anything_to():
    comm = Alone()
    pointers.choose(Config(), comm, CUDA)
    assert not comm.device_pointers
    assert (comm.takes(CPU), comm.takes(CUDA)) == (True, False)


@pytest.mark.usefixtures("cpu_for_cuda")
@pytest.mark.parametrize("error", [RuntimeError("MPI_ERR_BUFFER"), BufferError("no such device"), TypeError("what?")])
def test_an_error_is_a_no(error, monkeypatch):
    def sum_(self, values, what):
        raise error

    monkeypatch.setattr(Rank, "sum_", sum_)
    comm = Rank()
    pointers.choose(Config(), comm, CUDA)
    assert not comm.device_pointers


@pytest.mark.usefixtures("cpu_for_cuda")
def test_a_rank_that_does_not_come_ends_the_run_and_the_way_out_is_named(monkeypatch):
    def sum_(self, values, what):
        raise RankTimeoutError(what)

    monkeypatch.setattr(Rank, "sum_", sum_)
    with pytest.raises(RankTimeoutError, match=r"compute\.device_pointers: never"):
        pointers.choose(Config(), Rank(), CUDA)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
def test_what_is_tried_is_on_the_device(monkeypatch):
    seen = set()
    sum_ = Rank.sum_
    monkeypatch.setattr(
        Rank, "sum_", lambda self, values, what: (seen.add(values.device.type), sum_(self, values, what))
    )
    comm = Rank()
    pointers.choose(Config(), comm, torch.device("cuda", 0))
    assert comm.device_pointers
    assert seen == {"cuda"}


# --- a mean on a device ------------------------------------------------------------------------------------


class Messages:
    """MPI of ranks in this process: moves bytes at once, whatever kernels are at them."""

    def __init__(self, rank, size, sent):
        self.rank, self.size, self.sent = rank, size, sent

    def Isend(self, values, to, tag):  # noqa: N802 - as MPI's own
        self.sent[self.rank, to, tag] = torch.as_tensor(values).cpu().clone()
        return lambda: True

    def Irecv(self, into, source, tag):  # noqa: N802 - as MPI's own
        def arrived():
            message = self.sent.pop((source, self.rank, tag), None)
            if message is not None:
                torch.as_tensor(into).copy_(message)
                arrived.over = True
            return arrived.over

        arrived.over = False
        return arrived


def every(requests):
    return sum(request() for request in requests) == len(requests)


MPI = SimpleNamespace(Request=SimpleNamespace(Testall=every))


@pytest.mark.parametrize(
    "device",
    [
        "cpu",
        pytest.param(
            "cuda",
            marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")],
        ),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("divisor", [1, 3])
def test_values_are_added_where_they_are(device, dtype, divisor):
    for count in (0, 1, 7, 100_003):
        given = [torch.from_numpy(np.random.default_rng(rank).integers(-9, 9, count)) * 3 for rank in range(3)]
        values = [each.to(device, dtype) for each in given]
        if device == "cuda":
            torch.cuda.synchronize()
        sent = {}
        means = []
        for rank, mine in enumerate(values):
            stream = torch.cuda.Stream() if device == "cuda" else None
            means.append(MpiMean(None, MPI, Messages(rank, 3, sent), mine, divisor, 6, [], stream))
        while not all([mean.done() for mean in means]):  # noqa: C419 - all of them are to be asked
            pass
        assert not sent
        expected = torch.stack(given).sum(0).double() / divisor
        for mine in values:
            assert mine.device.type == device
            assert torch.equal(mine.double().cpu(), expected)
