"""A recorded schedule, played again, is the product of its matrices."""

from collections import deque
from itertools import islice

import numpy as np
import pytest

from hpc.exchange.matrices import UNITS, AsynchronousEasgd, Gossip
from hpc.exchange.replay import EVENT, Kind, replay

RANKS, DIM = 4, 3


def chaos(seed, actions=300, gradients=True):
    """Ranks that step, send and receive in any order, messages under way for long.

    Returns: events, updates, start, and by dense matrices over ranks and messages the weights at the end.
    """
    draw = np.random.default_rng(seed)
    start = draw.standard_normal((RANKS, DIM))
    events, updates, masses = [], [[] for _ in range(RANKS)], [UNITS] * RANKS
    queues = {(s, r): deque() for s in range(RANKS) for r in range(RANKS) if s != r}
    product, offset = np.eye(RANKS), np.zeros((RANKS, DIM))  # rows: ranks, then a message each

    def apply(matrix):
        nonlocal product, offset
        product, offset = matrix @ product, matrix @ offset

    def receive(s, r):
        row, mass = queues[s, r].popleft()
        events.append((Kind.RECEIVE, r, s, masses[r], mass))
        c = mass / (masses[r] + mass)
        matrix = np.eye(len(product))
        matrix[r, r], matrix[r, row] = 1 - c, c
        apply(matrix)
        masses[r] += mass

    for _ in range(actions):
        rank, action = int(draw.integers(RANKS)), draw.random()
        peer = int((rank + 1 + draw.integers(RANKS - 1)) % RANKS)
        if action < 0.4:
            update = draw.standard_normal(DIM) * gradients
            updates[rank].append(update)
            events.append((Kind.STEP, rank, -1, 0, 0))
            offset[rank] += update
        elif action < 0.7 and masses[rank] >= 2:
            mass = masses[rank] // 2
            masses[rank] -= mass
            events.append((Kind.SEND, rank, peer, masses[rank], mass))
            queues[rank, peer].append((len(product), mass))
            apply(np.vstack([np.eye(len(product)), np.eye(len(product))[rank]]))
        elif queues[peer, rank]:
            receive(peer, rank)
    for (s, r), queue in queues.items():
        while queue:
            receive(s, r)
    assert sum(masses) == RANKS * UNITS
    final = (product @ start + offset)[:RANKS]
    return np.array(events, EVENT), [np.reshape(rows, (-1, DIM)) for rows in updates], start, final, masses


@pytest.mark.parametrize("seed", range(20))
def test_it_is_the_product_of_matrices(seed):
    events, updates, start, final, _ = chaos(seed)
    np.testing.assert_allclose(replay(events, updates, start), final, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_logs_of_ranks_need_no_common_order(seed):
    events, updates, start, _, _ = chaos(seed)
    together = replay(events, updates, start)
    for order in (range(RANKS), reversed(range(RANKS))):
        logs = np.concatenate([events[events["rank"] == rank] for rank in order])
        assert np.array_equal(replay(logs, updates, start), together)


@pytest.mark.parametrize("seed", range(5))
def test_without_gradients_the_weighted_mean_stays(seed):
    events, updates, start, _, masses = chaos(seed, gradients=False)
    end = np.average(replay(events, updates, start), axis=0, weights=masses)
    np.testing.assert_allclose(end, start.mean(axis=0), rtol=0, atol=1e-12)


def test_messages_that_arrive_at_once_are_the_gossip_of_the_matrices():
    draw, noise = np.random.default_rng(0), np.random.default_rng(1)
    gossip = Gossip(RANKS, 0.5, draw, clock="universal")
    state, events, updates = np.zeros((RANKS, DIM)), [], [[] for _ in range(RANKS)]
    for _ in range(100):
        s, update = int(noise.integers(RANKS)), noise.standard_normal(DIM)
        r = int((s + 1 + noise.integers(RANKS - 1)) % RANKS)
        state[s] += update
        updates[s].append(update)
        before = gossip.masses.copy()
        gossip.push(np.array([s]), np.array([r])).apply_(state)
        sent = before[s] - gossip.masses[s]
        events += [
            (Kind.STEP, s, -1, 0, 0),
            (Kind.SEND, s, r, gossip.masses[s], sent),
            (Kind.RECEIVE, r, s, before[r], sent),
        ]
    start = np.zeros((RANKS, DIM))
    replayed = replay(np.array(events, EVENT), [np.array(rows) for rows in updates], start)
    np.testing.assert_allclose(replayed, state, rtol=1e-12, atol=1e-12)
    assert not start.any()


def test_a_fetch_takes_the_peers_weights_bit_for_bit():
    events = np.array([(Kind.SEND, 0, 1, 0, 1), (Kind.RECEIVE, 1, 0, 0, 1)], EVENT)
    start = np.random.default_rng(0).standard_normal((2, DIM))
    assert np.array_equal(replay(events, [[], []], start), start[[0, 0]])


def test_masters_and_workers_that_draw_each_other_are_easgd():
    """Both send, then both mix: the arrow with one worker, the master as rank 0."""
    alpha, start = 0.3, np.random.default_rng(0).standard_normal((RANKS, DIM))
    keep, take = round((1 - alpha) * UNITS), round(alpha * UNITS)
    events, right = [], start.copy()
    strategy = AsynchronousEasgd(RANKS - 1, 1, alpha, np.random.default_rng(1))
    for tick in islice(strategy.ticks(), 20):
        tick.mix_(right)
        for kind in (Kind.SEND, Kind.RECEIVE):
            events += [(kind, 0, tick.awake[0], keep, take), (kind, tick.awake[0], 0, keep, take)]
    np.testing.assert_allclose(replay(np.array(events, EVENT), [[]] * RANKS, start), right, rtol=0, atol=1e-11)


STEP, SEND, RECEIVE = (Kind.STEP, 0, -1, 0, 0), (Kind.SEND, 0, 1, 4, 4), (Kind.RECEIVE, 1, 0, 8, 4)


@pytest.mark.parametrize(
    ("events", "message"),
    [
        ([RECEIVE], "rank 1 received from rank 0 what was never sent"),
        ([SEND, RECEIVE, RECEIVE], "rank 1 received from rank 0 what was never sent"),
        ([SEND], "rank 0 sent rank 1 what was never received"),
        ([SEND, (Kind.RECEIVE, 1, 0, 8, 3)], "rank 1 received mass 3 from rank 0, which sent 4"),
        ([STEP, STEP], "rank 0 has more steps than updates"),
        ([], "rank 0 has more updates than steps"),
    ],
)
def test_a_schedule_that_contradicts_itself_is_refused(events, message):
    updates = [np.ones((1, DIM)) if any(event[0] == Kind.STEP for event in events) or not events else [], []]
    with pytest.raises(ValueError, match=message):
        replay(np.array(events, EVENT), updates, np.zeros((2, DIM)))
