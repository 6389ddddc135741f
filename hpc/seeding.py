"""Streams of random numbers, one for each purpose: pure functions of the master seed.

Every draw of a run comes from a stream named here, so that a run that resumes, or that adds a purpose, draws
the same numbers as before for all others.
"""

from typing import Literal

import numpy as np

# The place in this tuple is the stream's number: append, never reorder.
PURPOSES = ("init", "split", "subset", "order", "augment", "forward", "exchange", "test", "heads", "rates", "pruning")
Purpose = Literal[
    "init", "split", "subset", "order", "augment", "forward", "exchange", "test", "heads", "rates", "pruning"
]


def seed_for(seed: int, purpose: Purpose, *keys: int) -> int:
    """A 63-bit seed for one purpose, and for keys such as epoch, step and rank.

    numpy's SeedSequence hashes its words so that neighbouring keys give unrelated streams
    (M. O'Neill's seed_seq; see numpy's "Parallel random number generation").
    """
    sequence = np.random.SeedSequence(entropy=seed, spawn_key=(PURPOSES.index(purpose), *keys))
    return int(sequence.generate_state(1, np.uint64)[0] >> np.uint64(1))


def generator(seed: int, purpose: Purpose, *keys: int) -> np.random.Generator:
    """A numpy generator for one purpose and keys: the same numbers on every platform and device."""
    return np.random.Generator(np.random.PCG64(seed_for(seed, purpose, *keys)))
