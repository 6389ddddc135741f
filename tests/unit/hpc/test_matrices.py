"""The matrix framework: what every communication matrix must be, and each strategy's own against its source."""

from itertools import islice

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpc.exchange.matrices import (
    UNITS,
    AsynchronousEasgd,
    Downpour,
    Easgd,
    Gossip,
    NoExchange,
    PerSyn,
)

STRATEGIES = {
    "none": lambda workers, _, trials: NoExchange(workers, trials),
    "sync": lambda workers, _, trials: PerSyn(workers, 1, trials),
    "persyn": lambda workers, _, trials: PerSyn(workers, 3, trials),
    "persyn 2.5": lambda workers, _, trials: PerSyn(workers, 2.5, trials),
    "easgd": lambda workers, _, trials: Easgd(workers, 2, 0.9 / workers, trials),
    "easgd async": lambda workers, draw, trials: AsynchronousEasgd(workers, 2, 0.3, draw, trials),
    "downpour": lambda workers, draw, trials: Downpour(workers, 2, 3, draw, trials),
    "gossip": lambda workers, draw, trials: Gossip(workers, 0.4, draw, trials),
    "gossip universal": lambda workers, draw, trials: Gossip(workers, 0.7, draw, trials, "universal"),
}
ANY = {
    "name": st.sampled_from(sorted(STRATEGIES)),
    "workers": st.integers(2, 9),
    "trials": st.integers(1, 3),
    "seed": st.integers(0, 2**32),
}
TICKS = 25


def made(name, workers=4, trials=1, seed=0):
    return STRATEGIES[name](workers, np.random.default_rng(seed), trials)


def matrices(strategy, number):
    """The first matrices of a strategy of one trial, written out."""
    return [tick.dense(1, strategy.size)[0] for tick in islice(strategy.ticks(), number)]


# --- what holds for all of them ------------------------------------------------------------------------


@given(**ANY)
@settings(deadline=None)
def test_rows_sum_to_one(name, workers, trials, seed):
    strategy = made(name, workers, trials, seed)
    for tick in islice(strategy.ticks(), TICKS):
        matrix = tick.dense(trials, strategy.size)
        np.testing.assert_allclose(matrix.sum(axis=2), 1.0, rtol=0, atol=1e-14)
        assert name == "downpour" or matrix.min() >= 0.0


@given(**ANY)
@settings(deadline=None)
def test_a_consensus_stays(name, workers, trials, seed):
    strategy = made(name, workers, trials, seed)
    agreed = np.random.default_rng(seed).standard_normal((trials, 1, 5))
    state = np.repeat(agreed, strategy.size, axis=1).reshape(-1, 5)
    for tick in islice(strategy.ticks(), TICKS):
        tick.mix_(state)
    np.testing.assert_allclose(state.reshape(trials, -1, 5), np.broadcast_to(agreed, (trials, strategy.size, 5)), 1e-12)


@given(**ANY)
@settings(deadline=None)
def test_the_fast_path_is_the_dense_product(name, workers, trials, seed):
    strategy = made(name, workers, trials, seed)
    noise = np.random.default_rng(seed)
    fast = noise.standard_normal((trials * strategy.size, 3))
    dense = fast.reshape(trials, strategy.size, 3).copy()
    for tick in islice(strategy.ticks(), TICKS):
        update = np.zeros_like(fast)
        update[tick.awake] = noise.standard_normal((tick.awake.size, 3))
        fast += update
        tick.mix_(fast)
        dense = tick.dense(trials, strategy.size) @ (dense + update.reshape(dense.shape))
    np.testing.assert_allclose(fast.reshape(dense.shape), dense, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", STRATEGIES)
def test_equal_seeds_give_equal_matrices(name):
    for one, other in zip(matrices(made(name, seed=3), TICKS), matrices(made(name, seed=3), TICKS), strict=True):
        assert np.array_equal(one, other)


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_tick_wakes_all_workers_or_one_of_each_trial(name):
    strategy = made(name, workers=5, trials=3)
    rows = np.arange(3 * strategy.size).reshape(3, -1)
    workers = strategy.of_workers(rows.reshape(-1, 1).astype(float))[..., 0]
    assert workers.shape == (3, 5)
    for tick in islice(strategy.ticks(), TICKS):
        awake = tick.awake.reshape(3, -1)
        assert awake.shape[1] * strategy.ticks_per_step == 5
        assert all(set(some) <= set(own) for some, own in zip(awake, workers, strict=True))


@pytest.mark.parametrize("name", STRATEGIES)
def test_four_thousand_workers_fit(name):
    strategy = made(name, workers=4096)
    state = np.random.default_rng(1).standard_normal((strategy.size, 2))
    before = state.copy()
    for tick in islice(strategy.ticks(), 3):
        tick.mix_(state)
    assert state.shape == before.shape
    assert np.isfinite(state).all()
    assert state.max() <= before.max() + 1e-12 or name == "downpour"


# --- none, sync, persyn --------------------------------------------------------------------------------


def test_none_is_the_identity():
    assert all(np.array_equal(matrix, np.eye(4)) for matrix in matrices(made("none"), 3))


def test_sync_is_the_mean_in_every_step():
    assert all(np.array_equal(matrix, np.full((4, 4), 0.25)) for matrix in matrices(made("sync"), 3))


def test_persyn_is_the_mean_at_every_tau_th_step():
    """B 2.3.3.1 writes the mean as two phases over a master; without its row and column it is ours."""
    workers = 4
    gather = np.zeros((workers + 1, workers + 1))
    gather[0, 1:] = 1.0 / workers
    gather[1:, 1:] = np.eye(workers)
    scatter = np.zeros_like(gather)
    scatter[1:, 0] = 1.0
    mean = (scatter @ gather)[1:, 1:]
    for step, matrix in enumerate(matrices(PerSyn(workers, 3), 12), start=1):
        assert np.array_equal(matrix, np.eye(workers) if step % 3 else mean)


def test_a_period_that_is_no_whole_number_is_kept_on_average():
    due = [step for step, matrix in enumerate(matrices(PerSyn(4, 2.5), 20), start=1) if matrix[0, 1]]
    assert due == [3, 5, 8, 10, 13, 15, 18, 20]


# --- easgd ---------------------------------------------------------------------------------------------


def test_easgd_is_the_sources_arrow():
    """B 2.3.3.2; between exchanges the master keeps its weights, where the source has a row of zeros."""
    workers, alpha = 4, 0.2
    ones = np.ones((workers, 1))
    arrow = np.block(
        [[np.full((1, 1), 1 - workers * alpha), alpha * ones.T], [alpha * ones, (1 - alpha) * np.eye(workers)]]
    )
    for step, matrix in enumerate(matrices(Easgd(workers, 3, alpha), 9), start=1):
        np.testing.assert_allclose(matrix, np.eye(workers + 1) if step % 3 else arrow, rtol=0, atol=1e-15)


def test_easgd_draws_master_and_workers_together():
    """METHODS: w_m += a (w_0 - w_m), w_0 += a sum(w_m - w_0), both from the old values."""
    alpha = 0.15
    state = np.random.default_rng(0).standard_normal((6, 3))
    master, workers = state[0].copy(), state[1:].copy()
    next(Easgd(5, 1, alpha).ticks()).mix_(state)
    np.testing.assert_allclose(state[1:], workers + alpha * (master - workers), rtol=1e-13)
    np.testing.assert_allclose(state[0], master + alpha * (workers - master).sum(axis=0), rtol=1e-13)


def test_asynchronous_easgd_is_the_arrow_with_one_worker():
    alpha, tau, steps = 0.3, 2, np.zeros(5, int)
    strategy = AsynchronousEasgd(4, tau, alpha, np.random.default_rng(0))
    for tick in islice(strategy.ticks(), 40):
        (worker,) = tick.awake
        steps[worker] += 1
        right = np.eye(5)
        if steps[worker] % tau == 0:
            right[np.ix_([0, worker], [0, worker])] = [[1 - alpha, alpha], [alpha, 1 - alpha]]
        np.testing.assert_allclose(tick.dense(1, 5)[0], right, rtol=0, atol=1e-15)
    assert (steps[1:] > 0).all()


# --- downpour ------------------------------------------------------------------------------------------


def unit(size, place):
    """The column vector e_place."""
    return np.eye(size)[:, [place]]


def test_downpour_sends_as_the_source_does():
    """B 2.3.3.3's matrix acts on V: after one update of worker m the master has it as well."""
    workers, size = 3, 4
    for tick in islice(Downpour(workers, 1, 10**9, np.random.default_rng(0)).ticks(), 10):
        (worker,) = tick.awake
        source = np.eye(size)
        source[:1] += unit(size, worker).T
        ours = tick.dense(1, 2 * workers + 1)[0]
        assert np.array_equal(ours[:size, worker], source[:, worker])  # what V's only row that is not zero becomes


def test_downpour_fetches_as_the_source_does():
    workers, size = 3, 4
    for tick in islice(Downpour(workers, 10**9, 1, np.random.default_rng(0)).ticks(), 10):
        (worker,) = tick.awake
        source = np.eye(size) - unit(size, worker) @ unit(size, worker).T + unit(size, worker) @ unit(size, 0).T
        assert np.array_equal(tick.dense(1, 2 * workers + 1)[0][:size, :size], source)


@given(push=st.integers(1, 4), fetch=st.integers(1, 4), seed=st.integers(0, 2**32))
@settings(deadline=None)
def test_downpour_loses_no_update(push, fetch, seed):
    """The master's weights and all that was not sent yet are together the start and all updates."""
    strategy, noise = Downpour(4, push, fetch, np.random.default_rng(seed)), np.random.default_rng(seed)
    state, total = np.zeros((strategy.size, 3)), np.zeros(3)
    for tick in islice(strategy.ticks(), 60):
        update = noise.standard_normal((1, 3))
        state[tick.awake] += update
        total += update[0]
        tick.mix_(state)
    np.testing.assert_allclose(state[0] + (state[1:5] - state[5:]).sum(axis=0), total, rtol=1e-12, atol=1e-12)


def test_a_downpour_that_talks_always_is_one_sequence_of_updates():
    strategy, noise = Downpour(4, 1, 1, np.random.default_rng(0)), np.random.default_rng(1)
    state, total = np.zeros((strategy.size, 3)), np.zeros(3)
    for tick in islice(strategy.ticks(), 30):
        before, update = state[0].copy(), noise.standard_normal((1, 3))
        state[tick.awake] += update
        tick.mix_(state)
        total += update[0]
        np.testing.assert_allclose(state[0], before + update[0], rtol=1e-12, atol=1e-12)
        np.testing.assert_array_equal(state[tick.awake[0]], state[0])
    np.testing.assert_allclose(state[0], total, rtol=1e-12, atol=1e-12)


# --- gossip --------------------------------------------------------------------------------------------


def test_a_push_changes_the_receivers_row_only():
    """METHODS: K = I + c e_r e_s' - c e_r e_r', where B eq. 2.11 changes the sender's row."""
    gossip = Gossip(5, 0.5, np.random.default_rng(0))
    draw = np.random.default_rng(1)
    for _ in range(50):
        s, r = draw.choice(5, 2, replace=False)
        half, own = gossip.masses[s] / 2, gossip.masses[r]
        c = half / (own + half)
        right = np.eye(5) + c * unit(5, r) @ unit(5, s).T - c * unit(5, r) @ unit(5, r).T
        np.testing.assert_allclose(gossip.push(np.array([s]), np.array([r])).dense()[0], right, rtol=0, atol=1e-11)


def test_the_first_message_weighs_a_third():
    """It has half a mass, its receiver a whole one."""
    matrix = Gossip(2, 1.0, np.random.default_rng(0)).push(np.array([0]), np.array([1])).dense()[0]
    np.testing.assert_allclose(matrix, [[1, 0], [1 / 3, 2 / 3]], rtol=1e-15)


@given(workers=st.integers(2, 8), rho=st.floats(0, 1), seed=st.integers(0, 2**32))
@settings(deadline=None)
def test_a_round_is_the_sources_algorithm(workers, rho, seed):
    """B Alg. 3-4 with a queue for each worker, all of which step together, one trial."""
    gossip = Gossip(workers, rho, np.random.default_rng(seed))
    state = np.random.default_rng(seed + 1).standard_normal((workers, 3))
    by_hand, masses, replayed = state.copy(), [UNITS] * workers, np.random.default_rng(seed)
    for tick in islice(gossip.ticks(), 20):
        tick.mix_(state)
        queues = [[] for _ in range(workers)]
        senders = np.flatnonzero(replayed.random(workers) < rho)
        peers = (senders + 1 + replayed.integers(workers - 1, size=senders.size)) % workers
        for s, r in zip(senders, peers, strict=True):
            queues[r].append((by_hand[s].copy(), masses[s] // 2))
            masses[s] -= masses[s] // 2
        for r, queue in enumerate(queues):
            for weights, mass in queue:
                by_hand[r] = (masses[r] * by_hand[r] + mass * weights) / (masses[r] + mass)
                masses[r] += mass
    assert gossip.masses.tolist() == masses
    np.testing.assert_allclose(state, by_hand, rtol=1e-12, atol=1e-12)


@given(
    workers=st.integers(2, 9),
    trials=st.integers(1, 3),
    rho=st.floats(0, 1),
    seed=st.integers(0, 2**32),
    clock=st.sampled_from(["rounds", "universal"]),
    units=st.sampled_from([1, 2, 3, 7, UNITS]),
)
@settings(deadline=None)
def test_mass_is_conserved_and_the_weighted_mean_with_it(workers, trials, rho, seed, clock, units):
    gossip = Gossip(workers, rho, np.random.default_rng(seed), trials, clock)
    gossip.masses[:] = units  # few units: many cannot be halved
    state = np.random.default_rng(seed).standard_normal((trials * workers, 3))

    def weighted_mean():
        masses = gossip.masses.reshape(trials, workers, 1)
        return (masses * state.reshape(trials, workers, 3)).sum(axis=1) / masses.sum(axis=1)

    before = weighted_mean()
    for tick in islice(gossip.ticks(), 100):
        tick.mix_(state)
        assert gossip.masses.min() >= 1
        assert (gossip.masses.reshape(trials, workers).sum(axis=1) == workers * units).all()
    np.testing.assert_allclose(weighted_mean(), before, rtol=0, atol=1e-12)


def test_the_remainder_stays_with_the_sender():
    gossip = Gossip(2, 1.0, np.random.default_rng(0))
    gossip.masses[:] = [7, 2]
    gossip.push(np.array([0]), np.array([1]))
    assert gossip.masses.tolist() == [4, 5]


def test_a_mass_of_one_unit_is_not_sent():
    gossip = Gossip(3, 1.0, np.random.default_rng(0))
    gossip.masses[:] = 1
    assert all(np.array_equal(matrix, np.eye(3)) for matrix in matrices(gossip, 10))
    assert gossip.masses.tolist() == [1, 1, 1]


def test_nobody_pushes_at_rho_zero_and_everybody_at_rho_one():
    assert all(np.array_equal(matrix, np.eye(4)) for matrix in matrices(Gossip(4, 0.0, np.random.default_rng(0)), 10))
    for matrix in matrices(Gossip(4, 1.0, np.random.default_rng(0)), 10):
        assert np.count_nonzero(matrix - np.diag(np.diag(matrix))) == 4


@pytest.mark.parametrize("clock", ["rounds", "universal"])
def test_peers_are_uniform_over_the_others(clock):
    """Each ordered pair is one of 20 equally likely ones; the counts stay within four standard deviations."""
    workers, rho, trials = 5, 0.1, 4000
    gossip = Gossip(workers, rho, np.random.default_rng(0), trials, clock)
    pushes = np.zeros((workers, workers))
    for tick in islice(gossip.ticks(), 2 * gossip.ticks_per_step):
        pushes += (tick.dense(trials, workers) > 0).sum(axis=0)
    np.fill_diagonal(pushes, 0)
    mean = 2 * trials * rho / (workers - 1)
    others = pushes[~np.eye(workers, dtype=bool)]
    assert np.abs(others - mean).max() < 4 * np.sqrt(mean)
