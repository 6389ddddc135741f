"""The order of samples: a partition of a permutation, and a pure function."""

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpc.config.sizes import steps_per_epoch
from hpc.data.order import evaluation_share, rank_batches
from hpc.errors import RunError

Indices = npt.NDArray[np.int64]

sizes = st.tuples(st.integers(1, 5), st.integers(1, 4), st.integers(0, 60)).map(
    lambda t: (t[0], t[1], t[0] * t[1] + t[2])
)  # batch size, ranks, samples: at least one whole step


def all_ranks(samples: int, batch_size: int, epoch: int, ranks: int) -> list[Indices]:
    return [
        rank_batches(samples, batch_size, seed=3, epoch=epoch, rank=rank, world_size=ranks) for rank in range(ranks)
    ]


@given(sizes=sizes, epoch=st.integers(0, 5))
def test_every_sample_at_most_once_and_few_are_dropped(sizes: tuple[int, int, int], epoch: int) -> None:
    batch_size, ranks, samples = sizes
    batches = all_ranks(samples, batch_size, epoch, ranks)
    steps = steps_per_epoch(samples, batch_size, ranks)
    assert all(b.shape == (steps, batch_size) and b.dtype == np.int64 for b in batches)
    taken = np.concatenate(batches).ravel()
    assert len(set(taken.tolist())) == len(taken)
    assert set(taken.tolist()) <= set(range(samples))
    assert 0 <= samples - len(taken) < batch_size * ranks


@given(sizes=sizes, epoch=st.integers(0, 5))
def test_ranks_together_are_one_rank_with_the_whole_batch(sizes: tuple[int, int, int], epoch: int) -> None:
    batch_size, ranks, samples = sizes
    together = np.concatenate(all_ranks(samples, batch_size, epoch, ranks), axis=1)
    (alone,) = all_ranks(samples, batch_size * ranks, epoch, 1)
    assert np.array_equal(together, alone)


def test_pure_in_seed_and_epoch() -> None:
    def order(seed: int, epoch: int) -> Indices:
        return rank_batches(100, 10, seed=seed, epoch=epoch, rank=0, world_size=1)

    assert np.array_equal(order(0, 1), order(0, 1))
    assert not np.array_equal(order(0, 1), order(0, 2))
    assert not np.array_equal(order(0, 1), order(1, 1))


def test_the_order_stays_what_it_was() -> None:
    """A run must resume under a later version: these numbers are a promise."""
    order = rank_batches(10, 3, seed=0, epoch=0, rank=0, world_size=1)
    assert order.tolist() == [[1, 2, 3], [6, 8, 0], [4, 7, 9]]


def test_too_few_samples() -> None:
    with pytest.raises(
        RunError,
        match=r"data.batch_size: 32 on each of 4 rank\(s\) needs 128 training samples, but there are 100; "
        r"lower data.batch_size to 25 or less",
    ):
        steps_per_epoch(100, 32, 4)
    with pytest.raises(RunError, match=r"start at most 3 rank\(s\)"):
        steps_per_epoch(3, 1, 4)


@given(samples=st.integers(0, 50), ranks=st.integers(1, 9))
def test_evaluation_shares_cover_everything_once_in_order(samples: int, ranks: int) -> None:
    shares = [evaluation_share(samples, rank, ranks) for rank in range(ranks)]
    assert [i for share in shares for i in share] == list(range(samples))
    lengths = [len(share) for share in shares]
    assert max(lengths) - min(lengths) <= 1
