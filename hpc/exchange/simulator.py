"""Consensus experiments without MPI, without a network: gradients are noise (B 2.5.1, the worst case).

Each local update is drawn from N(0, variance I), and what is measured is how far the workers are from their mean,
``eps(t) = sum_m ||w_m - mean(w)||^2``, after each step of all workers, their exchange included.

What is known without drawing:

- **PerSyn**, exactly. k steps after a mean each worker has added k independent updates, so that eps is ``k variance``
  times a chi-square variable with (M - 1) dim degrees of freedom: :func:`persyn_moments`.
- **Any strategy, given its schedule**, exactly: W is linear in the noise, so that its covariance C (the same for every
  coordinate) follows ``C <- K (C + variance V) K'``, V the identity on who woke, and
  ``E eps = dim (tr C - sum(C) / M)``: :func:`expected`. It uses K written out, and knows neither noise nor weights.
- **Gossip, over all schedules**: no finite recursion. In ``lam w`` the matrices are independent and alike
  (sum-weight gossip), but eps needs 1 / lam^2, whose mean involves every further moment. So schedules are drawn, and
  :func:`expected` removes what is random beside them.
"""

from itertools import islice

import numpy as np

from hpc.exchange.matrices import Floats, Strategy, is_due


def simulate(strategy: Strategy, steps: int, dim: int, variance: float, draw: np.random.Generator) -> Floats:
    """The consensus error eps after each step, (steps, trials), of workers that start equal."""
    state = np.zeros((strategy.trials * strategy.size, dim))
    errors = np.empty((steps, strategy.trials))
    ticks = strategy.ticks()
    for step in range(steps):
        for tick in islice(ticks, strategy.ticks_per_step):
            state[tick.awake] += np.sqrt(variance) * draw.standard_normal((tick.awake.size, dim))
            tick.mix_(state)
        errors[step] = consensus_error(strategy.of_workers(state))
    return errors


def consensus_error(weights: Floats) -> Floats:
    """``sum_m ||w_m - mean(w)||^2`` (B 2.5.1) of weights (..., workers, dim); exactly 0 where the workers are equal."""
    apart = weights - weights[..., :1, :]  # a mean of equal numbers is rounded, a difference of equal numbers is 0
    apart -= apart.mean(axis=-2, keepdims=True)
    return np.asarray(np.einsum("...md,...md->...", apart, apart))


def expected(strategy: Strategy, steps: int, variance: float) -> Floats:
    """The mean of eps / dim after each step over all noise, given the strategy's schedules, (steps, trials)."""
    blocks, size = strategy.trials, strategy.size
    covariance = np.zeros((blocks, size, size))
    errors = np.empty((steps, blocks))
    workers = slice(strategy.first, strategy.first + strategy.workers)
    ticks = strategy.ticks()
    for step in range(steps):
        for tick in islice(ticks, strategy.ticks_per_step):
            block, row = np.divmod(tick.awake, size)
            covariance[block, row, row] += variance
            matrix = tick.dense(blocks, size)
            covariance = matrix @ covariance @ matrix.transpose(0, 2, 1)
        among = covariance[:, workers, workers]
        errors[step] = np.trace(among, axis1=1, axis2=2) - among.sum(axis=(1, 2)) / strategy.workers
    return errors


def persyn_moments(steps: int, workers: int, tau: float, dim: int, variance: float) -> tuple[Floats, Floats]:
    """Mean and standard deviation of PerSyn's eps after each step, exactly.

    Between two means eps grows by (M - 1) dim variance a step, and a chi-square variable with n degrees of freedom has
    mean n and variance 2 n. The mean of N trials has the standard error deviation / sqrt(N).
    """
    age = np.empty(steps)
    since = 0
    for step in range(1, steps + 1):
        since = 0 if is_due(step, tau) else since + 1
        age[step - 1] = since
    freedom = (workers - 1) * dim
    return age * variance * freedom, age * variance * np.sqrt(2.0 * freedom)
