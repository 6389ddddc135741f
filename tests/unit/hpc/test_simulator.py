"""Consensus experiments: against closed forms, against dense matrices, against every schedule there is."""

from fractions import Fraction
from itertools import islice, product

import numpy as np
import pytest

from hpc.exchange.matrices import AsynchronousEasgd, Downpour, Easgd, Gossip, NoExchange, PerSyn
from hpc.exchange.simulator import consensus_error, expected, persyn_moments, simulate


def generator(seed=0):
    return np.random.default_rng(seed)


def distance(values, right):
    """How many standard errors the mean over trials, the last axis, is from what is right."""
    return (values.mean(axis=-1) - right) / (values.std(axis=-1, ddof=1) / np.sqrt(values.shape[-1]))


def test_the_error_is_the_sources():
    weights = generator().standard_normal((3, 5, 7))
    mean = weights.mean(axis=1)
    by_hand = [sum(np.sum((w - mean[trial]) ** 2) for w in weights[trial]) for trial in range(3)]
    np.testing.assert_allclose(consensus_error(weights), by_hand, rtol=1e-13)


def test_equal_workers_have_no_error_at_all():
    weights = np.repeat(generator().standard_normal((4, 1, 9)), 7, axis=1)
    assert (consensus_error(weights) == 0).all()


@pytest.mark.parametrize("workers", [2, 7, 8])
def test_synchronous_workers_have_no_error_at_all(workers):
    assert (simulate(PerSyn(workers, 1, 3), 20, 5, 4.0, generator()) == 0).all()


def test_error_without_exchange_is_a_random_walks():
    steps = np.arange(1, 31)
    np.testing.assert_allclose(expected(NoExchange(8), 30, 2.0)[:, 0], 7 * 2.0 * steps, rtol=1e-12)
    assert np.abs(distance(simulate(NoExchange(8, 500), 30, 10, 2.0, generator()), 7 * 10 * 2.0 * steps)).max() < 3


# --- persyn --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tau", [1, 2.5, 10])
@pytest.mark.parametrize("variance", [1.0, 8.0])
def test_persyn_given_its_schedule_is_the_closed_form(tau, variance):
    mean, _ = persyn_moments(40, 8, tau, 1, variance)
    np.testing.assert_allclose(expected(PerSyn(8, tau), 40, variance)[:, 0], mean, rtol=1e-12, atol=1e-12)


def test_persyn_grows_by_one_variance_a_step_and_is_whole_again():
    mean, deviation = persyn_moments(7, 8, 3, 100, 4.0)
    assert mean.tolist() == [2800, 5600, 0, 2800, 5600, 0, 2800]
    np.testing.assert_allclose(deviation[:2], 4.0 * np.sqrt(2 * 700) * np.array([1, 2]))


@pytest.mark.parametrize("workers", [2, 8, 100])
@pytest.mark.parametrize("tau", [2.5, 10])
def test_persyn_drawn_is_the_closed_form(workers, tau):
    """Mean within three standard errors at every step; the spread over trials is a chi-square variable's."""
    trials = 800
    errors = simulate(PerSyn(workers, tau, trials), 30, 5, 4.0, generator(workers))
    mean, deviation = persyn_moments(30, workers, tau, 5, 4.0)
    apart = mean > 0
    assert (errors[~apart] == 0).all()
    z = (errors.mean(axis=1) - mean)[apart] / (deviation[apart] / np.sqrt(trials))
    assert np.abs(z).max() < 3
    np.testing.assert_allclose(errors[apart].std(axis=1), deviation[apart], rtol=0.15)


def test_four_thousand_workers_are_the_closed_form():
    errors = simulate(PerSyn(4096, 4, 4), 6, 4, 1.0, generator())
    mean, deviation = persyn_moments(6, 4096, 4, 4, 1.0)
    assert np.abs(errors.mean(axis=1) - mean).max() < 3 * deviation.max() / 2


# --- easgd ---------------------------------------------------------------------------------------------


def test_easgd_at_every_step_is_a_geometric_sum():
    """The distance from the mean shrinks by 1 - alpha in each step, whatever the master does."""
    alpha, keep = 0.1, 0.9**2
    steps = np.arange(1, 41)
    right = 7 * 3.0 * keep * (1 - keep**steps) / (1 - keep)
    np.testing.assert_allclose(expected(Easgd(8, 1, alpha), 40, 3.0)[:, 0], right, rtol=1e-12)
    assert np.abs(distance(simulate(Easgd(8, 1, alpha, 400), 40, 10, 3.0, generator()), 10 * right)).max() < 3


# --- schedules that are drawn --------------------------------------------------------------------------

DRAWN = {
    "easgd async": lambda draw, trials: AsynchronousEasgd(4, 2, 0.3, draw, trials),
    "downpour": lambda draw, trials: Downpour(4, 2, 3, draw, trials),
    "gossip": lambda draw, trials: Gossip(8, 0.3, draw, trials),
    "gossip universal": lambda draw, trials: Gossip(8, 0.3, draw, trials, "universal"),
}


@pytest.mark.parametrize("name", DRAWN)
def test_drawn_errors_are_those_of_dense_matrices(name):
    """The same draws, with K written out and multiplied."""
    strategy, noise = DRAWN[name](generator(), 3), generator(1)
    state = np.zeros((3, strategy.size, 6))
    errors, ticks = [], strategy.ticks()
    for _ in range(20):
        for tick in islice(ticks, strategy.ticks_per_step):
            update = np.zeros((3 * strategy.size, 6))
            update[tick.awake] = np.sqrt(2.0) * noise.standard_normal((tick.awake.size, 6))
            state = tick.dense(3, strategy.size) @ (state + update.reshape(state.shape))
        workers = state[:, strategy.first : strategy.first + strategy.workers]
        errors.append(((workers - workers.mean(axis=1, keepdims=True)) ** 2).sum(axis=(1, 2)))
    np.testing.assert_allclose(simulate(DRAWN[name](generator(), 3), 20, 6, 2.0, generator(1)), errors, rtol=1e-11)


@pytest.mark.parametrize("name", DRAWN)
def test_drawn_errors_are_right_given_the_schedule(name):
    """Both see the same schedules, so that only the noise is between them."""
    trials, dim = 600, 20
    drawn = simulate(DRAWN[name](generator(), trials), 25, dim, 2.0, generator(1))
    given = expected(DRAWN[name](generator(), trials), 25, 2.0)
    assert np.abs(distance(drawn / dim - given, 0.0)[[0, 8, 24]]).max() < 3


def every_schedule(workers, rho, ticks):
    """E eps / (dim variance) of gossip on the universal clock, over all its schedules, in fractions (B 2.4, Alg. 4)."""
    moves = [(s, None) for s in range(workers)]
    moves += [(s, r) for s in range(workers) for r in range(workers) if r != s]
    total = Fraction(0)
    for schedule in product(moves, repeat=ticks):
        chance = Fraction(1)
        masses = [Fraction(1, workers)] * workers
        covariance = [[Fraction(0)] * workers for _ in range(workers)]
        for s, r in schedule:
            chance *= Fraction(1, workers)
            covariance[s][s] += 1
            if r is None:
                chance *= 1 - rho
                continue
            chance *= rho / (workers - 1)
            masses[s] /= 2
            c = masses[s] / (masses[r] + masses[s])
            masses[r] += masses[s]
            new = [(1 - c) * covariance[r][n] + c * covariance[s][n] for n in range(workers)]
            new[r] = (1 - c) ** 2 * covariance[r][r] + 2 * c * (1 - c) * covariance[r][s] + c**2 * covariance[s][s]
            for n in range(workers):
                covariance[r][n] = covariance[n][r] = new[n]
        spread = sum(covariance[n][n] for n in range(workers)) - sum(map(sum, covariance)) / workers
        total += chance * spread
    return float(total)


@pytest.mark.parametrize(("workers", "steps"), [(2, 2), (3, 1)])
def test_gossip_is_the_mean_over_every_schedule(workers, steps):
    right = every_schedule(workers, Fraction(2, 5), workers * steps)
    given = expected(Gossip(workers, 0.4, generator(), 20000, "universal"), steps, 1.0)[-1]
    drawn = simulate(Gossip(workers, 0.4, generator(1), 20000, "universal"), steps, 5, 1.0, generator(2))[-1]
    assert abs(distance(given, right)) < 3
    assert abs(distance(drawn / 5, right)) < 3


@pytest.mark.parametrize("rho", [0.1, 0.4])
def test_gossip_is_a_dense_simulation_of_other_schedules(rho):
    drawn = simulate(Gossip(8, rho, generator(0), 300), 60, 20, 1.0, generator(1))[30:].mean(axis=0) / 20
    given = expected(Gossip(8, rho, generator(2), 2000), 60, 1.0)[30:].mean(axis=0)
    apart = drawn.mean() - given.mean()
    assert abs(apart) < 3 * np.hypot(drawn.std() / np.sqrt(drawn.size), given.std() / np.sqrt(given.size))


def test_the_variance_of_the_noise_is_a_factor():
    one = simulate(Gossip(8, 0.2, generator(), 2), 20, 4, 1.0, generator(1))
    eight = simulate(Gossip(8, 0.2, generator(), 2), 20, 4, 8.0, generator(1))
    np.testing.assert_allclose(eight, 8 * one, rtol=1e-12)


@pytest.mark.parametrize("workers", [2, 64, 4096])
def test_gossip_holds_any_number_of_workers_together(workers):
    trials = 8192 // workers
    errors = simulate(Gossip(workers, 0.5, generator(), trials), 60, 2, 1.0, generator(1))[30:]
    alone = 2 * (workers - 1) * np.arange(31, 61)
    assert (errors.mean(axis=1) < 0.2 * alone).all()
