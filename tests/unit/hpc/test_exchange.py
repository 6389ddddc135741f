"""Exchange strategies among ranks that are threads of this process."""

import copy
import threading
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import Optimizer

from hpc import exchange
from hpc.alone import Alone
from hpc.communicator import Communicator
from hpc.config.root import Config
from hpc.config.training import Easgd, NoExchange, PerSyn, Sync
from hpc.exchange.agenda import Agenda, Pause
from hpc.exchange.base import AGREE_EVERY, Counters
from hpc.exchange.contents import running_averages, weights_and_buffers
from hpc.exchange.none import NoExchange as NoneStrategy
from hpc.exchange.persyn import PerSyn as PerSynStrategy
from hpc.exchange.sketch import Sketch
from hpc.exchange.sync import Sync as SyncStrategy
from hpc.flat import FlatBuffer

PATIENCE_S = 120.0


class World:
    """Where the ranks of a test meet."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.slots: list[Any] = [None] * size
        self.barrier = threading.Barrier(size, timeout=PATIENCE_S)
        self.questions: list[dict[int, int]] = []
        self.asked = threading.Condition()


class Question:
    def __init__(self, world: World, number: int) -> None:
        self.world, self.number = world, number

    def wait(self) -> int:
        answers = self.world.questions[self.number]
        with self.world.asked:
            assert self.world.asked.wait_for(lambda: len(answers) == self.world.size, PATIENCE_S), "nobody answers"
        return max(answers.values())


class Rank(Alone):
    """One rank among several; every collective takes part in the same order on all of them."""

    def __init__(self, world: World, rank: int) -> None:
        self.world, self.rank, self.size = world, rank, world.size
        self.asked = 0
        self.whats: list[str] = []
        self.direct, self.handed = True, set[int]()

    def _share(self, value: Any, what: str) -> list[Any]:
        self.whats.append(what)
        self.world.slots[self.rank] = (value, what)
        self.world.barrier.wait()
        found = list(self.world.slots)
        self.world.barrier.wait()
        assert len({name for _, name in found}) == 1, found
        return [each for each, _ in found]

    def takes(self, device: torch.device) -> bool:
        """The CPU stands for any device."""
        return self.direct

    def sum_(self, values: torch.Tensor, what: str) -> None:
        assert values.is_contiguous()
        self.handed.add(values.data_ptr())
        values.copy_(torch.stack(self._share(values.clone(), what)).sum(0))

    def broadcast_(self, values: torch.Tensor, what: str, root: int = 0) -> None:
        values.copy_(self._share(values.clone(), what)[root])

    def start_max(self, value: int, what: str) -> Question:
        with self.world.asked:
            if self.asked == len(self.world.questions):
                self.world.questions.append({})
            self.world.questions[self.asked][self.rank] = value
            self.world.asked.notify_all()
        self.asked += 1
        return Question(self.world, self.asked - 1)

    def gather(self, value: Any, what: str) -> list[Any]:
        return self._share(value, what)

    def barrier(self, what: str) -> None:
        self._share(None, what)


def together(size: int, body: Callable[[Rank], Any]) -> list[Any]:
    """What a body returns on each of so many ranks."""
    world, results, errors = World(size), [None] * size, []

    def run(rank: int) -> None:
        try:
            results[rank] = body(Rank(world, rank))
        except BaseException as error:  # noqa: BLE001 - it is raised below
            errors.append(error)
            world.barrier.abort()

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for error in errors:
        if not isinstance(error, threading.BrokenBarrierError):
            raise error
    assert not errors
    return results


class Net(nn.Module):
    """Weights, float buffers, an integer buffer and a weight that may take no part."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 4)
        self.norm = nn.BatchNorm1d(4)
        self.last = nn.Linear(4, 2)
        self.spare = nn.Parameter(torch.ones(2))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.last(self.norm(self.first(inputs)).tanh())


def net(seed: int, dtype: torch.dtype = torch.float32) -> Net:
    """Deterministic, and safe in threads: torch's global generator is one for all of them."""
    generator = torch.Generator().manual_seed(seed)
    model = Net().to(dtype)
    with torch.no_grad():
        for value in weights_and_buffers(model):
            value.copy_(torch.rand(value.shape, generator=generator, dtype=dtype) + 0.5)
        model.norm.num_batches_tracked.fill_(seed)
    return model


def values(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def mean(models: list[nn.Module]) -> dict[str, torch.Tensor]:
    states = [values(model) for model in models]
    return {name: torch.stack([state[name].double() for state in states]).mean(0) for name in states[0]}


def assert_bits(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    for name, value in expected.items():
        assert torch.equal(found[name].view(-1).view(torch.uint8), value.view(-1).view(torch.uint8)), name


def is_float(name: str) -> bool:
    return "num_batches" not in name


def batch(seed: int, dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(8, size, generator=generator, dtype=dtype) for size in (3, 2))


def linear(seed: int) -> nn.Module:
    model = nn.Linear(3, 2, dtype=torch.float64)
    with torch.no_grad():
        generator = torch.Generator().manual_seed(seed)
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return model


STRATEGIES: dict[str, Any] = {"none": NoExchange(), "sync": Sync(), "persyn": PerSyn(tau=3)}


def build(name: str, comm: Communicator, model: nn.Module, **keys: Any) -> exchange.Exchange:
    config = Config(exchange=STRATEGIES[name] if not keys else PerSyn(**{"tau": 3, **keys}))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    return exchange.build(config, comm, model, optimizer, Agenda(1000, None, comm.size))


# --- all of them -------------------------------------------------------------------------------------------


def test_a_configuration_names_its_strategy():
    kinds = {name: type(build(name, Alone(), net(0))) for name in STRATEGIES}
    assert kinds == {"none": NoneStrategy, "sync": SyncStrategy, "persyn": PerSynStrategy}


def test_only_sync_keeps_one_network_at_all_times():
    assert {name: build(name, Alone(), net(0)).replicated for name in STRATEGIES} == {
        "none": False, "sync": True, "persyn": False,
    }  # fmt: skip


@pytest.mark.parametrize("name", STRATEGIES)
def test_alone_a_strategy_changes_nothing_and_counts_nothing(name):
    model = net(1)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    model.spare.grad = None
    before = values(model)
    strategy = build(name, Alone(), model)
    for step in range(1, 7):
        strategy.after_backward()
        strategy.after_step(step)
    with strategy.consensus():
        assert_bits(values(model), before)
    strategy.quiesce()
    strategy.close()
    assert_bits(values(model), before)
    assert model.spare.grad is None
    assert asdict(strategy.counters) == asdict(Counters(mass=1.0))


@pytest.mark.parametrize("name", STRATEGIES)
def test_counters_come_back_from_the_state(name):
    strategy = build(name, Alone(), net(0))
    strategy.counters = Counters(1, 2, 3, 4, 0.5, 6.0)
    state = copy.deepcopy(strategy.state_dict())
    strategy.counters.sent += 1
    other = build(name, Alone(), net(0))
    other.load_state_dict(state)
    assert other.counters == Counters(1, 2, 3, 4, 0.5, 6.0)


@pytest.mark.parametrize("size", [1, 2, 4])
@pytest.mark.parametrize("name", STRATEGIES)
def test_the_ranks_masses_add_up_to_one(name, size):
    assert sum(together(size, lambda comm: build(name, comm, net(0)).counters.mass)) == 1.0


# --- consensus ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", STRATEGIES)
def test_inside_consensus_every_rank_holds_one_network_and_after_it_its_own_bits(name):
    models = [net(rank) for rank in range(3)]
    with torch.no_grad():  # what arithmetic would not bring back
        models[1].spare.copy_(torch.tensor([-0.0, 1e-42]))
        if name == "sync":  # it keeps parameters equal: only what each rank measures by itself is averaged
            for model in models[1:]:
                torch._foreach_copy_(list(model.parameters()), list(models[0].parameters()))
    before = [values(model) for model in models]
    expected = values(models[0]) if name == "none" else mean(models)

    def body(comm: Rank) -> dict[str, torch.Tensor]:
        model = models[comm.rank]
        with build(name, comm, model).consensus():
            return values(model)

    inside = together(3, body)
    for rank, found in enumerate(inside):
        for key, value in found.items():
            if is_float(key):
                torch.testing.assert_close(value.double(), expected[key].double(), rtol=1e-6, atol=0)
                assert torch.equal(value, inside[0][key])  # bit for bit the same on all ranks
            else:
                assert value == rank  # counts of batches are the rank's own
        assert_bits(values(models[rank]), before[rank])


@pytest.mark.parametrize("name", ["sync", "persyn", "easgd"])
def test_sums_of_values_that_mpi_takes_need_no_copy_and_have_the_same_bits(name, monkeypatch):
    """Of weights, of a centre, of the float buffers of an evaluation."""
    kept: list[FlatBuffer] = []  # all of them, so that none has the memory of another
    make = FlatBuffer.__init__

    def noted(self: FlatBuffer, *given: Any, **keys: Any) -> None:
        make(self, *given, **keys)
        kept.append(self)

    monkeypatch.setattr(FlatBuffer, "__init__", noted)

    def body(comm: Rank, direct: bool) -> tuple[dict[str, torch.Tensor], set[int]]:
        comm.direct = direct
        model = net(comm.rank if name != "sync" else 0)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        config = Config(exchange={"sync": Sync(), "persyn": PerSyn(tau=1), "easgd": Easgd(tau=1, mode="sync")}[name])
        strategy = exchange.build(config, comm, model, optimizer, Agenda(1000, None, comm.size))
        strategy.resume(0, 0)
        strategy.after_step(1)
        with strategy.consensus():
            return values(model), comm.handed

    direct = together(3, lambda comm: body(comm, direct=True))
    staged = together(3, lambda comm: body(comm, direct=False))
    gathered = {buffer._staging.data_ptr() for buffer in kept}
    assert all(handed and handed <= gathered for _, handed in direct)
    assert all(handed and not handed & gathered for _, handed in staged)
    for (found, _), (other, _) in zip(direct, staged, strict=True):
        assert_bits(found, other)


def test_without_exchange_the_network_of_rank_0_is_taken_exactly():
    models = [net(rank) for rank in range(2)]
    expected = {name: value for name, value in values(models[0]).items() if is_float(name)}

    def body(comm: Rank) -> None:
        with build("none", comm, models[comm.rank]).consensus():
            assert_bits(values(models[comm.rank]), expected)

    together(2, body)


def test_after_an_error_inside_consensus_each_rank_has_its_own_back():
    models = [net(rank) for rank in range(2)]
    before = [values(model) for model in models]

    def body(comm: Rank) -> None:
        with (
            pytest.raises(ZeroDivisionError),
            build("sync", comm, models[comm.rank]).consensus(),
        ):
            raise ZeroDivisionError

    together(2, body)
    for model, own in zip(models, before, strict=True):
        assert_bits(values(model), own)


def test_consensus_leaves_gradients_and_the_optimisers_step_possible():
    models = [net(rank) for rank in range(2)]

    def body(comm: Rank) -> None:
        model = models[comm.rank]
        strategy = build("sync", comm, model)
        with strategy.consensus():
            pass
        model(torch.ones(2, 3)).sum().backward()
        assert model.first.weight.grad is not None
        assert all(parameter.is_leaf for parameter in model.parameters())

    together(2, body)


# --- sync --------------------------------------------------------------------------------------------------


def test_sync_averages_gradients_and_one_without_counts_as_zero():
    def body(comm: Rank) -> dict[str, torch.Tensor | None]:
        model = net(0)
        model.last.bias.requires_grad_(requires_grad=False)
        strategy = build("sync", comm, model)
        for place, parameter in enumerate(model.parameters()):
            if parameter.requires_grad:
                parameter.grad = torch.full_like(parameter, 10.0 * comm.rank + place)
        if comm.rank == 1:
            model.first.bias.grad = None
        model.spare.grad = None
        strategy.after_backward()
        return {name: parameter.grad for name, parameter in model.named_parameters()}

    for found in together(2, body):
        names = list(found)
        for place, name in enumerate(names):
            expected = 5.0 + place
            if name == "first.bias":
                expected = place / 2
            if name == "spare":
                expected = 0.0
            if name == "last.bias":
                assert found[name] is None  # frozen: it does not travel
            else:
                assert found[name].unique().tolist() == [expected], name


@pytest.mark.parametrize("size", [2, 3])
def test_ranks_in_sync_follow_one_rank_with_their_batches_joined(size):
    steps = range(5)

    def train(model: nn.Module, batches: Iterator[Any], strategy: exchange.Exchange) -> nn.Module:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        for step, (inputs, targets) in enumerate(batches, 1):
            nn.functional.mse_loss(model(inputs), targets).backward()
            strategy.after_backward()
            optimizer.step()
            optimizer.zero_grad()
            strategy.after_step(step)
        return model

    def body(comm: Rank) -> nn.Module:
        model = linear(0)
        return train(model, (batch(10 * step + comm.rank) for step in steps), build("sync", comm, model))

    def joined() -> Iterator[Any]:
        for step in steps:
            inputs, targets = zip(*(batch(10 * step + rank) for rank in range(size)), strict=True)
            yield torch.cat(inputs), torch.cat(targets)

    alone = linear(0)
    train(alone, joined(), build("sync", Alone(), alone))
    models = together(size, body)
    for model in models:
        assert torch.equal(model.weight, models[0].weight)
        torch.testing.assert_close(model.weight, alone.weight, rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(model.bias, alone.bias, rtol=1e-12, atol=1e-14)


def test_sync_counts_one_message_a_step_and_its_bytes():
    def body(comm: Rank) -> tuple[Counters, int]:
        model = net(0)
        strategy = build("sync", comm, model)
        for step in (1, 2, 3):
            strategy.after_backward()
            strategy.after_step(step)
        return strategy.counters, sum(parameter.nbytes for parameter in model.parameters())

    for counters, size in together(2, body):
        assert (counters.sent, counters.received, counters.skipped) == (3, 3, 0)
        assert counters.bytes_sent == 3 * size
        assert counters.seconds_blocked > 0


# --- persyn ------------------------------------------------------------------------------------------------


def test_persyn_takes_the_mean_every_tau_steps_and_not_between():
    models = [net(rank) for rank in range(3)]
    before = [values(model) for model in models]
    expected = mean(models)
    seen: list[dict[int, dict[str, torch.Tensor]]] = [{} for _ in models]

    def body(comm: Rank) -> None:
        strategy = build("persyn", comm, models[comm.rank])
        for step in range(1, 4):
            strategy.after_backward()
            strategy.after_step(step)
            seen[comm.rank][step] = values(models[comm.rank])

    together(3, body)
    for rank in range(3):
        for step in (1, 2):
            assert_bits(seen[rank][step], before[rank])
        for name, value in seen[rank][3].items():
            if is_float(name):  # running statistics of the norm travel too
                torch.testing.assert_close(value.double(), expected[name], rtol=1e-6, atol=0)
                assert torch.equal(value, seen[0][3][name])
            else:
                assert value == rank


@pytest.mark.parametrize("tau", [1, 2, 5])
def test_persyn_counts_a_message_every_tau_steps(tau):
    def body(comm: Rank) -> tuple[Counters, int]:
        model = net(comm.rank)
        strategy = build("persyn", comm, model, tau=tau)
        for step in range(1, 11):
            strategy.after_step(step)
        return strategy.counters, sum(value.nbytes for value in weights_and_buffers(model))

    for counters, size in together(2, body):
        assert (counters.sent, counters.received) == (10 // tau,) * 2
        assert counters.bytes_sent == 10 // tau * size
        assert counters.seconds_blocked > 0


def stepped(rank: int, kind: Callable[..., Optimizer], **keys: Any) -> tuple[nn.Module, Optimizer]:
    """A network and an optimiser that has made two steps with gradients of the rank's own."""
    model = net(rank)
    optimizer = kind(model.parameters(), lr=0.1, **keys)
    for step in (1, 2):
        for parameter in model.parameters():
            parameter.grad = torch.full_like(parameter, step + 10.0 * rank)
        optimizer.step()
    return model, optimizer


OPTIMIZERS = {
    "sgd": (torch.optim.SGD, {"momentum": 0.9}, {"momentum_buffer"}),
    "adam": (torch.optim.Adam, {}, {"exp_avg", "exp_avg_sq"}),
    "adagrad": (torch.optim.Adagrad, {}, {"sum"}),
    "rmsprop": (torch.optim.RMSprop, {"momentum": 0.5}, {"square_avg", "momentum_buffer"}),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("momentum", ["keep", "mix", "reset"])
def test_persyn_treats_running_averages_as_it_is_told(name, momentum):
    kind, keys, averages = OPTIMIZERS[name]
    pairs = [stepped(rank, kind, **keys) for rank in range(2)]
    weights = mean([model for model, _ in pairs])

    def state(rank: int, key: str) -> torch.Tensor:
        model, optimizer = pairs[rank]
        return optimizer.state[model.first.weight][key]

    before = [{key: state(rank, key).clone() for key in averages} for rank in range(2)]
    counts = [state(rank, "step").clone() for rank in range(2)] if name != "sgd" else []

    def body(comm: Rank) -> None:
        model, optimizer = pairs[comm.rank]
        PerSynStrategy(comm, model, optimizer, PerSyn(tau=1, momentum=momentum), Agenda(9, None, 2), seed=0).after_step(
            1
        )

    together(2, body)
    for rank in range(2):
        torch.testing.assert_close(pairs[rank][0].first.weight.double(), weights["first.weight"], rtol=1e-6, atol=0)
        for key in averages:
            own, both = before[rank][key], (before[0][key] + before[1][key]) / 2
            expected = {"keep": own, "mix": both, "reset": torch.zeros_like(own)}[momentum]
            torch.testing.assert_close(state(rank, key), expected)
        if counts:
            # The number of steps is no average; but one that forgets its averages corrects them as a new one does.
            assert state(rank, "step") == (0 if momentum == "reset" else counts[rank])
    if momentum != "keep":
        assert not torch.equal(before[0][min(averages)], before[1][min(averages)])


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_running_averages_are_all_of_them_and_nothing_else(name):
    kind, keys, averages = OPTIMIZERS[name]
    model, optimizer = stepped(0, kind, **keys)
    state = optimizer.state[model.first.weight]
    state |= {"rate": torch.ones(1), "seen": torch.ones_like(model.first.weight, dtype=torch.int64), "name": "text"}
    found = running_averages(optimizer)
    assert len(found) == len(averages) * len(list(model.parameters()))
    expected = {id(state[key]) for state in optimizer.state.values() for key in averages}
    assert {id(value) for value in found} == expected


def test_persyn_every_step_without_momentum_is_sync():
    """The mean of the stepped weights is the weights stepped by the mean gradient."""

    def body(name: str) -> Callable[[Rank], torch.Tensor]:
        def train(comm: Rank) -> torch.Tensor:
            model = linear(0)
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
            config = Sync() if name == "sync" else PerSyn(tau=1)
            strategy = exchange.build(Config(exchange=config), comm, model, optimizer, Agenda(9, None, 2))
            for step in range(1, 5):
                inputs, targets = batch(10 * step + comm.rank)
                nn.functional.mse_loss(model(inputs), targets).backward()
                strategy.after_backward()
                optimizer.step()
                optimizer.zero_grad()
                strategy.after_step(step)
            return model.weight.detach()

        return train

    for one, other in zip(together(2, body("sync")), together(2, body("persyn")), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-14)


# --- stopping ----------------------------------------------------------------------------------------------


def test_alone_a_request_stops_at_once():
    strategy = build("sync", Alone(), net(0))
    assert [strategy.pause(step, requested=step == 2) for step in (1, 2)] == [None, Pause.STOP]


@pytest.mark.parametrize("name", STRATEGIES)
@pytest.mark.parametrize("asked_at", [1, 3, 4, 5, 7, 8, 9])
def test_all_ranks_stop_at_the_same_step_soon_after_one_was_asked(name, asked_at):
    def body(comm: Rank) -> int:
        strategy = build(name, comm, net(0))
        for step in range(1, 100):
            if strategy.pause(step, requested=comm.rank == 1 and step >= asked_at):
                strategy.close()
                return step
        raise AssertionError("nobody stopped")

    stops = together(2, body)
    assert stops[0] == stops[1]
    assert stops[0] % AGREE_EVERY == 0
    assert asked_at < stops[0] <= asked_at + 2 * AGREE_EVERY


def test_without_a_request_nobody_stops():
    def body(comm: Rank) -> list[bool]:
        strategy = build("sync", comm, net(0))
        answers = [strategy.pause(step, requested=False) for step in range(1, 50)]
        strategy.close()
        return answers

    assert together(3, body) == [[None] * 49] * 3


def test_nobody_waits_for_an_answer_before_the_next_agreement():
    world = World(2)
    first, second = (build("sync", Rank(world, rank), net(0)) for rank in range(2))
    for step in range(1, 2 * AGREE_EVERY):  # while the other rank is still on its way
        assert not first.pause(step, requested=True)
    assert not second.pause(AGREE_EVERY, requested=False)
    assert first.pause(2 * AGREE_EVERY, requested=True)
    assert second.pause(2 * AGREE_EVERY, requested=False)


def test_a_question_that_is_open_at_the_end_is_waited_for():
    world = World(2)
    strategies = [build("sync", Rank(world, rank), net(0)) for rank in range(2)]
    for strategy in strategies:
        assert not strategy.pause(AGREE_EVERY, requested=False)
    for strategy in strategies:
        strategy.close()
        assert strategy._question is None
        strategy.close()
    assert [len(answers) for answers in world.questions] == [2]


# --- what travels ------------------------------------------------------------------------------------------


def test_weights_and_float_buffers_travel_each_once():
    model = net(0)
    model.tied = model.first
    found = weights_and_buffers(model)
    assert len(found) == len(list(model.parameters())) + 2  # running mean and variance
    assert all(not value.requires_grad and value.is_floating_point() for value in found)
    found[0].add_(1)
    assert torch.equal(found[0], model.spare.detach())  # no copies: what is put in is in the model


# --- how far apart they are --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "config",
    [NoExchange(consensus_every=4), PerSyn(tau=2, consensus_every=4), Easgd(tau=4, mode="sync", consensus_every=4)],
)
def test_how_far_apart_ranks_in_step_are_is_measured_before_they_meet_and_told_in_time(config):
    """Pauses in between change nothing; few enough weights that the sketch is exact."""

    def body(comm: Rank) -> Any:
        model = nn.Linear(5, 3, bias=False)
        with torch.no_grad():
            model.weight.fill_(0.0)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        strategy = exchange.build(Config(exchange=config), comm, model, optimizer, Agenda(1000, None, comm.size))
        before = {}
        strategy.resume(0, 0)
        for step in range(1, 15):
            with torch.no_grad():
                model.weight.add_(torch.full((3, 5), float(comm.rank + 1) * step))
            before[step] = model.weight.detach().double().flatten().clone()
            strategy.after_step(step)
            if step in {6, 12}:
                strategy.quiesce()
                strategy.resume(0, step)
        told = list(strategy.consensus_errors)
        strategy.quiesce()
        assert strategy.consensus_errors == told  # the last had come back at the pause
        return before, told

    befores, told = zip(*together(3, body), strict=True)
    assert told[0] == told[1] == told[2]
    assert [step for step, _ in told[0]] == [4, 8, 12]
    for step, error in told[0]:
        weights = torch.stack([before[step] for before in befores])
        assert error == pytest.approx(float(((weights - weights.mean(0)) ** 2).sum()), rel=1e-5)
        assert error > 0


def test_a_sketch_that_is_late_on_one_rank_starts_at_the_same_place_on_all(monkeypatch):
    """On a CUDA device it has to be waited for: means are told apart by the order in which they start."""
    late = {}
    monkeypatch.setattr(Sketch, "ready", lambda _sketch, *, wait=False: wait or not late[threading.get_ident()])

    def body(comm: Rank) -> list[str]:
        late[threading.get_ident()] = comm.rank == 1
        strategy = build("persyn", comm, net(comm.rank), consensus_every=4, tau=4)
        strategy.resume(0, 0)
        for step in range(1, 10):
            strategy.after_step(step)
        strategy.quiesce()
        return [what for what in comm.whats if "measure" in what or "average" in what]

    first, second = together(2, body)
    assert first == second
    assert len(first) >= 4


def test_nothing_is_measured_where_nobody_asks():
    def body(comm: Rank) -> list[str]:
        strategy = build("persyn", comm, net(comm.rank), consensus_every=None, tau=50)
        strategy.resume(0, 0)
        for step in range(1, 10):
            strategy.after_step(step)
        strategy.quiesce()
        return comm.whats

    assert together(2, body) == [[], []]
