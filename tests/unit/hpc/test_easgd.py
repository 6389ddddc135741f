"""Elastic averaging against its definition: by hand, in matrices, and under messages that take their time."""

import importlib.util
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from hpc.alone import Alone
from hpc.config.check import check
from hpc.config.read import validate
from hpc.config.training import Downpour, Easgd, Sync, workers
from hpc.errors import ConfigError, RankTimeoutError
from hpc.exchange import easgd, matrices
from hpc.exchange.agenda import Agenda
from hpc.exchange.master import SLOTS

FILE = Path(__file__).parents[2] / "support" / "masters.py"
_spec = importlib.util.spec_from_file_location("masters", FILE)
assert _spec is not None
assert _spec.loader is not None
masters = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(masters)
channel = masters.channel


def build(**keys):
    return lambda comm, model, agenda: easgd.build(
        comm, model, Easgd(**{"tau": 3, "consensus_every": None, **keys}), agenda, seed=0, deadline_s=masters.DEADLINE_S
    )


def flat(values):
    return torch.cat([value.detach().flatten() for value in values]).double().numpy()


def test_the_moving_rate_is_what_was_asked_for_or_what_the_authors_chose():
    assert easgd.moving_rate(Easgd(tau=1), 4) == 0.9 / 4
    assert easgd.moving_rate(Easgd(tau=1, alpha=0.3), 4) == 0.3


def test_alone_all_of_it_is_plain_sgd():
    for mode in ("sync", "async"):
        model, plain = masters.net(1), masters.net(1)
        strategy = build(mode=mode, tau=1)(Alone(), model, Agenda(5, 2, 1))
        ended = masters.train(strategy, model, epochs=2)
        assert (ended.steps, ended.pauses) == (10, 6)
        for step in range(1, 11):
            masters.make_step(plain, 0, step)
        np.testing.assert_array_equal(masters.numbers(model), masters.numbers(plain))
        with strategy.consensus():
            np.testing.assert_array_equal(masters.numbers(model), masters.numbers(plain))
        assert (strategy.counters.sent, strategy.counters.mass) == (0, 1.0)


# --- synchronous ---------------------------------------------------------------------------------------------


def in_step(size, steps, scale=1.0, **keys):
    """What stands on each rank after so many steps: (model, strategy)."""

    def body(comm):
        model = masters.net(comm.rank)
        strategy = build(mode="sync", **keys)(masters.speak(comm), model, Agenda(10**6, None, size))
        strategy.resume(0, 0)
        for step in range(1, steps + 1):
            masters.make_step(model, comm.rank, step, scale)
            strategy.after_step(step)
        return model, strategy

    return channel.together(channel.World(size), body)


@pytest.mark.parametrize(("size", "tau", "alpha"), [(2, 1, None), (3, 2, 0.2), (4, 5, 0.25)])
def test_sync_is_the_product_of_the_matrices(size, tau, alpha):
    steps = 11
    ended = in_step(size, steps, tau=tau, alpha=alpha)
    state = np.stack([masters.numbers(masters.net(rank)) for rank in (0, *range(size))])
    ticks = matrices.Easgd(size, tau, alpha or 0.9 / size).ticks()
    count = len(masters.weights(ended[0][0]))
    for step in range(1, steps + 1):
        tick = next(ticks)
        for rank in range(size):
            state[1 + rank, :count] += masters.update(rank, step, count)
        tick.mix_(state)
    for rank, (model, strategy) in enumerate(ended):
        np.testing.assert_allclose(masters.numbers(model), state[1 + rank], rtol=1e-12)
        np.testing.assert_allclose(flat(strategy._centre), state[0], rtol=1e-12)
        assert strategy.counters.sent == strategy.counters.received == steps // tau
        assert strategy.counters.bytes_sent == steps // tau * 8 * state.shape[1]


def test_sync_by_hand():
    ((first, strategy), (second, _)) = in_step(2, 1, scale=0.0, tau=1, alpha=0.25)
    a, b = (masters.numbers(masters.net(rank)) for rank in range(2))  # the centre is where rank 0 is
    np.testing.assert_allclose(masters.numbers(first), a, rtol=1e-15)
    np.testing.assert_allclose(masters.numbers(second), b + 0.25 * (a - b), rtol=1e-15)
    np.testing.assert_allclose(flat(strategy._centre), a + 0.25 * (b - a), rtol=1e-15)


def test_sync_keeps_the_centre_the_same_on_all_ranks_bit_for_bit():
    ended = in_step(4, 9, tau=2)
    for _, strategy in ended[1:]:
        for own, first in zip(strategy._centre, ended[0][1]._centre, strict=True):
            assert torch.equal(own, first)


def test_sync_conserves_the_sum_without_gradients():
    ended = in_step(3, 40, scale=0.0, tau=1)
    before = sum(masters.numbers(masters.net(rank)) for rank in (0, 0, 1, 2))
    after = flat(ended[0][1]._centre) + sum(masters.numbers(model) for model, _ in ended)
    np.testing.assert_allclose(after, before, rtol=1e-13)


def test_sync_stands_for_its_centre_and_goes_on_from_its_state():
    def body(comm):
        comm = masters.speak(comm)
        model = masters.net(comm.rank)
        strategy = build(mode="sync", tau=2)(comm, model, Agenda(10**6, None, 2))
        strategy.resume(0, 0)
        for step in range(1, 4):
            masters.make_step(model, comm.rank, step)
            strategy.after_step(step)
        own = masters.numbers(model)
        with strategy.consensus():
            assert np.array_equal(masters.numbers(model), flat(strategy._centre))
        assert np.array_equal(masters.numbers(model), own)
        again = masters.net(99)
        again.load_state_dict(model.state_dict())
        resumed = build(mode="sync", tau=2)(comm, again, Agenda(10**6, None, 2))
        resumed.load_state_dict(strategy.state_dict())
        resumed.resume(0, 3)
        for step in range(4, 9):
            for its, network in ((strategy, model), (resumed, again)):
                masters.make_step(network, comm.rank, step)
                its.after_step(step)
        assert np.array_equal(masters.numbers(model), masters.numbers(again))
        assert np.array_equal(flat(strategy._centre), flat(resumed._centre))
        assert vars(strategy.counters).keys() == vars(resumed.counters).keys()

    channel.together(channel.World(2), body)


# --- asynchronous --------------------------------------------------------------------------------------------


class Played(masters.Replay):
    """The definition: d = a (x - w_0) moves both; statistics are means of both's old ones."""

    alpha: float

    def ask(self, worker):
        return self.w[worker].copy()

    def answer(self, request):
        answer = np.concatenate([self.alpha * (request - self.centre)[: self.size], self.centre[self.size :]])
        self.centre += self.alpha * (request - self.centre)
        return answer

    def take(self, worker, answer):
        self.w[worker, : self.size] -= answer[: self.size]
        self.w[worker, self.size :] += self.alpha * (answer[self.size :] - self.w[worker, self.size :])


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize(("workers", "tau", "alpha"), [(2, 1, 0.4), (3, 2, None)])
def test_one_at_a_time_it_is_the_product_of_the_matrices(workers, tau, alpha, own):
    draw = np.random.default_rng(3)
    schedule = [int(awake) for awake in draw.integers(workers, size=30)]
    keys = {"tau": tau, "alpha": alpha, "progress": "inline", "master": "own" if own else "beside"}
    ended = masters.one_at_a_time(workers + own, build(**keys), schedule, own=own)
    ranks = [worker + own for worker in range(workers)]
    state = np.stack([masters.numbers(masters.net(rank)) for rank in (0, *ranks)])
    strategy = matrices.AsynchronousEasgd(workers, tau, alpha or 0.9 / workers, np.random.default_rng(3))
    strategy._draw = SimpleNamespace(integers=lambda *_, **__: np.array([next(drawn)]))
    drawn, made, ticks = iter(schedule), [0] * workers, strategy.ticks()
    count = len(masters.weights(ended[0].model))
    for awake in schedule:
        tick = next(ticks)
        made[awake] += 1
        assert tick.awake == 1 + awake
        state[1 + awake, :count] += masters.update(ranks[awake], made[awake], count)
        tick.mix_(state)
    np.testing.assert_allclose(ended[0].strategy._centre.numpy(), state[0], rtol=1e-12)
    for worker, rank in enumerate(ranks):
        np.testing.assert_allclose(masters.numbers(ended[rank].model), state[1 + worker], rtol=1e-12)


@pytest.mark.parametrize("progress", ["thread", "inline"])
@pytest.mark.parametrize(("size", "master"), [(2, "beside"), (4, "beside"), (2, "own"), (4, "own")])
def test_late_answers_do_what_the_definition_says(size, master, progress):
    workers = size - (master == "own")
    ended = masters.many(size, build(tau=2, master=master, progress=progress), seed=size, workers=workers)
    start = np.stack([masters.numbers(masters.net(100 * size + rank)) for rank in range(size)])
    count = len(masters.weights(ended[0].model))
    served, logs = ended[0].strategy._traffic.desk.events, [each.strategy.events for each in ended]
    Played.alpha = 0.9 / workers
    played = Played(start, count, served, logs, [each.steps for each in ended])
    np.testing.assert_allclose(ended[0].strategy._centre.numpy(), played.centre, rtol=1e-11)
    for rank, each in enumerate(ended):
        np.testing.assert_allclose(masters.numbers(each.model), played.w[rank], rtol=1e-10, atol=1e-12)
    counters = [each.strategy.counters for each in ended]
    assert len(served) == sum(each.sent for each in counters) == sum(each.received for each in counters) > 0
    for each, counted in zip(ended, counters, strict=True):
        assert counted.sent + counted.skipped == each.steps // 2
    assert [each.mass for each in counters] == [1.0] + [0.0] * (size - 1)
    assert sum(each.steps for each in ended) >= 2 * 20 * workers
    assert (ended[0].steps == 0) == (master == "own")


@pytest.mark.parametrize("master", ["beside", "own"])
def test_the_sum_of_weights_and_centre_is_conserved_without_gradients(master):
    size = 3
    ended = masters.many(
        size, build(tau=1, alpha=0.6, master=master), scale=0.0, slow=0.001, workers=size - (master == "own")
    )
    count = len(masters.weights(ended[0].model))
    workers = [each for each in ended if each.strategy.trains]
    before = sum(masters.weights(masters.net(each.strategy.comm.rank)) for each in workers)
    before += masters.weights(masters.net(0))
    after = sum(masters.weights(each.model) for each in workers) + ended[0].strategy._centre.numpy()[:count]
    np.testing.assert_allclose(after, before, rtol=1e-12)
    for each in ended:  # means of what was there at the start, however late they came
        everything = np.stack([masters.statistics(masters.net(rank)) for rank in range(size)])
        found = masters.statistics(each.model)
        assert (everything.min(0) - 1e-12 <= found).all()
        assert (found <= everything.max(0) + 1e-12).all()


def test_an_exchange_that_is_due_while_another_is_under_way_is_skipped_and_counted():
    world = channel.World(2)
    world.held = {(1, 0)}
    asked, free = [], []

    def body(comm):
        model = masters.net(comm.rank)
        strategy = build(tau=2, progress="inline")(masters.speak(comm), model, Agenda(10**6, None, 2))
        strategy.events = asked if comm.rank == 1 else []
        strategy.resume(0, 0)
        if comm.rank == 1:
            for step in range(1, 9):
                strategy.after_step(step)
            assert (strategy.counters.sent, strategy.counters.skipped) == (1, 3)
            world.held = set()
            while not strategy._traffic.free():
                strategy._traffic.pump()
                strategy._mix()
            free.append(True)
        while not free:
            strategy._traffic.pump()
        return strategy.counters

    counters = channel.together(world, body)
    assert asked == [("ask", 2), ("take", 8)]
    assert (counters[1].sent, counters[1].received) == (1, 1)


def test_the_master_holds_few_messages_however_many_workers_ask():
    ended = masters.many(9, build(tau=1, progress="inline"), slow=0.0005, epochs=1)
    star = ended[0].strategy._traffic
    assert len(star._empty) + len(star._answers) + len(star._posted) == SLOTS
    assert {worker for worker, _ in star.desk.events} == set(range(9))


def test_a_master_that_does_not_answer_is_named():
    world = channel.World(2)
    world.held = {(1, 0)}

    def body(comm):
        strategy = easgd.build(
            masters.speak(comm), masters.net(0), Easgd(tau=1), Agenda(10**6, None, 2), seed=0, deadline_s=0.2
        )
        strategy.resume(0, 0)
        strategy.after_step(1)
        with pytest.raises(RankTimeoutError, match=r"report how far|rank 0, the master") as found:
            strategy.quiesce() if comm.rank else strategy._traffic._until(lambda: False, lambda: None, "report how far")
        return str(found.value)

    assert "rank 0, the master" in channel.together(world, body)[1]


def test_what_the_ranks_stand_for_is_the_centre_and_the_state_holds_it():
    def body(comm):
        comm = masters.speak(comm)
        model = masters.net(comm.rank)
        strategy = build(tau=2)(comm, model, Agenda(8, None, 3))
        masters.train(strategy, model, epochs=1)
        own = masters.numbers(model)
        with strategy.consensus():
            inside = masters.numbers(model)
        assert np.array_equal(masters.numbers(model), own)
        state = strategy.state_dict()
        resumed = build(tau=2)(comm, model, Agenda(8, None, 3))
        resumed.load_state_dict(state)
        resumed.resume(1, 8)
        with resumed.consensus():
            assert np.array_equal(masters.numbers(model), inside)
        resumed.close()
        blocked = resumed.counters.seconds_blocked
        assert resumed.counters == replace(strategy.counters, seconds_blocked=blocked)
        return state["centre"], inside

    (centre, first), *others = channel.together(channel.World(3), body)
    assert np.array_equal(centre.numpy(), first)
    for saved, inside in others:
        assert saved is None
        assert np.array_equal(inside, first)


# --- what cannot be ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ranks", "exchange", "message"),
    [
        (1, {"name": "easgd", "master": "own"}, "take two, or beside"),
        (1, {"name": "downpour", "master": "own"}, "take two, or beside"),
        (4, {"name": "easgd", "mode": "sync", "master": "own"}, "exchange.master: own is for a master"),
        (4, {"name": "easgd", "mode": "sync", "progress": "inline"}, "exchange.progress: inline is for a master"),
        (4, {"name": "easgd", "mode": "sync", "alpha": 0.3}, "use 1 / 4 or less"),
        (4, {"name": "easgd", "mode": "sync", "alpha": 0.25}, None),
        (1, {"name": "easgd", "mode": "sync", "alpha": 1}, None),
        (4, {"name": "easgd", "alpha": 1}, None),
        (2, {"name": "easgd", "master": "own"}, None),
        (2, {"name": "downpour", "master": "own", "progress": "inline"}, None),
        (4, {"name": "sync"}, None),
    ],
)
def test_what_does_not_go_together_is_said_before_a_rank_starts(ranks, exchange, message, tmp_path):
    tau = {} if exchange["name"] == "sync" else {"tau": 4}
    config = validate({"run_dir": str(tmp_path / "run"), "compute": {"device": "cpu"}, "exchange": {**exchange, **tau}})
    if message is None:
        check(config, ranks, ranks)
    else:
        with pytest.raises(ConfigError, match=message):
            check(config, ranks, ranks)


def test_a_master_on_a_rank_of_its_own_does_not_train():
    assert [workers(Easgd(tau=1, master="own"), ranks) for ranks in (1, 2, 5)] == [1, 1, 4]
    assert workers(Downpour(tau=1, master="own"), 3) == 2
    assert workers(Downpour(tau=1), 3) == workers(Easgd(tau=1), 3) == workers(Sync(), 3) == 3


@pytest.mark.parametrize("master", ["beside", "own"])
def test_how_far_apart_workers_are_is_measured_without_the_master(master):
    """The first look comes before anybody has moved far; all ranks are told the same."""
    ended = masters.many(3, build(tau=100, master=master, consensus_every=5), workers=3 - (master == "own"))
    told = [each.strategy.consensus_errors for each in ended]
    assert told[0] == told[1] == told[2]
    assert told[0]
    steps = max(each.steps for each in ended)
    for step, error in told[0]:
        assert 0 < step <= steps
        assert error > 0
