"""Gradients averaged in buckets, among ranks that are threads of this process."""

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from hpc.alone import Alone
from hpc.config.training import Sync as SyncConfig
from hpc.exchange import buckets as module
from hpc.exchange.agenda import Agenda
from hpc.exchange.buckets import Buckets, layout
from hpc.exchange.sync import Sync

PATIENCE_S = 120.0


class Under:
    """A mean under way: the values are poisoned until somebody finds all ranks' there."""

    def __init__(self, world: "World", number: int, values: torch.Tensor, patience: int) -> None:
        self.world, self.number, self.values, self.patience = world, number, values, patience
        self.over = False

    def done(self) -> bool:
        self.patience -= 1
        with self.world.changed:
            if self.patience < 0 and len(self.world.given[self.number]) == self.world.size:
                self._take()
        return self.over

    def wait(self) -> None:
        with self.world.changed:
            everybody = self.world.changed.wait_for(
                lambda: self.world.failed or len(self.world.given[self.number]) == self.world.size, PATIENCE_S
            )
            assert everybody, "nobody else comes"
            assert not self.world.failed
            self._take()

    def _take(self) -> None:
        if self.over:
            return
        assert self.values.isnan().all(), "somebody wrote into values under way"
        given = [self.world.given[self.number][rank] for rank in range(self.world.size)]
        assert len({(what, len(values), values.dtype) for what, values in given}) == 1, "another order of buckets"
        wide = torch.float32 if self.values.element_size() == 2 else self.values.dtype
        self.values.copy_(sum(values.to(wide) for _, values in given) / self.world.size)
        if self.values.is_cuda:
            torch.cuda.synchronize()  # what MPI has received is there for all streams
        self.over = True


class World:
    def __init__(self, size: int) -> None:
        self.size, self.failed = size, False
        self.given: list[dict[int, Any]] = []
        self.changed = threading.Condition()


class Rank(Alone):
    def __init__(self, world: World, rank: int, direct: bool = True) -> None:
        self.world, self.rank, self.size, self.direct = world, rank, world.size, direct
        self.started: list[str] = []
        self.handed: set[int] = set()

    def takes(self, device: torch.device) -> bool:
        """The CPU stands for any device: if its tensors are not taken, they are copied, as a device's are."""
        return self.direct

    def start_mean(self, values: torch.Tensor, what: str) -> Under:
        assert self.direct or not values.is_cuda
        self.handed.add(values.untyped_storage().data_ptr())
        assert values.dim() == 1
        assert values.is_contiguous()
        number = len(self.started)
        self.started.append(what)
        with self.world.changed:
            if number == len(self.world.given):
                self.world.given.append({})
            self.world.given[number][self.rank] = (what, values.clone())
            self.world.changed.notify_all()
        values.fill_(torch.nan)
        if values.is_cuda:
            torch.cuda.synchronize()
        return Under(self.world, number, values, patience=(7 * number + 3 * self.rank) % 4)


def together(size: int, body: Callable[[Rank], Any], *, direct: bool = True) -> list[Any]:
    """What a body returns on each of so many ranks."""
    world, results, errors = World(size), [None] * size, []

    def run(rank: int) -> None:
        try:
            results[rank] = body(Rank(world, rank, direct))
        except BaseException as error:  # noqa: BLE001 - it is raised below
            errors.append(error)
            with world.changed:
                world.failed = True
                world.changed.notify_all()

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return results


class Net(nn.Module):
    def __init__(self, shapes: list[tuple[int, ...]], dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.weights = nn.ParameterList([torch.randn(shape, generator=generator).to(dtype) for shape in shapes])


def strategy(comm: Any, model: nn.Module, *, limit: int = 2**20, payload: str = "float32") -> Sync:
    return Sync(comm, model, Agenda(1000, None, comm.size), SyncConfig(bucket_mb=limit / 2**20, payload=payload))


def loss(model: Net, used: list[bool], seed: int, order: list[int]) -> torch.Tensor:
    """Each used weight once or more (a tied one has several uses); the order of uses is that of backward, reversed."""
    generator = torch.Generator().manual_seed(seed)
    total = torch.zeros(())
    for place in order:
        weight = model.weights[place]
        factor = torch.randn(weight.shape, generator=generator)
        if used[place]:
            total = total.tanh() + (weight.float() * factor).sum().sin() * (1 + place)
    return total


def sum_by_hand(model: Net, losses: list[torch.Tensor]) -> list[torch.Tensor]:
    """The sums of the gradients of losses, without any .grad."""
    weights = list(model.weights)
    sums = [torch.zeros_like(weight, dtype=torch.float64) for weight in weights]
    for value in losses:
        if value.requires_grad:
            for total, gradient in zip(sums, torch.autograd.grad(value, weights, allow_unused=True), strict=True):
                if gradient is not None:
                    total.add_(gradient)
    return sums


shapes = st.lists(st.lists(st.integers(1, 5), max_size=3).map(tuple), min_size=1, max_size=6)


@pytest.fixture
def small_alone(monkeypatch):
    """Gradients of ten floats travel from where they are."""
    monkeypatch.setattr(module, "ALONE", 40)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    size=st.integers(2, 3), shapes=shapes, limit=st.integers(1, 200), alone=st.sampled_from([1, 40, 10**6]),
    calls=st.lists(st.integers(0, 3), min_size=3, max_size=3), direct=st.booleans(), data=st.data(),
)  # fmt: skip
def test_gradients_become_their_mean_over_ranks(size, shapes, limit, alone, calls, direct, data):
    """Whatever takes part, in whatever order, tied or not, however often each rank calls backward, copied or not."""
    every = list(range(len(shapes)))
    used = [data.draw(st.lists(st.booleans(), min_size=len(every), max_size=len(every))) for _ in range(size)]
    tied = data.draw(st.lists(st.sampled_from(every), max_size=3))
    orders = [data.draw(st.permutations(every + tied)) for _ in range(size)]

    def losses(model: Net, rank: int) -> list[torch.Tensor]:
        return [loss(model, used[rank], 100 * rank + call, orders[rank]) for call in range(calls[rank])]

    model = Net(shapes)
    expected = sum_by_hand(model, [value for rank in range(size) for value in losses(model, rank)])

    def body(comm: Rank) -> list[torch.Tensor]:
        model = Net(shapes)
        sync = strategy(comm, model, limit=limit)
        for _ in range(2):  # the second step finds what the first has left
            for value in losses(model, comm.rank):
                if value.requires_grad:
                    value.backward()
            sync.after_backward()
            found = [weight.grad.clone() for weight in model.weights]
            model.zero_grad(set_to_none=True)
        return found

    before, module.ALONE = module.ALONE, alone
    try:
        everybody = together(size, body, direct=direct)
    finally:
        module.ALONE = before
    for found in everybody:
        for mine, first, mean in zip(found, everybody[0], expected, strict=True):
            assert torch.equal(mine, first)
            torch.testing.assert_close(mine.double(), mean / size, rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("small_alone")
@pytest.mark.parametrize("zero", [True, False])
def test_gradients_that_are_kept_are_added_to(zero):
    """The mean of what was there and what is new: two steps without zero_grad are one with both losses."""

    def body(comm: Rank) -> list[torch.Tensor]:
        model = Net([(3, 4), (2,), (5, 5)])
        sync = strategy(comm, model, limit=48)
        for step in range(2):
            loss(model, [True] * 3, 10 * step + comm.rank, [0, 1, 2]).backward()
            sync.after_backward()
            if zero:
                model.zero_grad(set_to_none=False)
        loss(model, [True] * 3, 20 + comm.rank, [0, 1, 2]).backward()
        sync.after_backward()
        return [weight.grad for weight in model.weights]

    model = Net([(3, 4), (2,), (5, 5)])
    for step in [2] if zero else range(3):
        for rank in range(2):
            (loss(model, [True] * 3, 10 * step + rank, [0, 1, 2]) / 2).backward()
    for found in together(2, body):
        for mine, weight in zip(found, model.weights, strict=True):
            torch.testing.assert_close(mine, weight.grad, rtol=1e-5, atol=1e-6)


@pytest.mark.usefixtures("small_alone")
@pytest.mark.parametrize("payload", ["float32", "bfloat16"])
def test_two_gradients_in_one_memory_are_averaged_each_by_itself(payload):
    def body(comm: Rank) -> list[torch.Tensor]:
        model = Net([(4, 4), (4, 4)])
        sync = strategy(comm, model, payload=payload)
        one, two = model.weights
        if comm.rank == 0:
            ((one.view(-1) + two.view(-1)) * torch.full((16,), 2.0)).sum().backward()
        else:
            (one * 4.0 + two * 8.0).sum().backward()
        sync.after_backward()
        return [weight.grad.unique().tolist() for weight in model.weights]

    assert together(2, body) == [[[3.0], [5.0]]] * 2


def test_autograd_does_give_two_gradients_one_memory():
    """Else the test before this one shows nothing."""
    one, two = Net([(4, 4), (4, 4)]).weights
    ((one.view(-1) + two.view(-1)) * torch.full((16,), 2.0)).sum().backward()
    assert one.grad.data_ptr() == two.grad.data_ptr()
    assert module._shared(one.grad)
    assert not module._shared(one.grad.clone())


@pytest.mark.usefixtures("small_alone")
def test_a_large_gradient_is_not_copied_and_small_ones_are_views_of_one_buffer():
    seen: list[list[int]] = [[], []]

    def body(comm: Rank) -> tuple[bool, int]:
        model = Net([(2,), (10, 10), (3,)])
        model.weights[1].register_post_accumulate_grad_hook(
            lambda weight: seen[comm.rank].append(weight.grad.data_ptr())
        )
        sync = strategy(comm, model)
        sum(weight.square().sum() for weight in model.weights).backward()
        sync.after_backward()
        small = {weight.grad.untyped_storage().data_ptr() for weight in (model.weights[0], model.weights[2])}
        return [model.weights[1].grad.data_ptr()] == seen[comm.rank], len(small)

    assert together(2, body) == [(True, 1)] * 2


def trained(comm: Rank, payload: str, device: str) -> tuple[list[torch.Tensor], bool]:
    """A network after three steps; was what MPI got the gradients' own memory, in the last of them?"""
    model = Net([(4, 4), (1,), (5, 5), (6, 6)]).to(device)
    sync = strategy(comm, model, limit=100, payload=payload)
    for step in range(3):
        comm.handed.clear()
        factors = [torch.randn(weight.shape, generator=torch.Generator().manual_seed(9 * step + comm.rank)).to(device)
                   for weight in model.weights]  # fmt: skip
        model.zero_grad(set_to_none=True)
        sum(((weight * factor).sin().sum() for weight, factor in zip(model.weights, factors, strict=True))).backward()
        sync.after_backward()
        with torch.no_grad():
            for weight in model.weights:
                weight.sub_(weight.grad)
    own = {weight.grad.untyped_storage().data_ptr() for weight in model.weights}
    assert comm.handed == own or not comm.handed & own
    return [weight.detach().cpu() for weight in model.weights], comm.handed == own


@pytest.mark.usefixtures("small_alone")
@pytest.mark.parametrize(("payload", "own"), [("float32", True), ("bfloat16", False)])
def test_gradients_that_mpi_takes_are_not_copied_for_it_and_the_bits_are_the_same(payload, own):
    direct = together(2, lambda comm: trained(comm, payload, "cpu"))
    staged = together(2, lambda comm: trained(comm, payload, "cpu"), direct=False)
    for (mine, handed), (others, other_handed) in zip(direct, staged, strict=True):
        assert (handed, other_handed) == (own, False)
        for weight, other in zip(mine, others, strict=True):
            assert torch.equal(weight, other)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
@pytest.mark.usefixtures("small_alone")
@pytest.mark.parametrize("direct", [True, False])
@pytest.mark.parametrize("payload", ["float32", "bfloat16"])
def test_gradients_on_a_device_become_their_mean_there(payload, direct):
    here = together(2, lambda comm: trained(comm, payload, "cpu"))
    there = together(2, lambda comm: trained(comm, payload, "cuda"), direct=direct)
    for (mine, _), (others, handed) in zip(here, there, strict=True):
        assert handed == (direct and payload == "float32")
        for weight, other in zip(mine, others, strict=True):
            torch.testing.assert_close(weight, other, rtol=1e-2 if payload == "bfloat16" else 1e-5, atol=1e-2)


@pytest.mark.usefixtures("small_alone")
def test_buckets_leave_while_backward_runs_and_in_one_order():
    def body(comm: Rank) -> tuple[list[str], list[str]]:
        model = Net([(4, 4), (1,), (5, 5), (6, 6)])
        sync = strategy(comm, model, limit=100)
        order = [0, 1, 2, 3] if comm.rank == 0 else [3, 1, 0, 2]
        loss(model, [True] * 4, comm.rank, order).backward()
        early = list(comm.started)
        sync.after_backward()
        return early, comm.started

    (early, whole), (other_early, other) = together(2, body)
    assert whole == other == [f"average gradients (bucket {number} of 4)" for number in (1, 1, 2, 3, 4)]
    assert early
    assert len(other_early) < len(whole)


@pytest.mark.parametrize(("payload", "unit"), [("bfloat16", 2**-8), ("float16", 2**-11)])
def test_16_bit_gradients_are_rounded_twice_and_no_more(payload, unit):
    """|found - mean| <= u mean(|g|) + u |mean| (1 + u), and u of the sums in float32, which is nothing beside it."""
    size, dtype = 3, getattr(torch, payload)
    given = [torch.randn(1000, generator=torch.Generator().manual_seed(rank)) for rank in range(size)]

    def body(comm: Rank) -> tuple[torch.Tensor, int]:
        model = Net([(1000,)])
        sync = strategy(comm, model, payload=payload, limit=300)
        (model.weights[0] * given[comm.rank]).sum().backward()
        sync.after_backward()
        return model.weights[0].grad, sync.counters.bytes_sent

    mean = torch.stack(given).double().mean(0)
    bound = unit * torch.stack(given).double().abs().mean(0) + 1.01 * unit * mean.abs() + 1e-7
    for found, sent in together(size, body):
        assert sent == 2000
        assert ((found.double() - mean).abs() <= bound).all()
        assert torch.equal(found, found.to(dtype).float())  # it is a number of 16 bits


def test_float64_gradients_stay_what_they_are():
    def body(comm: Rank) -> torch.Tensor:
        model = Net([(3,), (2, 2)], torch.float64)
        sync = strategy(comm, model)
        for weight in model.weights:
            weight.grad = torch.full_like(weight, 1 + comm.rank * 2**-40)
        sync.after_backward()
        return torch.cat([weight.grad.view(-1) for weight in model.weights])

    assert [found.unique().tolist() for found in together(2, body)] == [[1 + 2**-41]] * 2


@pytest.mark.usefixtures("small_alone")
def test_channels_last_gradients_keep_their_layout():
    def body(comm: Rank) -> tuple[Any, torch.Tensor]:
        model = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
        with torch.no_grad():
            model.weight.fill_(1.0)
        sync = strategy(comm, model)
        gradient = torch.arange(108.0).view(4, 3, 3, 3) * (comm.rank + 1)
        model.weight.grad = gradient.to(memory_format=torch.channels_last) if comm.rank else gradient
        sync.after_backward()
        return model.weight.grad.stride(), model.weight.grad.contiguous()

    for stride, found in together(2, body):
        assert stride == (27, 1, 9, 3)
        assert torch.equal(found, torch.arange(108.0).view(4, 3, 3, 3) * 1.5)


def test_alone_there_are_no_hooks_and_nothing_is_touched():
    model = Net([(2, 2)])
    sync = strategy(Alone(), model)
    model.weights[0].square().sum().backward()
    gradient = model.weights[0].grad
    sync.after_backward()
    assert model.weights[0].grad is gradient
    assert not model.weights[0]._post_accumulate_grad_hooks
    sync.close()


def test_a_closed_strategy_leaves_no_hooks():
    def body(comm: Rank) -> int:
        model = Net([(2, 2), (3,)])
        strategy(comm, model).close()
        model.weights[0].sum().backward()
        return len(comm.started)

    assert together(2, body) == [0, 0]


# --- who travels with whom ---------------------------------------------------------------------------------


@settings(derandomize=True)
@given(st.lists(st.integers(0, 100), max_size=20), st.integers(1, 150), st.integers(1, 150))
def test_every_gradient_is_in_one_bucket_and_buckets_are_in_the_order_of_their_last(sizes, limit, alone):
    buckets = layout(sizes, limit, alone)
    assert sorted(place for bucket in buckets for place in bucket.places) == list(range(len(sizes)))
    for bucket in buckets:
        assert bucket.places == sorted(bucket.places, reverse=True)
        assert bucket.alone == (len(bucket.places) == 1 and sizes[bucket.places[0]] >= alone)
        total = sum(sizes[place] for place in bucket.places)
        assert bucket.alone or len([place for place in bucket.places if sizes[place]]) <= 1 or total <= limit
    lasts = [min(bucket.places) for bucket in buckets[:-1]]
    assert lasts == sorted(lasts, reverse=True)
    assert not buckets[-1].alone


def test_no_parameters_are_no_problem():
    def body(comm: Rank) -> int:
        return Buckets(comm, [], 100, torch.float32).finish()

    assert together(2, body) == [1, 1]
