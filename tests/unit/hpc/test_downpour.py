"""Downpour against its definition: in matrices, and under messages that take their time."""

import importlib.util
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from hpc.alone import Alone
from hpc.config.training import Downpour as DownpourConfig
from hpc.exchange import matrices
from hpc.exchange.agenda import Agenda
from hpc.exchange.contents import float_buffers
from hpc.exchange.downpour import Downpour

FILE = Path(__file__).parents[2] / "support" / "masters.py"
_spec = importlib.util.spec_from_file_location("masters", FILE)
assert _spec is not None
assert _spec.loader is not None
masters = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(masters)
channel = masters.channel


def build(**keys):
    return lambda comm, model, agenda: Downpour(
        comm,
        model,
        DownpourConfig(**{"tau": 3, "consensus_every": None, **keys}),
        agenda,
        seed=0,
        deadline_s=masters.DEADLINE_S,
    )


def test_alone_it_is_plain_sgd():
    model, plain = masters.net(1), masters.net(1)
    strategy = build(tau=1)(Alone(), model, Agenda(5, 2, 1))
    ended = masters.train(strategy, model, epochs=2)
    assert (ended.steps, ended.pauses) == (10, 6)
    for step in range(1, 11):
        masters.make_step(plain, 0, step)
    np.testing.assert_array_equal(masters.numbers(model), masters.numbers(plain))
    assert (strategy.counters.sent, strategy.counters.mass) == (0, 1.0)


def test_one_worker_with_a_master_is_plain_sgd():
    """Nobody else moves the centre: it follows the worker, and gives back what it got."""
    _, worker = masters.many(2, build(tau=2, master="own"), workers=1)
    plain = masters.net(1)
    for step in range(1, worker.steps + 1):
        masters.make_step(plain, 1, step)
    # the centre starts as rank 0's weights
    came_from = masters.weights(masters.net(0)) - masters.weights(masters.net(1))
    expected = masters.weights(plain) + came_from
    np.testing.assert_allclose(masters.weights(worker.model), expected, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize(("workers", "tau"), [(2, 1), (3, 2)])
def test_one_at_a_time_it_is_the_product_of_the_matrices(workers, tau, own):
    schedule = [int(awake) for awake in np.random.default_rng(5).integers(workers, size=30)]
    keys = {"tau": tau, "progress": "inline", "master": "own" if own else "beside"}
    ended = masters.one_at_a_time(workers + own, build(**keys), schedule, own=own)
    ranks = [worker + own for worker in range(workers)]
    start = [masters.weights(masters.net(rank)) for rank in ranks]
    state = np.stack([masters.weights(masters.net(0)), *start, *start])
    strategy = matrices.Downpour(workers, tau, tau, np.random.default_rng(5))
    drawn, made, ticks = iter(schedule), [0] * workers, strategy.ticks()
    strategy._draw = SimpleNamespace(integers=lambda *_, **__: np.array([next(drawn)]))
    for awake in schedule:
        tick = next(ticks)
        made[awake] += 1
        assert tick.awake == 1 + awake
        state[1 + awake] += masters.update(ranks[awake], made[awake], state.shape[1])
        tick.mix_(state)
    count = state.shape[1]
    np.testing.assert_allclose(ended[0].strategy._centre.numpy()[:count], state[0], rtol=1e-11)
    for worker, rank in enumerate(ranks):
        np.testing.assert_allclose(masters.weights(ended[rank].model), state[1 + worker], rtol=1e-11)
        np.testing.assert_allclose(ended[rank].strategy._bottom.numpy(), state[1 + workers + worker], rtol=1e-11)


class Played(masters.Replay):
    """The definition: updates since the base are sent and added; what comes back is the new base."""

    workers: int

    def ask(self, worker):
        request = self.w[worker].copy()
        request[: self.size] -= self.base[worker]
        self.base[worker] = self.w[worker, : self.size]
        return request

    def answer(self, request):
        self.centre[: self.size] += request[: self.size]
        self.centre[self.size :] += (request - self.centre)[self.size :] / self.workers
        return self.centre.copy()

    def take(self, worker, answer):
        since = self.w[worker, : self.size] - self.base[worker]
        self.w[worker] = answer
        self.w[worker, : self.size] += since
        self.base[worker] = answer[: self.size]


@pytest.mark.parametrize("progress", ["thread", "inline"])
@pytest.mark.parametrize(("size", "master"), [(2, "beside"), (4, "beside"), (2, "own"), (4, "own")])
def test_late_answers_do_what_the_definition_says(size, master, progress):
    workers = size - (master == "own")
    ended = masters.many(size, build(tau=2, master=master, progress=progress), seed=size, workers=workers)
    start = np.stack([masters.numbers(masters.net(100 * size + rank)) for rank in range(size)])
    count = len(masters.weights(ended[0].model))
    served, logs = ended[0].strategy._traffic.desk.events, [each.strategy.events for each in ended]
    Played.workers = workers
    played = Played(start, count, served, logs, [each.steps for each in ended])
    np.testing.assert_allclose(ended[0].strategy._centre.numpy(), played.centre, rtol=1e-10, atol=1e-12)
    for rank, each in enumerate(ended):
        np.testing.assert_allclose(masters.numbers(each.model), played.w[rank], rtol=1e-10, atol=1e-11)
    counters = [each.strategy.counters for each in ended]
    assert len(served) == sum(each.sent for each in counters) == sum(each.received for each in counters) > 0
    for each, counted in zip(ended, counters, strict=True):
        assert counted.sent + counted.skipped == each.steps // 2


@pytest.mark.parametrize("master", ["beside", "own"])
def test_no_update_is_lost_and_none_is_counted_twice(master):
    """The centre has moved by all that was done, but for what its workers have not sent yet."""
    ended = masters.many(4, build(tau=3, master=master), workers=4 - (master == "own"))
    count = len(masters.weights(ended[0].model))
    moved = ended[0].strategy._centre.numpy()[:count] - masters.weights(masters.net(0))
    workers = [each for each in ended if each.strategy.trains]
    done = sum(
        masters.update(each.strategy.comm.rank, step, count) for each in workers for step in range(1, each.steps + 1)
    )
    unsent = sum(masters.weights(each.model) - each.strategy._bottom.numpy() for each in workers)
    np.testing.assert_allclose(moved, done - unsent, rtol=1e-9, atol=1e-11)


def test_float32_conserves_to_a_millionth():
    def body(comm):
        model = masters.net(comm.rank, torch.float32)
        strategy = build(tau=1)(masters.speak(comm), model, Agenda(100, 13, 3))
        return masters.train(strategy, model, epochs=1, scale=0.1)

    ended = channel.together(channel.World(3, delay_s=0.001), body)
    count = len(masters.weights(ended[0].model))
    moved = ended[0].strategy._centre.numpy()[:count] - masters.weights(masters.net(0, torch.float32))
    done = sum(0.1 * masters.update(rank, step, count) for rank in range(3) for step in range(1, ended[rank].steps + 1))
    unsent = sum(masters.weights(each.model) - each.strategy._bottom.numpy() for each in ended)
    assert ended[0].strategy._centre.dtype == torch.float32
    np.testing.assert_allclose(moved, done - unsent, atol=2e-5)  # some 300 steps of 0.1, each rounded once or twice


def test_statistics_are_means_of_statistics_whatever_the_number_of_workers():
    """Added up like updates, the changes of eight workers would overshoot, and a variance become negative."""

    def measure(model, rank):
        for own, theirs in zip(float_buffers(model), float_buffers(masters.net(rank)), strict=True):
            own.lerp_(3.0 + 10.0 * (theirs - 0.5), 0.5)  # as BatchNorm does

    ended = masters.many(8, build(tau=1), slow=0.001, measure=measure)
    starts = np.stack([masters.statistics(masters.net(rank)) for rank in range(8)])
    everything = np.concatenate([starts, 3.0 + 10.0 * (starts - 0.5)])
    centre = ended[0].strategy._centre.numpy()[len(masters.weights(ended[0].model)) :]
    for found in (centre, *(masters.statistics(each.model) for each in ended)):
        assert (everything.min(0) - 1e-12 <= found).all()
        assert (found <= everything.max(0) + 1e-12).all()


def test_what_the_ranks_stand_for_is_the_centre_and_the_state_holds_all_of_it():
    def body(comm):
        comm = masters.speak(comm)
        model = masters.net(comm.rank)
        strategy = build(tau=3)(comm, model, Agenda(8, None, 2))
        masters.train(strategy, model, epochs=1)
        own = masters.numbers(model)
        with strategy.consensus():
            inside = masters.numbers(model)
        assert np.array_equal(masters.numbers(model), own)
        state = strategy.state_dict()
        resumed = build(tau=3)(comm, model, Agenda(8, None, 2))
        resumed.load_state_dict(state)
        resumed.resume(1, 8)
        assert torch.equal(resumed._bottom, strategy._bottom)
        with resumed.consensus():
            assert np.array_equal(masters.numbers(model), inside)
        resumed.close()
        return state["centre"], inside

    (centre, first), (nothing, second) = channel.together(channel.World(2), body)
    assert np.array_equal(centre.numpy(), first)
    assert np.array_equal(first, second)
    assert nothing is None
