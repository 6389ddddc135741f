"""Gossip among ranks that are threads of this process: what is conserved, whatever their speeds, and how it fails."""

import importlib.util
import json
import threading
import time
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from hpc import exchange
from hpc.alone import Alone
from hpc.config.root import Config
from hpc.config.training import Compute, Gossip
from hpc.errors import ConfigError, RankTimeoutError
from hpc.exchange import mass, traffic
from hpc.exchange.agenda import Agenda, Pause
from hpc.exchange.contents import weights_and_buffers
from hpc.exchange.replay import Kind
from hpc.exchange.slices import slices_of

_spec = importlib.util.spec_from_file_location("channel", Path(__file__).parents[2] / "support" / "channel.py")
assert _spec is not None
assert _spec.loader is not None
channel = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(channel)
World, together = channel.World, channel.together

PROGRESS = ("inline", "thread")
NEVER = 1e-12  # a rho at which nobody pushes


class Net(nn.Module):
    """Weights, filters that lie channels last, float buffers and an integer one."""

    def __init__(self, seed):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.linear = nn.Linear(5, 7)
        self.filters = nn.Conv2d(2, 3, 2).to(memory_format=torch.channels_last)
        self.norm = nn.BatchNorm1d(3)
        with torch.no_grad():
            for value in weights_and_buffers(self):
                value.copy_(torch.randn(value.shape, generator=generator))


class Run:
    """One rank with its network, optimiser and exchange."""

    def __init__(self, comm, steps=10**6, every=None, *, seed=0, lr=0.0, deadline_s=channel.PATIENCE_S, **keys):
        self.comm, self.taken, self.epoch = comm, 0, 0
        self.model = Net(seed * 100 + comm.rank)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=lr, momentum=0.9)
        self.put_gradients()
        keys = {"rho": 0.5, "progress": "inline", "consensus_every": None, **keys}
        self.config = Config(seed=seed, exchange=Gossip(**keys), compute=Compute(deadline_s=deadline_s))
        self.agenda = (steps, every, comm.size)
        self.events = []
        self.exchange = self.made()

    def put_gradients(self):
        for place, parameter in enumerate(self.model.parameters()):
            parameter.grad = torch.full_like(parameter, 1.0 + place + 10 * self.comm.rank)

    def made(self):
        built = exchange.build(self.config, self.comm, self.model, self.optimizer, Agenda(*self.agenda))
        built.events = self.events
        return built

    def step(self, *, requested=False):
        self.optimizer.step()
        self.taken += 1
        self.exchange.after_step(self.taken)
        return self.exchange.pause(self.taken, requested=requested)

    def until_pause(self, pace=lambda: 0.0, asked_at=None):
        self.exchange.resume(self.epoch, self.taken)
        why = None
        while why is None:
            time.sleep(pace())
            why = self.step(requested=asked_at is not None and self.taken + 1 >= asked_at)
        self.exchange.quiesce()
        self.epoch += why is Pause.EPOCH
        return why

    def on(self, pace):
        """Train for ever."""
        while True:
            assert self.step() is None
            time.sleep(pace)

    def restart(self):
        state = json.loads(json.dumps(self.exchange.state_dict()))
        self.exchange.close()
        self.exchange = self.made()
        self.exchange.load_state_dict(state)
        assert self.exchange.state_dict() == state

    def weighted(self):
        """This rank's part of the weighted mean, in float64."""
        values = [value.double() for value in weights_and_buffers(self.model)]
        for part, units in zip(slices_of(values, len(self.exchange.masses)), self.exchange.masses, strict=True):
            for view in part:
                view.mul_(units / (mass.UNITS * self.comm.size))
        return torch.cat([value.reshape(-1) for value in values])

    def mean(self):
        whole = self.weighted()
        self.comm.sum_(whole, "the weighted mean")
        return whole

    def check(self):
        """Nothing is lost and nothing is made. Collective."""
        masses = self.comm.gather(self.exchange.masses, "masses")
        assert [sum(units) for units in zip(*masses, strict=True)] == [mass.UNITS * self.comm.size] * len(masses[0])
        counters = self.exchange.counters
        everyone = self.comm.gather((counters.sent, counters.received, counters.mass), "counters")
        assert sum(sent for sent, _, _ in everyone) == sum(received for _, received, _ in everyone)
        assert sum(share for _, _, share in everyone) == pytest.approx(1.0, abs=1e-12)
        shares = [units / (mass.UNITS * self.comm.size) for units in self.exchange.masses]
        assert counters.mass == pytest.approx(sum(shares) / len(shares), rel=1e-12)


def moved(logs, kind):
    """The masses of all messages between each two ranks."""
    found = defaultdict(list)
    for log in logs:
        for what, rank, peer, _, units in log:
            if what == kind:
                found[(rank, peer) if kind is Kind.SEND else (peer, rank)].append(units)
    return {pair: sorted(units) for pair, units in found.items()}


def bits(model):
    return [value.clone() for value in model.state_dict().values()]


# --- what is conserved ---------------------------------------------------------------------------------

CHAOS = {
    "size": st.integers(2, 5),
    "seed": st.integers(0, 2**20),
    "rho": st.floats(0.05, 1.0),
    "slices": st.sampled_from([1, 1, 2, 5]),
    "progress": st.sampled_from(PROGRESS),
    "payload": st.sampled_from(["float32", "float32", "bfloat16", "int8"]),
    "peers": st.sampled_from(["uniform", "ring", "exponential"]),
    "momentum": st.sampled_from(["keep", "mix", "reset"]),
    "steps": st.integers(1, 25),
    "every": st.none() | st.integers(1, 10),
    "epochs": st.integers(1, 2),
    "speeds": st.lists(st.sampled_from([0.0, 0.0005, 0.003]), min_size=5, max_size=5),
    "delay_s": st.sampled_from([0.0, 0.001, 0.008]),
    "eager": st.sampled_from([0.0, 0.5, 1.0]),
    "restart": st.booleans(),
    "asked_at": st.none() | st.integers(1, 20),
    "consensus_every": st.none() | st.integers(1, 5),
}


@pytest.mark.slow
@given(**CHAOS)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_whatever_the_speeds_nothing_is_lost(size, seed, delay_s, eager, epochs, speeds, restart, asked_at, **keys):
    world = World(size, seed, delay_s, eager)

    def body(comm):
        run = Run(comm, seed=seed, **keys)
        before, reasons, asked = run.mean(), [], asked_at if comm.rank == size - 1 else None
        while run.epoch < epochs:
            why = run.until_pause(lambda: speeds[comm.rank], asked)
            reasons.append(why)
            if why is Pause.STOP:
                asked = None
            run.check()
            if keys["payload"] == "float32":
                assert (run.mean() - before).abs().max() <= 1e-6 * before.abs().max()
            if restart:
                run.restart()
        run.exchange.close()
        return reasons, run.events, run.taken, run.exchange.counters, run.exchange.consensus_errors

    reasons, logs, taken, counters, errors = zip(*together(world, body), strict=True)
    assert len(set(map(tuple, reasons))) == 1  # all pause alike
    assert moved(logs, Kind.SEND) == moved(logs, Kind.RECEIVE)
    assert sum(map(len, moved(logs, Kind.SEND).values())) == sum(each.sent for each in counters)
    assert world.left() == (0, 0)
    assert sum(taken) >= epochs * keys["steps"] * size
    assert all(each == errors[0] for each in errors)


@pytest.mark.parametrize("progress", PROGRESS)
def test_own_masses_follow_from_what_was_sent_and_received(progress):
    def body(comm):
        run = Run(comm, steps=30, rho=0.7, progress=progress)
        run.until_pause(lambda: 0.0005)
        run.exchange.close()
        own = mass.UNITS
        for kind, rank, _, stands, units in run.events:
            assert rank == comm.rank
            if kind is Kind.SEND:
                assert (stands, units) == mass.halve(own)
                own = stands
            elif kind is Kind.RECEIVE:
                assert stands == own
                own += units
        assert run.exchange.masses == [own]
        return run.events

    logs = together(World(3, delay_s=0.001), body)
    assert all(kind in {kind for log in logs for kind, *_ in log} for kind in Kind)


@pytest.mark.parametrize("slices", [1, 2, 3])
@pytest.mark.parametrize("size", [4, 5])
def test_every_slice_reaches_everybody_on_an_exponential_graph(size, slices):
    """Were slices and distances to turn together, a slice might travel even distances only."""

    def body(comm):
        run = Run(comm, steps=60, rho=1.0, peers="exponential", slices=slices)
        with torch.no_grad():
            for value in weights_and_buffers(run.model):
                value.fill_(float(comm.rank))
        run.until_pause(lambda: 0.0002)
        run.exchange.close()
        return torch.cat([value.reshape(-1) for value in weights_and_buffers(run.model)])

    found = torch.stack(together(World(size), body))
    assert (found.amax(0) - found.amin(0)).max() < 0.5  # apart by size - 1 at the start


# --- one message ---------------------------------------------------------------------------------------


def one_message(momentum, **keys):
    """(rank 1 before, after) one message of rank 0: (weights and buffers, running averages)."""

    def body(comm):
        run = Run(comm, steps=1, rho=1.0 if comm.rank == 0 else NEVER, momentum=momentum, peers="ring", **keys)
        run.exchange.resume(0, 0)
        run.put_gradients()  # momentum: mix has made the running averages meanwhile, with gradients of its own
        run.optimizer.step()
        held = [run.optimizer.state[parameter]["momentum_buffer"] for parameter in run.model.parameters()]
        before = [value.clone() for value in weights_and_buffers(run.model)], [value.clone() for value in held]
        run.taken = 1
        run.exchange.after_step(1)
        while run.exchange.pause(run.taken, requested=False) is None:
            run.taken += 1
        run.exchange.quiesce()
        run.exchange.close()
        assert run.exchange.counters.sent == (1 if comm.rank == 0 else 0)
        return before, (weights_and_buffers(run.model), held)

    return together(World(2), body)


@pytest.mark.parametrize("progress", PROGRESS)
@pytest.mark.parametrize("momentum", ["keep", "mix", "reset"])
def test_a_message_moves_the_receiver_by_its_share_and_momentum_as_asked(momentum, progress):
    (sender, sender_after), (old, new) = one_message(momentum, progress=progress)
    for came, own, mixed in zip(sender[0], old[0], new[0], strict=True):  # c = (1/2) / (1 + 1/2)
        torch.testing.assert_close(mixed, own + (came - own) / 3, rtol=1e-6, atol=1e-6)
    for came, own, mixed in zip(sender[1], old[1], new[1], strict=True):
        assert (came != own).all()
        expected = {"keep": own, "mix": own + (came - own) / 3, "reset": torch.zeros_like(own)}[momentum]
        torch.testing.assert_close(mixed, expected, rtol=1e-6, atol=0)
    for before, after in zip(sender, sender_after, strict=True):  # who sends keeps all
        assert all(map(torch.equal, before, after))


@pytest.mark.parametrize("slices", [2, 5])
def test_a_slice_carries_the_running_averages_of_its_own_weights(slices):
    _, (old, new) = one_message("mix", slices=slices)
    weights, averages = (
        [before != after for before, after in zip(*pair, strict=True)] for pair in zip(old, new, strict=True)
    )
    assert 0 < sum(int(moved.sum()) for moved in weights) < sum(moved.numel() for moved in weights)
    for weight, average in zip(weights, averages, strict=False):  # buffers come last, and have none
        assert torch.equal(weight, average)


@pytest.fixture
def matrices(tmp_path):
    """Two files of numbers for three ranks."""
    for name, chance in (("one", 0.5), ("other", 0.25)):
        rows = f"0 {chance} {1 - chance}\n{1 - chance} 0 {chance}\n{chance} {1 - chance} 0\n"
        (tmp_path / name).write_text(rows)
    return [str(tmp_path / name) for name in ("one", "other")]


def test_a_run_goes_on_with_the_matrix_that_it_began_with(matrices):
    def body(comm):
        run = Run(comm, peers="matrix", matrix=matrices[0])
        state = run.exchange.state_dict()
        run.restart()
        other = Run(comm, peers="matrix", matrix=matrices[1])
        with pytest.raises(ConfigError, match=r"exchange\.matrix: .* other numbers than when this run was trained"):
            other.exchange.load_state_dict(state)

    together(World(3), body)


@pytest.mark.parametrize("progress", PROGRESS)
def test_the_time_that_a_rank_waits_at_a_pause_is_counted(progress):
    def body(comm):
        run = Run(comm, steps=4, progress=progress)
        begun, counters = time.perf_counter(), run.exchange.counters
        run.exchange.resume(0, 0)
        blocked = [counters.seconds_blocked]
        while run.step() is None:
            time.sleep(0.02 * comm.rank)  # the other one is soon far ahead
        blocked.append(counters.seconds_blocked)
        run.exchange.quiesce()
        blocked.append(counters.seconds_blocked)
        with run.exchange.consensus():
            pass
        run.exchange.close()
        return [*blocked, counters.seconds_blocked, time.perf_counter() - begun]

    quick, slow = together(World(2), body)
    assert 0 < quick[0] < quick[1] < quick[2] < quick[3] < quick[4]
    assert 0 < slow[0] <= slow[1] < slow[2] < slow[3] < slow[4]


def test_the_thread_is_on_the_device_of_its_rank(monkeypatch):
    """CUDA keeps the device for each thread: on another one, a context of its own would take memory."""
    seen = []
    cuda = SimpleNamespace(
        is_initialized=lambda: True,
        current_device=lambda: 3,
        set_device=lambda device: seen.append((threading.current_thread().name, device)),
    )
    monkeypatch.setattr(traffic, "torch", SimpleNamespace(cuda=cuda))

    def body(comm):
        run = Run(comm, steps=3, progress="thread")
        run.until_pause()
        run.exchange.close()

    together(World(2), body)
    assert seen == [("exchange", 3)] * 2


def test_integer_buffers_stay_where_they_are():
    def body(comm):
        run = Run(comm, steps=5, rho=1.0)
        run.model.norm.num_batches_tracked.fill_(comm.rank + 1)
        run.until_pause()
        run.exchange.close()
        return int(run.model.norm.num_batches_tracked)

    assert together(World(2), body) == [1, 2]


@pytest.mark.parametrize("progress", PROGRESS)
def test_pushes_that_are_skipped_do_not_halve_the_mass(progress):
    world = World(2, eager=0.0)
    world.held.add((0, 1))

    def body(comm):
        run = Run(comm, rho=1.0 if comm.rank == 0 else NEVER, progress=progress)
        run.exchange.resume(0, 0)
        for _ in range(20):
            assert run.step() is None
        if comm.rank == 0:
            assert (run.exchange.counters.sent, run.exchange.counters.skipped) == (1, 19)
            assert run.exchange.masses == [mass.UNITS // 2]
            world.held.clear()
        comm.barrier("the message may go")
        while run.step(requested=True) is None:
            pass
        run.exchange.quiesce()
        run.check()
        run.exchange.close()

    together(world, body)


def test_a_rank_with_too_little_mass_keeps_it():
    def body(comm):
        run = Run(comm, steps=20, rho=1.0 if comm.rank == 0 else NEVER)
        if comm.rank == 0:
            run.exchange.masses = [5]
        run.until_pause(lambda: 0.002)
        run.exchange.close()
        return run.exchange.masses[0], run.exchange.counters

    (poor, counters), (rich, _) = together(World(2), body)
    assert poor == 1
    assert rich == mass.UNITS + 4
    assert counters.sent == 3  # 5 = 3 + 2, 3 = 2 + 1, 2 = 1 + 1, and 1 stays
    assert counters.skipped > 0


# --- pauses --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("slow", [0.0, 0.004])
def test_ranks_do_not_run_past_a_pause(slow):
    """A rank makes its part of what is left, and then waits for news: by two steps each, at most, inline."""
    size, steps = 3, 40

    def body(comm):
        run = Run(comm, steps=steps, rho=0.2)
        run.until_pause(lambda: slow * comm.rank)
        run.exchange.close()
        return run.taken, run.exchange.made(run.taken)

    taken, made = zip(*together(World(size), body), strict=True)
    assert steps * size <= sum(taken) <= steps * size + 2 * size
    assert set(made) == {sum(taken) // size}
    if slow:
        assert taken[0] > steps > taken[2]  # they train at their own speed


def test_a_pause_that_is_noted_after_its_news_is_not_waited_past():
    """The thread may be stopped between the two, and no other sum follows a pause."""

    def body(comm):
        run = Run(comm, steps=1000, rho=0.0001)
        run.exchange.resume(0, 0)
        traffic = run.exchange._traffic

        def wait(done, mix):
            traffic.agreement.pause = Pause.EPOCH
            assert done()

        traffic.wait, run.exchange._enough = wait, 0
        return run.exchange.pause(1, requested=False)

    assert together(World(2), body) == [Pause.EPOCH] * 2


@pytest.mark.parametrize("progress", PROGRESS)
def test_one_rank_that_is_asked_stops_all(progress):
    def body(comm):
        run = Run(comm, rho=0.3, progress=progress)
        why = run.until_pause(lambda: 0.0005, 10 if comm.rank == 1 else None)
        run.check()
        run.exchange.close()
        return why

    assert together(World(3), body) == [Pause.STOP] * 3


def test_the_end_of_an_epoch_comes_before_a_stop():
    def body(comm):
        run = Run(comm, steps=1)
        why = run.until_pause(asked_at=1)
        run.exchange.close()
        return why

    assert together(World(2), body) == [Pause.EPOCH] * 2


# --- consensus -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("slices", [1, 3])
def test_consensus_is_the_weighted_mean_and_each_rank_gets_its_own_back(slices):
    def body(comm):
        run = Run(comm, steps=15, rho=0.9, slices=slices)
        run.until_pause(lambda: 0.001 * comm.rank)
        whole, before = run.mean(), bits(run.model)
        with run.exchange.consensus():
            inside = torch.cat([value.reshape(-1) for value in weights_and_buffers(run.model)])
        assert all(map(torch.equal, bits(run.model), before))
        torch.testing.assert_close(inside.double(), whole, rtol=1e-6, atol=1e-6)
        masses = comm.gather(run.exchange.masses, "masses")
        run.exchange.close()
        return inside, masses

    found = together(World(3), body)
    assert all(torch.equal(inside, found[0][0]) for inside, _ in found)
    assert len({units for masses in found[0][1] for units in masses}) > 1  # else the weights would not be seen


@pytest.mark.parametrize("progress", PROGRESS)
def test_the_consensus_error_is_measured_while_they_train(progress):
    """Few enough weights that the sketch is exact; nobody pushes, so that the error stays."""

    def body(comm):
        run = Run(comm, steps=60, rho=NEVER, progress=progress, consensus_every=10)
        weights = torch.cat([parameter.detach().reshape(-1) for parameter in run.model.parameters()]).double()
        run.until_pause(lambda: 0.001)
        run.exchange.close()
        return weights, run.exchange.consensus_errors

    weights, errors = zip(*together(World(3), body), strict=True)
    expected = float(((torch.stack(weights) - torch.stack(weights).mean(0)) ** 2).sum())
    assert errors[0] == errors[1] == errors[2]
    assert len(errors[0]) >= 1
    steps = [step for step, _ in errors[0]]
    assert steps == sorted(set(steps))
    assert max(steps) <= 60
    # several parameters share places of the sketch under random signs: right on average, within some per cent here
    assert all(error == pytest.approx(expected, rel=0.6) for _, error in errors[0])
    assert len({error for _, error in errors[0]}) == 1


# --- alone ---------------------------------------------------------------------------------------------


def test_alone_it_changes_nothing_and_pauses_as_planned():
    run = Run(Alone(), steps=4, every=3, rho=1.0, progress="thread")
    before = bits(run.model)
    reasons = []
    while run.epoch < 2:
        reasons.append((run.until_pause(), run.taken))
        run.restart()
    assert reasons == [(Pause.SAVE, 3), (Pause.EPOCH, 4), (Pause.SAVE, 6), (Pause.EPOCH, 8)]
    with run.exchange.consensus():
        assert all(map(torch.equal, bits(run.model), before))
    assert run.exchange.masses == [mass.UNITS]
    assert (run.exchange.counters.sent, run.exchange.counters.mass) == (0, 1.0)
    assert run.exchange.made(5) == 5
    run.exchange.resume(2, 8)
    assert run.step(requested=True) is Pause.STOP
    run.exchange.close()


# --- deadlines -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("progress", PROGRESS)
def test_a_rank_that_does_not_answer_is_an_error_that_says_what_was_waited_for(progress):
    def body(comm):
        run = Run(comm, rho=NEVER, progress=progress, deadline_s=0.3)
        if comm.rank == 1:
            comm.gather(0, "count steps")  # as resume() does; then it says nothing any more
            return
        run.exchange.resume(0, 0)
        with pytest.raises(RankTimeoutError, match=r"another rank to report how far it is .*compute.deadline_s: 0.3"):
            run.on(0.001)

    together(World(2), body)


@pytest.mark.parametrize("progress", PROGRESS)
def test_a_rank_that_waits_at_a_pause_for_one_that_does_not_answer_says_so(progress):
    def body(comm):
        run = Run(comm, steps=2, rho=NEVER, progress=progress, deadline_s=0.3)
        if comm.rank == 1:
            comm.gather(0, "count steps")  # as resume() does; then it says nothing any more
            return
        run.exchange.resume(0, 0)
        with pytest.raises(RankTimeoutError, match="another rank to report how far it is"):
            run.on(0.0)

    together(World(2), body)


@pytest.mark.parametrize("progress", PROGRESS)
def test_a_message_that_nobody_takes_is_an_error_that_names_the_receiver(progress):
    world = World(3, eager=0.0)
    world.held.update({(0, 1), (0, 2)})
    over = []

    def body(comm):
        run = Run(comm, rho=1.0 if comm.rank == 0 else NEVER, progress=progress, peers="ring", deadline_s=0.5)
        run.exchange.resume(0, 0)
        if comm.rank == 0:
            try:
                with pytest.raises(RankTimeoutError, match=r"another rank to take a gossip message \(rank 1\)"):
                    run.on(0.001)
            finally:
                over.append(True)
            return
        while not over:  # reports come, only messages do not
            try:
                run.step()
            except RankTimeoutError:
                break
            time.sleep(0.001)

    together(world, body)


@pytest.mark.parametrize("progress", PROGRESS)
def test_a_rank_that_does_not_come_to_rest_is_an_error(progress):
    def body(comm):
        run = Run(comm, steps=5, rho=0.5, progress=progress, deadline_s=0.3)
        run.exchange.resume(0, 0)
        while run.step() is None:
            time.sleep(0.001)
        if comm.rank == 0:
            with pytest.raises(RankTimeoutError, match=r"another rank to .*gossip message"):
                run.exchange.quiesce()

    together(World(2), body)


@pytest.mark.parametrize("progress", PROGRESS)
def test_a_message_that_arrives_damaged_ends_the_run(progress):
    world = World(2)
    over = []

    def body(comm):
        run = Run(comm, rho=1.0 if comm.rank == 0 else NEVER, progress=progress, deadline_s=5.0)
        run.exchange.resume(0, 0)
        if comm.rank == 0:
            spoil(world.networks[0])
        try:
            while not over:
                run.step()
                time.sleep(0.001)
        except Exception as error:  # noqa: BLE001 - it is looked at below
            over.append(error)
            return str(error)
        return None

    def spoil(network):
        original = network.deliver

        def deliver(to):
            for flight in network.flying[0, 1]:
                flight.content = flight.content[:-4] + b"\xff\x00\xff\x00"
            original(to)

        network.deliver = deliver

    world.eager = 1.0  # the sender does not look at it any more
    answers = together(world, body)
    assert "damaged payload; the network between the ranks is faulty" in answers[1]
