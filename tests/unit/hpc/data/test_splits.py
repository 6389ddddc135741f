"""Splits: disjoint, covering, stratified, the same for the same seed."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpc.data.splits import Indices, hold_out, shares
from hpc.seeding import generator

classes = st.lists(st.integers(0, 6), min_size=1, max_size=80).map(np.array)


@given(labels=classes, share=st.floats(0, 1), seed=st.integers(0, 99))
def test_disjoint_covering_exact_and_repeatable(labels: Indices, share: float, seed: int) -> None:
    count = int(share * len(labels))
    kept, held = hold_out(labels, count, generator(seed, "split"))
    assert len(held) == count
    assert sorted([*kept, *held]) == list(range(len(labels)))
    again = hold_out(labels, count, generator(seed, "split"))
    assert np.array_equal(kept, again[0])
    assert np.array_equal(held, again[1])


@given(labels=classes, share=st.floats(0, 1))
def test_every_class_keeps_a_sample_where_that_is_possible(labels: Indices, share: float) -> None:
    count = int(share * len(labels))
    kept, _ = hold_out(labels, count, generator(0, "split"))
    if len(kept) >= len(set(labels.tolist())):
        assert set(labels[kept].tolist()) == set(labels.tolist())


@given(sizes=st.lists(st.integers(1, 50), min_size=1, max_size=9).map(np.array), share=st.floats(0, 1))
def test_shares_are_proportional_and_sum_up(sizes: Any, share: float) -> None:
    count = int(share * sizes.sum())
    given_ = shares(sizes, count)
    assert given_.sum() == count
    assert (given_ >= 0).all()
    assert (given_ <= sizes).all()
    if sizes.min() > 1 and count <= sizes.sum() / 2:  # nobody is at a limit: the plain method of remainders
        assert (np.abs(given_ - count * sizes / sizes.sum()) < 1).all()


@pytest.mark.parametrize(
    ("sizes", "count", "expected"),
    [
        ([10, 10], 4, [2, 2]),
        ([90, 10], 10, [9, 1]),
        ([1, 1, 1, 10], 9, [0, 0, 0, 9]),
        ([1, 1, 1, 10], 10, [1, 1, 1, 7]),
        ([1, 1, 1], 2, [1, 1, 0]),
        ([5, 3], 0, [0, 0]),
        ([5, 3], 8, [5, 3]),
    ],
)
def test_shares_of_tiny_classes(sizes: Any, count: int, expected: list[int]) -> None:
    assert shares(np.array(sizes), count).tolist() == expected


def test_another_seed_is_another_split() -> None:
    labels = np.repeat(np.arange(4), 25)
    first, second = (hold_out(labels, 20, generator(seed, "split"))[1] for seed in (0, 1))
    assert not np.array_equal(first, second)
    assert np.bincount(labels[first]).tolist() == [5, 5, 5, 5]
