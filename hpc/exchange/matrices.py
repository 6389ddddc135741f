"""The matrix framework: every strategy of exchange as its sequence of communication matrices (B 2.3.2).

A step of all workers is a local update and a mixing, ``W <- K (W - lr V)`` (B 2.9, 2.10). W holds one row for each
worker and, where a strategy has one, the master as row 0. Here K is never stored whole: it is the identity but for a
few rows, or a product of such matrices (B 2.3.3.1 writes the mean so: gather, then scatter), so that 4096 workers are
no trouble. ``Mixing.dense`` is the same matrix written out.

A strategy is one of the classes below; ``ticks()`` yields its matrices for ever, with who makes a local update before
each. Independent trials run side by side: their states stand one below the other in W, and K is block diagonal.

Where the source is wrong, and what stands here:

- eq. 2.11 (gossip) changes the sender's row. Alg. 4 changes the receiver's: ``K = I + c e_r e_s' - c e_r e_r'`` with
  ``c = (lam_s/2) / (lam_r + lam_s/2)``.
- 2.3.3.2 (EASGD) has a zero row for the master at steps without exchange; that would forget it. It keeps its weights.
- 2.3.3.3 (Downpour) has a row (1, e_m), which sums to 2: right for updates, V, wrong for weights, W. See ``Downpour``.

Nothing of MPI, files or the engine is known here: this is what the engine is tested against.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from math import floor
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

UNITS: Final = 2**40
"""The mass that each worker starts with, an integer, so that the sum of masses is conserved exactly."""


class Mixing:
    """A communication matrix that is the identity but for a few rows, block diagonal in independent trials.

    Args:
        blocks: trials.
        size: rows of one trial.
        row: for each entry its row, over all blocks. A row that is named here holds these entries and no others.
        column: for each entry its column, over all blocks.
        weight: for each entry its value.
    """

    def __init__(self, blocks: int, size: int, row: Ints, column: Ints, weight: Floats) -> None:
        order = np.argsort(row, kind="stable")
        self.blocks, self.size = blocks, size
        self._row, self._column, self._weight = row[order], column[order], weight[order]
        self._starts = np.flatnonzero(np.diff(self._row, prepend=-1))

    def apply_(self, state: Floats) -> None:
        """W <- K W in place, for W (blocks * size, dim): only the rows that change are read and written."""
        if self._row.size:
            parts = self._weight[:, None] * state[self._column]
            state[self._row[self._starts]] = np.add.reduceat(parts, self._starts, axis=0)

    def dense(self) -> Floats:
        """K written out, (blocks, size, size)."""
        block, row = np.divmod(self._row, self.size)
        written = np.tile(np.eye(self.size), (self.blocks, 1, 1))
        written[block, row] = 0.0
        np.add.at(written, (block, row, self._column % self.size), self._weight)
        return written


@dataclass(frozen=True)
class Tick:
    """One tick of the clock: who makes a local update, and how all mix after it."""

    awake: Ints
    """The rows of W in which V is not zero."""
    mixing: tuple[Mixing, ...]
    """The factors of K, the one that acts first in front; none is the identity."""

    def mix_(self, state: Floats) -> None:
        """W <- K W in place."""
        for factor in self.mixing:
            factor.apply_(state)

    def dense(self, blocks: int, size: int) -> Floats:
        """K written out, (blocks, size, size)."""
        product = np.tile(np.eye(size), (blocks, 1, 1))
        for factor in self.mixing:
            product = factor.dense() @ product
        return product


class Strategy(ABC):
    """A strategy of exchange as a sequence of matrices.

    Args:
        workers: M.
        trials: independent repetitions, side by side.
        size: rows of W for one trial: the workers, and what else the strategy needs.
        first: row of the first worker: 1 where row 0 is the master.
        ticks_per_step: ticks in which each worker makes one update: 1 if all wake together, M if each tick wakes one
            (the source's universal clock, B 2.3.3.3), then on average.
    """

    def __init__(self, workers: int, trials: int, size: int, first: int, ticks_per_step: int) -> None:
        self.workers, self.trials, self.size, self.first = workers, trials, size, first
        self.ticks_per_step = ticks_per_step
        self._origin = np.arange(trials) * size
        self._everyone = (self._origin[:, None] + first + np.arange(workers)).ravel()

    @abstractmethod
    def ticks(self) -> Iterator[Tick]:
        """The matrices from the first tick on, without end."""

    def of_workers(self, state: Floats) -> Floats:
        """The workers' rows of W (trials * size, dim), as a view (trials, workers, dim)."""
        return state.reshape(self.trials, self.size, -1)[:, self.first : self.first + self.workers]

    def _mixing(self, row: Ints, column: Ints, weight: Floats) -> Mixing:
        return Mixing(self.trials, self.size, row.ravel(), column.ravel(), weight.ravel())


class NoExchange(Strategy):
    """K = I: M networks that never meet (B 2.3.2)."""

    def __init__(self, workers: int, trials: int = 1) -> None:
        super().__init__(workers, trials, workers, 0, 1)

    def ticks(self) -> Iterator[Tick]:
        """The identity for ever."""
        while True:
            yield Tick(self._everyone, ())


class PerSyn(Strategy):
    """All take the mean every ``tau`` steps (B 2.3.3.1, Alg. 2).

    With tau 1 it is synchronous training (B Alg. 1): workers that start equal and take the mean of their updates are
    workers that take the mean of their weights.

    Args:
        tau: steps between two means, 1/rho. If it is no whole number, the means come after the steps at which
            ``floor(step / tau)`` grows: 2.5 gives 3, 5, 8, 10.
    """

    def __init__(self, workers: int, tau: float, trials: int = 1) -> None:
        super().__init__(workers, trials, workers, 0, 1)
        self.tau = tau

    def ticks(self) -> Iterator[Tick]:
        """The identity, and at every tau-th step the mean: gathered in the first row, scattered to the others."""
        shape = (self.trials, self.workers)
        everyone = self._everyone.reshape(shape)
        first = np.broadcast_to(everyone[:, :1], shape)
        gather = self._mixing(first, everyone, np.full(shape, 1.0 / self.workers))
        scatter = self._mixing(everyone, first, np.ones(shape))
        for step in count(1):
            yield Tick(self._everyone, (gather, scatter) if is_due(step, self.tau) else ())


def is_due(step: int, tau: float) -> bool:
    """Does an exchange with period ``tau`` happen after this step (from 1)?"""
    return floor(step / tau) > floor((step - 1) / tau)


class Easgd(Strategy):
    """Elastic averaging, synchronous: ``w_m += a (w_0 - w_m)``, ``w_0 += a sum(w_m - w_0)`` (B 2.3.3.2).

    Rows of K sum to one for every ``alpha``; none is negative as long as ``workers * alpha <= 1``.

    Args:
        tau: steps between two exchanges.
        alpha: the source's mixing weight.
    """

    def __init__(self, workers: int, tau: float, alpha: float, trials: int = 1) -> None:
        super().__init__(workers, trials, workers + 1, 1, 1)
        self.tau, self.alpha = tau, alpha

    def ticks(self) -> Iterator[Tick]:
        """The identity, and at every tau-th step the arrow ((1 - M a, a 1'), (a 1, (1 - a) I))."""
        master = np.repeat(self._origin, self.workers)
        workers, share = self._everyone, np.full(self._everyone.size, self.alpha)
        elastic = self._mixing(
            np.concatenate([self._origin, master, workers, workers]),
            np.concatenate([self._origin, workers, master, workers]),
            np.concatenate([np.full(self.trials, 1.0 - self.workers * self.alpha), share, share, 1.0 - share]),
        )
        for step in count(1):
            yield Tick(self._everyone, (elastic,) if is_due(step, self.tau) else ())


class AsynchronousEasgd(Strategy):
    """Elastic averaging, one worker at a time: each worker meets the master after every ``tau`` of its own steps.

    The source tells it in words (B 2.3.3.2, end): the arrow of :class:`Easgd` with one worker.
    """

    def __init__(self, workers: int, tau: int, alpha: float, draw: np.random.Generator, trials: int = 1) -> None:
        super().__init__(workers, trials, workers + 1, 1, workers)
        self.tau, self.alpha, self._draw = tau, alpha, draw

    def ticks(self) -> Iterator[Tick]:
        """Each tick wakes one worker; if its time has come, it and the master draw each other."""
        steps = np.zeros(self.trials * self.size, np.int64)
        while True:
            awake = self._origin + 1 + self._draw.integers(self.workers, size=self.trials)
            steps[awake] += 1
            due = awake[steps[awake] % self.tau == 0]
            master = due // self.size * self.size
            share = np.full(due.size, self.alpha)
            elastic = self._mixing(
                np.concatenate([master, master, due, due]),
                np.concatenate([master, due, master, due]),
                np.concatenate([1.0 - share, share, share, 1.0 - share]),
            )
            yield Tick(awake, (elastic,))


class Downpour(Strategy):
    """Workers send what they have accumulated to the master, and fetch its weights, by their own clocks (B 2.3.3.3).

    The source's matrix for sending adds a row of V to the master's. Weights cannot be added so (the row sums to 2), so
    that each worker has a further row b_m here, its base: ``w_m - b_m`` is what it has accumulated since it last sent.
    W is then (w_0; w_1..w_M; b_1..b_M), and every row sums to one:

    - send: ``w_0 <- w_0 + w_m - b_m``, ``b_m <- w_m``;
    - fetch: ``w_m <- w_0``, ``b_m <- w_0 - (w_m - b_m)``, so that what was not sent yet is not lost.

    The source's two matrices are these, acting on V, for a worker that communicates at its every step.

    Args:
        push: steps of a worker between two times that it sends.
        fetch: steps of a worker between two times that it fetches; where both are due it sends first.
    """

    def __init__(self, workers: int, push: int, fetch: int, draw: np.random.Generator, trials: int = 1) -> None:
        super().__init__(workers, trials, 2 * workers + 1, 1, workers)
        self.push, self.fetch, self._draw = push, fetch, draw

    def ticks(self) -> Iterator[Tick]:
        """Each tick wakes one worker; if its time has come, it sends, and fetches."""
        steps = np.zeros(self.trials * self.size, np.int64)
        while True:
            awake = self._origin + 1 + self._draw.integers(self.workers, size=self.trials)
            steps[awake] += 1
            send, fetch = awake[steps[awake] % self.push == 0], awake[steps[awake] % self.fetch == 0]
            yield Tick(awake, (self._send(send), self._fetch(fetch)))

    def _send(self, worker: Ints) -> Mixing:
        master, base, one = worker // self.size * self.size, worker + self.workers, np.ones(worker.size)
        return self._mixing(
            np.concatenate([master, master, master, base]),
            np.concatenate([master, worker, base, worker]),
            np.concatenate([one, one, -one, one]),
        )

    def _fetch(self, worker: Ints) -> Mixing:
        master, base, one = worker // self.size * self.size, worker + self.workers, np.ones(worker.size)
        return self._mixing(
            np.concatenate([worker, base, base, base]),
            np.concatenate([master, master, worker, base]),
            np.concatenate([one, one, -one, one]),
        )


class Gossip(Strategy):
    """GoSGD (B Alg. 3-4): with probability ``rho`` after a step, push half the mass and the weights to one other.

    Clocks:

    - ``rounds``: all workers make a step, then those that push do so at once, then all mix what has come. This is
      Alg. 3 with workers of equal speed: a message holds its sender's weights before that one mixes, and is mixed
      before its receiver's next step. K's row of a receiver is its own mass and those that came, over their sum.
    - ``universal``: each tick wakes one worker, drawn uniformly, whose message arrives at once (the source's own
      model, B 2.4): ``K = I + c e_r e_s' - c e_r e_r'``.

    Args:
        rho: probability of a push, for each worker and step.
    """

    def __init__(
        self,
        workers: int,
        rho: float,
        draw: np.random.Generator,
        trials: int = 1,
        clock: Literal["rounds", "universal"] = "rounds",
    ) -> None:
        assert workers > 1, "gossip needs a peer"
        super().__init__(workers, trials, workers, 0, 1 if clock == "rounds" else workers)
        self.rho, self._draw = rho, draw
        self.masses = np.full(trials * workers, UNITS, np.int64)
        """Each row's mass, in units. Their sum over a trial never changes."""

    def ticks(self) -> Iterator[Tick]:
        """The matrices of the pushes as they are drawn."""
        while True:
            awake = self._everyone
            if self.ticks_per_step > 1:
                awake = self._origin + self._draw.integers(self.workers, size=self.trials)
            sender = awake[self._draw.random(awake.size) < self.rho]
            place = sender % self.size
            peer = (place + 1 + self._draw.integers(self.workers - 1, size=sender.size)) % self.workers
            # A mass of one unit cannot be halved: its owner keeps quiet until it has been given more.
            able = self.masses[sender] >= 2
            yield Tick(awake, (self.push(sender[able], (sender - place + peer)[able]),))

    def push(self, sender: Ints, receiver: Ints) -> Mixing:
        """K of simultaneous pushes, each worker sending at most one; the masses move with them (B 2.12)."""
        sent = self.masses[sender] // 2
        self.masses[sender] -= sent
        own = self.masses.copy()
        np.add.at(self.masses, receiver, sent)
        reached = np.unique(receiver)
        return self._mixing(
            np.concatenate([reached, receiver]),
            np.concatenate([reached, sender]),
            np.concatenate([own[reached] / self.masses[reached], sent / self.masses[receiver]]),
        )
