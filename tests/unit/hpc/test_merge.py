"""One network of many, against means by hand; and where in the epoch another number of ranks goes on."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from hpc import exchange
from hpc.alone import Alone
from hpc.checkpoint import Loaded
from hpc.config.root import Config
from hpc.config.training import Downpour, Easgd, Gossip, NoExchange, PerSyn, Sync
from hpc.engine import Engine, Place
from hpc.exchange import Agenda, mass, weights_and_buffers
from hpc.exchange.downpour import Downpour as DownpourStrategy
from hpc.exchange.none import NoExchange as NoneStrategy
from hpc.merge import merge
from hpc.record import Record
from hpc.state import split

RANKS = 3
STRATEGIES = {
    "none": NoExchange(),
    "sync": Sync(),
    "persyn": PerSyn(tau=2),
    "gossip": Gossip(rho=0.5),
    "easgd in step": Easgd(tau=2, mode="sync"),
    "easgd": Easgd(tau=2),
    "downpour": Downpour(tau=2),
    "a master by itself": Easgd(tau=2, master="own"),
}
MASSES = [mass.UNITS // 2, mass.UNITS, 3 * mass.UNITS // 2]


def parts(seed: int, config: Any) -> tuple[nn.Module, torch.optim.Optimizer, exchange.Exchange]:
    """What a rank has made of the seed's random numbers: a network, its optimiser after a step, a strategy."""
    chance = torch.Generator().manual_seed(seed)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for parameter in model.parameters():
        parameter.grad = torch.rand(parameter.shape, generator=chance)
    optimizer.step()
    for value in weights_and_buffers(model):
        value.copy_(torch.rand(value.shape, generator=chance))
    model[1].num_batches_tracked.fill_(seed)
    return model, optimizer, exchange.build(Config(exchange=config), Alone(), model, optimizer, Agenda(9, None, 1))


def momenta(optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    return [state["momentum_buffer"] for state in optimizer.state.values()]


def mean(rows: list[list[torch.Tensor]], weights: list[float]) -> list[torch.Tensor]:
    columns = zip(*rows, strict=True)
    return [sum(w * v.double() for w, v in zip(weights, column, strict=True)).float() for column in columns]


def assert_same(found: list[torch.Tensor], expected: list[torch.Tensor]) -> None:
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=2e-7, atol=0)


@pytest.mark.parametrize("name", STRATEGIES)
def test_the_merged_network_is_what_the_ranks_stood_for(name):
    config = STRATEGIES[name]
    ranks = [parts(0 if name == "sync" else seed, config) for seed in range(RANKS)]
    centre = [value.flatten() for value in weights_and_buffers(parts(50, config)[0])]
    by_itself = name == "a master by itself"
    own: list[dict[str, Any]] = []
    for rank, (model, optimizer, strategy) in enumerate(ranks):
        if name == "sync":  # what each measures by itself
            model[1].running_mean.fill_(rank)
        parameters, buffers = split(model)
        network = {"parameters": parameters, "optimizer": optimizer.state_dict()}
        if by_itself and rank == 0:
            network["optimizer"] = {**network["optimizer"], "state": {}}
        state = strategy.state_dict() | ({"masses": [MASSES[rank]]} if name == "gossip" else {})
        if name == "easgd in step":
            views = zip(centre, weights_and_buffers(model), strict=True)
            state["centre"] = [flat.view(value.shape) for flat, value in views]
        elif "centre" in state:
            state["centre"] = torch.cat(centre) if rank == 0 else None
        own.append({"network": network, "buffers": buffers, "exchange": state, "taken": 10 + rank})
    shared = {"network": own[0]["network"]} if name == "sync" else {}
    if name == "sync":
        own = [{key: value for key, value in state.items() if key != "network"} for state in own]

    model, optimizer, strategy = parts(99, config)
    assert merge(Loaded(7, shared, None, RANKS, own.__getitem__), model, optimizer, strategy) == 10 + 11 + 12

    weights = {"none": [1.0, 0.0, 0.0], "gossip": [1 / 6, 1 / 3, 1 / 2]}.get(name, [1 / 3] * 3)
    expected = mean([weights_and_buffers(model) for model, _, _ in ranks], weights)
    if "centre" in own[0]["exchange"]:
        expected = [flat.view(value.shape) for flat, value in zip(centre, expected, strict=True)]
    assert_same(weights_and_buffers(model), expected)
    if name == "sync":
        assert all(torch.equal(*pair) for pair in zip(model.parameters(), ranks[0][0].parameters(), strict=True))
    plain = {"none": [1.0, 0.0, 0.0]}.get(name, [0.0, 0.5, 0.5] if by_itself else [1 / 3] * 3)
    assert_same(momenta(optimizer), mean([momenta(optimizer) for _, optimizer, _ in ranks], plain))
    assert model[1].num_batches_tracked == (0 if name in {"none", "sync"} else RANKS - 1)


@pytest.mark.parametrize("name", ["easgd in step", "easgd", "downpour"])
def test_one_rank_alone_stood_for_its_own_network(name):
    before, optimizer, strategy = parts(0, STRATEGIES[name])
    parameters, buffers = split(before)
    network = {"parameters": parameters, "optimizer": optimizer.state_dict()}
    own = {"network": network, "buffers": buffers, "exchange": strategy.state_dict(), "taken": 5}
    model, optimizer, strategy = parts(1, STRATEGIES[name])
    assert merge(Loaded(5, {}, None, 1, lambda _: own), model, optimizer, strategy) == 5
    assert all(
        torch.equal(*pair) for pair in zip(model.state_dict().values(), before.state_dict().values(), strict=True)
    )


def shared_out(strategy: Any, steps: int, epoch: int, total: int, before: int) -> Engine:
    engine = Engine.__new__(Engine)
    engine.place, engine.record, engine._steps = Place(epoch=epoch), Record(), steps
    engine.parts = SimpleNamespace(comm=strategy.comm, exchange=strategy)
    engine._share_out(total, before, 4)
    return engine


WORLDS = {
    "epoch": st.integers(0, 5),
    "before": st.integers(1, 100),
    "within": st.integers(0, 99),
    "steps": st.integers(1, 50),
    "ranks": st.integers(2, 9),
}


@given(**WORLDS)
def test_ranks_in_step_go_on_at_a_step_of_the_same_epoch(epoch, before, within, steps, ranks):
    within %= before
    strategy = NoneStrategy.__new__(NoneStrategy)
    strategy.comm, strategy.workers = SimpleNamespace(size=ranks), ranks
    engine = shared_out(strategy, steps, epoch, epoch * before + within, before)
    assert engine.taken == engine.place.step == epoch * steps + steps * within // before < (epoch + 1) * steps
    assert engine.record["resized"].last() == {"step": engine.taken, "ranks_before": 4, "ranks": ranks}


@given(**WORLDS, own=st.booleans())
def test_ranks_at_their_own_speed_go_on_with_the_same_part_of_the_epoch(epoch, before, within, steps, ranks, own):
    workers, taken = ranks - own, []
    for rank in range(ranks):
        strategy = DownpourStrategy.__new__(DownpourStrategy)
        strategy.comm = SimpleNamespace(rank=rank, size=ranks)
        strategy.workers, strategy.trains = workers, rank >= own
        taken.append(shared_out(strategy, steps, epoch, epoch * before + within, before).taken)
    assert sum(taken) == workers * steps * (epoch * before + within) // before
    assert max(taken) - min(taken[own:]) <= 1
    assert not (own and taken[0])
