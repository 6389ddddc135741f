"""Which samples a step takes: a pure function of seed, epoch, step, rank and the number of ranks.

An epoch is one permutation of all samples, cut into global batches of ``world_size * batch_size``; rank r
takes the r-th slice of each. So W ranks with batches of B walk through the same global batches as one rank
with batches of W * B, and a resumed run needs no state to find its place again.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from hpc.config.sizes import steps_per_epoch
from hpc.seeding import generator


def rank_batches(
    samples: int, batch_size: int, *, seed: int, epoch: int, rank: int, world_size: int
) -> npt.NDArray[np.int64]:
    """The samples of one rank in one epoch: int64 (steps, batch_size), row s for step s."""
    permutation = generator(seed, "order", epoch).permutation(samples)
    return rank_share(permutation, batch_size, rank, world_size)


def rank_share(values: npt.NDArray[Any], batch_size: int, rank: int, world_size: int) -> npt.NDArray[Any]:
    """One rank's slices, (steps, batch_size, ...), of values (N, ...) in the epoch's global order."""
    steps = steps_per_epoch(len(values), batch_size, world_size)
    whole = values[: steps * world_size * batch_size]
    shape = (steps, world_size, batch_size, *values.shape[1:])
    return np.ascontiguousarray(whole.reshape(shape)[:, rank])


def evaluation_share(samples: int, rank: int, world_size: int) -> range:
    """One rank's samples in an evaluation: contiguous, of nearly equal size, every sample on one rank."""
    return range(rank * samples // world_size, (rank + 1) * samples // world_size)
