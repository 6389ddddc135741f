"""Every strategy follows a cut: what the ranks stand for after it is the cut of what they stood for before."""

import copy
import importlib.util
import time
from pathlib import Path

import pytest
import torch
from torch import nn

from hpc import exchange
from hpc.config.pruning import Norm
from hpc.config.root import Config
from hpc.config.training import Compute, Downpour, Easgd, Gossip, NoExchange, PerSyn, Sync, workers
from hpc.cutting import Cutting
from hpc.errors import RunError
from hpc.exchange import mass
from hpc.exchange.agenda import Agenda, Pause
from hpc.exchange.contents import averages_of, weights_and_buffers
from hpc.exchange.form import in_slices, keyed
from hpc.pruning import Decision
from structlearn.structure import Plan, Structure

SUPPORT = Path(__file__).parents[2] / "support"


def support(name):
    spec = importlib.util.spec_from_file_location(name, SUPPORT / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


channel, masters, least = support("channel"), support("masters"), support("least")
World, together, Least = channel.World, channel.together, least.Least
EXAMPLE = torch.zeros(2, 6, dtype=torch.float64)


class Mending(Least):
    """A method that has more to do than to cut: it doubles the last layer's weights, and halves their averages."""

    def _mend(self, cut):
        cut.factors["4.weight"] = torch.full((1, 1), 2.0, dtype=torch.float64)
        with torch.no_grad():
            self.structure.model[4].weight.mul_(2.0)


def net(seed):
    chance = torch.Generator().manual_seed(seed)
    made = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 5), nn.Linear(5, 3)).double()
    with torch.no_grad():
        for value in weights_and_buffers(made):
            value.copy_(torch.rand(value.shape, generator=chance, dtype=torch.float64) + 0.5)
    return made


def values(model):
    return {name: value.detach().clone() for name, value in model.state_dict().items() if value.is_floating_point()}


class Rank:
    """One rank with its network, which is cut at each pause."""

    def __init__(self, comm, model, pruner, config, steps=12, lr=0.01):
        self.comm, self.model, self.taken, self.epoch = masters.speak(comm), model, 0, 0
        self.optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
        config = Config(exchange=config, pruning=Norm(), compute=Compute(deadline_s=channel.PATIENCE_S))
        agenda = Agenda(steps, None, workers(config.exchange, comm.size))
        self.exchange = exchange.build(config, comm, model, self.optimizer, agenda)
        self.cutting = Cutting(pruner, 1)

    def step(self):
        chance = torch.Generator().manual_seed(1000 * self.taken + self.comm.rank)
        for parameter in self.model.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=chance, dtype=torch.float64)
        self.exchange.after_backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.taken += 1
        self.exchange.after_step(self.taken)

    def until_pause(self):
        self.exchange.resume(self.epoch, self.taken)
        pause = None
        while pause is None:
            if self.exchange.trains:
                self.step()
                time.sleep(0.0005 * (self.comm.rank + 1))
            else:
                self.exchange.attend()
            pause = self.exchange.pause(self.taken, requested=False)
        assert pause is Pause.EPOCH
        self.exchange.quiesce()
        self.epoch += 1

    def by_hand(self):
        """What the ranks stand for, cut: on a copy."""
        with self.exchange.consensus():
            pruner = copy.deepcopy(self.cutting._pruner)
            pruner.cut(pruner.plan())
            return values(pruner.structure.model)

    def stood_for(self):
        with self.exchange.consensus():
            return values(self.model)


STRATEGIES = {
    "none": NoExchange(consensus_every=5),
    "sync": Sync(),
    "persyn": PerSyn(tau=5, consensus_every=7),
    "persyn, momentum too": PerSyn(tau=5, momentum="mix", consensus_every=7),
    "easgd in step": Easgd(tau=3, mode="sync", alpha=0.2),
    "easgd": Easgd(tau=3, consensus_every=5),
    "easgd, a master by itself": Easgd(tau=3, master="own", consensus_every=5),
    "downpour": Downpour(tau=3),
    "downpour, a master by itself": Downpour(tau=5, master="own", progress="inline"),
    "gossip": Gossip(rho=0.5, consensus_every=5),
    "gossip of slices": Gossip(rho=0.7, slices=3, progress="inline", consensus_every=5),
    "gossip of momentum": Gossip(rho=0.7, slices=2, momentum="mix", payload="int8"),
}


@pytest.mark.parametrize("kind", [Least, Mending])
@pytest.mark.parametrize("name", STRATEGIES)
def test_what_the_ranks_stand_for_is_cut(name, kind):
    size, models = 3, [net(0 if name == "sync" else rank) for rank in range(3)]
    pruners = [kind(Structure(model, EXAMPLE)) for model in models]
    world = World(size, delay_s=0.002)

    def body(comm):
        rank = Rank(comm, models[comm.rank], pruners[comm.rank], STRATEGIES[name])
        for cuts in (1, 2, 3):
            rank.until_pause()
            expected = rank.by_hand()
            assert rank.cutting.cut(rank.epoch, rank.exchange, rank.optimizer)
            assert (rank.cutting.version, rank.exchange.structure) == (cuts, cuts)
            now = rank.stood_for()
            assert now.keys() == expected.keys()
            for key, value in expected.items():
                assert value.shape == now[key].shape
                torch.testing.assert_close(now[key], value, rtol=1e-12, atol=1e-12)
            for parameter in rank.model.parameters():
                assert all(value.shape == parameter.shape for value in averages_of(rank.optimizer, parameter))
            if hasattr(rank.exchange, "masses"):
                everyone = comm.gather(rank.exchange.masses, "masses")
                assert {sum(units) for units in zip(*everyone, strict=True)} == {size * mass.UNITS}
        assert models[comm.rank][0].weight.shape == (5, 6)
        assert models[comm.rank][3].weight.shape == (2, 5)
        rank.until_pause()  # and goes on
        rank.exchange.close()
        digests = comm.gather(rank.cutting._pruner.structure.plan.digest, "digests")
        assert len(set(digests)) == 1
        return rank.exchange.counters, rank.exchange.consensus_errors

    counters, errors = zip(*together(world, body), strict=True)
    assert world.left() == (0, 0)
    if name == "sync":
        for one, other in zip(models[0].parameters(), models[1].parameters(), strict=True):
            assert torch.equal(one, other)
    elif name != "none":
        assert sum(each.sent for each in counters) > 0
        assert errors[0] == errors[1] == errors[2]


# --- gossip that does not rest ------------------------------------------------------------------------------

NEVER = 1e-12  # a rho at which nobody pushes


def snapshot(rank):
    """The pruner with its network, and the optimiser, as they are: to be cut by hand."""
    return copy.deepcopy((rank.cutting._pruner, rank.optimizer))


def carried(before, plans, momentum):
    """The tensors of a network of before, with its averages, after some cuts by hand."""
    pruner, optimizer = copy.deepcopy(before)
    for plan in plans:
        pruner.cut(plan, optimizer)
    return keyed(pruner.structure.model, optimizer if momentum == "mix" else None)


class Pushing(Rank):
    """A rank that stands still; rank 0 pushes to rank 1 after each of its steps, rank 1 never."""

    def __init__(self, comm, model, pruner, **keys):
        config = Gossip(rho=1.0 if comm.rank == 0 else NEVER, peers="ring", consensus_every=None, **keys)
        super().__init__(comm, model, pruner, config, steps=10**6, lr=0.0)
        self.momentum, self.inline = keys["momentum"], keys["progress"] == "inline"
        self.exchange.resume(0, 0)

    def tensors(self):
        current = keyed(self.model, self.optimizer if self.momentum == "mix" else None)
        return {key: value.clone() for key, value in current.items()}

    def follow(self, plan):
        self.cutting.follow(Decision(plan), self.exchange, self.optimizer)

    def rest(self):
        """Stop, as all ranks do, and come to rest."""
        while self.exchange.pause(self.taken, requested=True) is None:
            if self.inline:
                self.exchange._traffic.pump()
            time.sleep(0.001)
        self.exchange.quiesce()

    def wait(self, until):
        """Look at the post until something is so."""
        end = time.monotonic() + channel.PATIENCE_S
        while not until():
            assert time.monotonic() < end
            self.taken += 1
            self.exchange.after_step(self.taken)
            time.sleep(0.001)


ROUNDING = {"float32": 2**-23, "bfloat16": 2**-8, "int8": 1 / 127}
"""Of a payload, relative to the largest number."""


def assert_mixed(rank, before, came, share, payload, whole=1 / 3):
    """The tensors of one slice have moved by the share towards what came; the others have stayed."""
    assert share == whole
    now = rank.tensors()
    assert now.keys() == before.keys()
    for key, value in now.items():
        expected = before[key] + share * (came[key] - before[key]) if key in came else before[key]
        atol = share * ROUNDING[payload] * float(max(each.abs().max() for each in came.values()))
        torch.testing.assert_close(value, expected, rtol=0, atol=atol if key in came else 0)
    assert any((now[key] != before[key]).any() for key in came)


KEYS = [
    {"momentum": "keep", "slices": 1, "payload": "float32", "progress": "inline"},
    {"momentum": "mix", "slices": 1, "payload": "float32", "progress": "thread"},
    {"momentum": "keep", "slices": 3, "payload": "float32", "progress": "thread"},
    {"momentum": "mix", "slices": 2, "payload": "int8", "progress": "inline"},
    {"momentum": "keep", "slices": 1, "payload": "int8", "progress": "thread"},
    {"momentum": "reset", "slices": 1, "payload": "bfloat16", "progress": "inline"},
]


def ids(keys):
    return ", ".join(map(str, keys.values()))


@pytest.mark.parametrize("kind", [Least, Mending])
@pytest.mark.parametrize("cuts", [1, 2])
@pytest.mark.parametrize("keys", KEYS, ids=ids)
def test_a_message_of_before_a_cut_is_carried_over_it_and_its_mass_is_added(keys, cuts, kind):
    models = [net(rank) for rank in range(2)]
    pruners = [kind(Structure(model, EXAMPLE)) for model in models]
    world, plans = World(2, eager=1.0), []
    world.held.add((0, 1))
    sent = []

    def body(comm):
        rank = Pushing(comm, models[comm.rank], pruners[comm.rank], **keys)
        if comm.rank == 0:
            rank.step()
            sent.append(snapshot(rank))
            assert rank.exchange.counters.sent == 1
            rank.wait(rank.exchange._traffic.free)
        comm.barrier("a message is under way")
        for cut in range(cuts):
            if comm.rank == 0:
                plans.append(rank.cutting._pruner.plan())
            comm.barrier("a plan is made")
            rank.follow(plans[cut])
        if comm.rank == 0:
            world.held.clear()
        comm.barrier("it may arrive")
        if comm.rank == 1:
            before, units = rank.tensors(), list(rank.exchange.masses)
            rank.wait(lambda: rank.exchange.counters.received)
            part = in_slices(list(before), rank.exchange._ends)[0] if keys["slices"] > 1 else list(before)
            came = {key: value for key, value in carried(sent[0], plans, keys["momentum"]).items() if key in part}
            assert_mixed(rank, before, came, mass.share(units[0], mass.UNITS // 2), keys["payload"])
            assert rank.exchange.masses == [units[0] + mass.UNITS // 2, *units[1:]]
        comm.barrier("it has arrived")
        rank.rest()
        everyone = comm.gather(rank.exchange.masses, "masses")
        assert [sum(units) for units in zip(*everyone, strict=True)] == [2 * mass.UNITS] * keys["slices"]
        rank.exchange.close()

    together(world, body)
    assert world.left() == (0, 0)


@pytest.mark.parametrize("keys", KEYS, ids=ids)
def test_a_message_of_after_a_cut_waits_for_the_receivers_own(keys):
    models = [net(rank) for rank in range(2)]
    pruners = [Mending(Structure(model, EXAMPLE)) for model in models]
    world, plan, sent = World(2, eager=1.0), pruners[0].plan(), []

    def body(comm):
        rank = Pushing(comm, models[comm.rank], pruners[comm.rank], **keys)
        if comm.rank == 0:
            rank.follow(plan)
            rank.step()
            sent.append(snapshot(rank))
            assert rank.exchange.counters.sent == 1
        comm.barrier("a message is under way")
        if comm.rank == 1:
            before = rank.tensors()
            rank.wait(lambda: rank.exchange._early)
            rank.exchange.after_step(rank.taken)
            assert rank.exchange.counters.received == 0
            assert rank.exchange.masses == [mass.UNITS] * keys["slices"]
            assert all(torch.equal(value, before[key]) for key, value in rank.tensors().items())
            rank.follow(plan)
            before = rank.tensors()
            rank.wait(lambda: rank.exchange.counters.received)
            part = in_slices(list(before), rank.exchange._ends)[0] if keys["slices"] > 1 else list(before)
            came = {key: value for key, value in carried(sent[0], [], keys["momentum"]).items() if key in part}
            assert_mixed(rank, before, came, mass.share(mass.UNITS, mass.UNITS // 2), keys["payload"])
            assert rank.exchange.masses[0] == mass.UNITS + mass.UNITS // 2
        comm.barrier("it has arrived")
        rank.rest()
        everyone = comm.gather(rank.exchange.masses, "masses")
        assert [sum(units) for units in zip(*everyone, strict=True)] == [2 * mass.UNITS] * keys["slices"]
        rank.exchange.close()

    together(world, body)


def test_ranks_that_would_cut_differently_do_what_rank_0_has_decided():
    """Of near-ties of norms CPUs of different kinds make different orders; what they absorb is rounded differently."""
    models = [net(rank) for rank in range(3)]
    pruners = [Least(Structure(model, EXAMPLE), least=2 if place < 2 else 8) for place, model in enumerate(models)]
    followed = {}

    def body(comm):
        rank = Rank(comm, models[comm.rank], pruners[comm.rank], PerSyn(tau=5))
        rank.cutting = Cutting(pruners[comm.rank], 1, lambda: torch.ones(4, 6, dtype=torch.float64))
        rank.until_pause()
        with torch.no_grad():  # the unit that goes says a constant
            models[comm.rank][0].weight[0], models[comm.rank][3].weight[:, 0] = 0.0, 1e-3
        assert rank.cutting.cut(1, rank.exchange, rank.optimizer)
        followed[comm.rank] = rank.cutting.last

    together(World(3), body)
    assert followed[0].shifts
    assert followed[0] == followed[1] == followed[2]
    assert [model[0].weight.shape for model in models] == [(7, 6)] * 3
    assert len({pruner.structure.plan.digest for pruner in pruners}) == 1


def test_ranks_that_hold_different_structures_after_a_cut_say_so():
    models = [net(rank) for rank in range(3)]
    pruners = [Least(Structure(model, EXAMPLE)) for model in models]

    def body(comm):
        rank = Rank(comm, models[comm.rank], pruners[comm.rank], PerSyn(tau=5))
        rank.until_pause()
        if comm.rank == 2:
            follow = rank.cutting.follow

            def faulty(decision, *others):
                (name, units), *rest = decision.plan.keep.items()
                follow(Decision(Plan({name: units[::-1], **dict(rest)})), *others)

            rank.cutting.follow = faulty
        with pytest.raises(RunError, match=r"rank\(s\) 2 hold a network of another structure than rank 0"):
            rank.cutting.cut(1, rank.exchange, rank.optimizer)

    together(World(3), body)
