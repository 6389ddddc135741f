"""A recorded schedule played again in one process: what the engine must have computed (B 2.9, 2.10).

The engine's messages are under way for a while, and arrive when their sender has gone on. In matrices, a message is one
more row of W: sending copies the sender's row into it, receiving mixes it into the receiver's,
``K = I + c e_r e_message' - c e_r e_r'``. The product of these matrices, with the recorded updates added where they
were made, is what stands on every rank at the end.
"""

from collections import defaultdict, deque
from collections.abc import Sequence
from enum import IntEnum
from typing import Final

import numpy as np
from numpy.typing import NDArray

from hpc.exchange.matrices import Floats


class Kind(IntEnum):
    """What a rank did: the column ``kind`` of a schedule."""

    STEP = 0
    SEND = 1
    RECEIVE = 2


EVENT: Final = np.dtype(
    [
        ("kind", np.int8),
        ("rank", np.int32),
        ("peer", np.int32),
        ("mass_own", np.int64),
        ("mass_received", np.int64),
    ]
)
"""One row of a schedule; :func:`replay` says what the columns mean for each kind."""


def replay(events: NDArray[np.void], updates: Sequence[Floats], start: Floats) -> Floats:
    """The ranks' weights (ranks, dim) at the end of a recorded schedule, as the product of its matrices.

    =========  ======  =========  ====================================  =====================
    kind       rank    peer       mass_own                              mass_received
    =========  ======  =========  ====================================  =====================
    STEP       who     -1         0                                     0
    SEND       sender  receiver   what the sender keeps                 what the message has
    RECEIVE    who     sender     the receiver's mass before it mixes   what the message has
    =========  ======  =========  ====================================  =====================

    - STEP adds the rank's next update. SEND copies the rank's weights into a message. RECEIVE mixes in the oldest
      message from this peer: ``w_r <- (1 - c) w_r + c w_message`` with ``c = mass_received / (mass_own +
      mass_received)``.
    - Events of one rank stand in the order in which it did them. Between ranks no order is needed: the ranks' logs may
      be put one below the other, since a message is waited for. Messages between two ranks do not overtake.
    - Masses are whole numbers of units. A strategy without masses writes two whole numbers in the ratio with which the
      receiver mixes: 0 and 1 for Downpour's fetch, ``(1 - alpha) 2**40`` and ``alpha 2**40``, rounded, for EASGD. A
      master is one more rank; what it adds of a worker's is a STEP of its own.

    Args:
        events: the schedule, of type ``EVENT``.
        updates: for each rank (steps, dim), what each of its steps added to its weights (- lr V).
        start: (ranks, dim).

    Raises:
        ValueError: the schedule contradicts itself or the updates: a message was received that was never sent, or with
            another mass than it was sent with, or never received; or a rank's steps are not as many as its updates.
    """
    state = np.array(start, np.float64)
    logs = [deque(events[events["rank"] == rank]) for rank in range(len(state))]
    steps = [deque(rows) for rows in updates]
    under_way: dict[tuple[int, int], deque[tuple[int, Floats]]] = defaultdict(deque)
    moved = True
    while moved:  # each rank goes on until it waits for a message, or its log ends; until nobody moves
        moved = False
        for rank, log in enumerate(logs):
            while log:
                kind, peer, own, mass = (int(log[0][name]) for name in ("kind", "peer", "mass_own", "mass_received"))
                if kind == Kind.RECEIVE and not under_way[peer, rank]:
                    break
                log.popleft()
                moved = True
                if kind == Kind.STEP:
                    if not steps[rank]:
                        raise ValueError(f"rank {rank} has more steps than updates")
                    state[rank] += steps[rank].popleft()
                elif kind == Kind.SEND:
                    under_way[rank, peer].append((mass, state[rank].copy()))
                else:
                    sent, message = under_way[peer, rank].popleft()
                    if sent != mass:
                        raise ValueError(f"rank {rank} received mass {mass} from rank {peer}, which sent {sent}")
                    c = mass / (own + mass)
                    state[rank] = (1.0 - c) * state[rank] + c * message
    problems = [
        f"rank {rank} received from rank {log[0]['peer']} what was never sent" for rank, log in enumerate(logs) if log
    ]
    problems += [f"rank {s} sent rank {r} what was never received" for (s, r), queue in under_way.items() if queue]
    problems += [f"rank {rank} has more updates than steps" for rank, rows in enumerate(steps) if rows]
    if problems:
        raise ValueError("; ".join(problems))
    return state
