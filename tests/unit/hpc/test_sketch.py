"""Sketches: linear, and right on average."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hpc.exchange.sketch import WIDTH, Sketch, estimate

SIZES = st.lists(st.integers(1, 3 * WIDTH), min_size=1, max_size=4)


def drawn(sizes, seed, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(size, generator=generator) * scale for size in sizes]


def sketched(values, seed=0, step=1):
    sketch = Sketch(values, seed)
    sketch.take()
    assert sketch.ready()
    return sketch.to_sum(step)


def true_error(ranks):
    flat = torch.stack([torch.cat(values).double() for values in ranks])
    return float(((flat - flat.mean(0)) ** 2).sum())


@given(SIZES, st.integers(0, 1000), st.floats(-3, 3), st.floats(-3, 3))
@settings(deadline=None)
def test_a_sketch_is_linear(sizes, seed, a, b):
    one, other = drawn(sizes, seed), drawn(sizes, seed + 1)
    both = [a * left + b * right for left, right in zip(one, other, strict=True)]
    expected = a * sketched(one)[:-2] + b * sketched(other)[:-2]
    np.testing.assert_allclose(sketched(both)[:-2], expected, atol=1e-4)


def test_every_number_is_in_it_once_with_a_sign():
    for place in (0, WIDTH - 1, WIDTH, 2 * WIDTH, 2 * WIDTH + 6):
        values = [torch.zeros(5), torch.zeros(2 * WIDTH + 7)]
        values[1][place] = 3.0
        sums = sketched(values)
        assert sorted(np.abs(sums[:-2]))[-2:] == [0.0, 3.0]
        assert np.abs(sums[place % WIDTH]) == 3.0
        assert sums[-2] == 9.0


def test_ranks_with_the_same_seed_can_be_compared_and_others_cannot():
    values = drawn([5 * WIDTH], 1)
    assert (sketched(values, seed=1) == sketched(values, seed=1)).all()
    assert (sketched(values, seed=1) != sketched(values, seed=2)).any()


@pytest.mark.parametrize("ranks", [2, 5])
def test_the_estimate_is_the_consensus_error_on_average_over_seeds(ranks):
    sizes, seeds = [3 * WIDTH + 100, 40, WIDTH], 400
    weights = [drawn(sizes, 7 + rank) for rank in range(ranks)]
    shared = drawn(sizes, 99, scale=3.0)  # what all have in common must not count
    weights = [[own + common for own, common in zip(values, shared, strict=True)] for values in weights]
    found = np.array([estimate(sum(sketched(values, seed) for values in weights), ranks)[1] for seed in range(seeds)])
    expected = true_error(weights)
    standard_error = found.std(ddof=1) / np.sqrt(seeds)
    assert abs(found.mean() - expected) < 4 * standard_error
    assert found.std(ddof=1) / expected < 2 * np.sqrt(2 / WIDTH)  # as its docstring says, about


def test_weights_that_fit_into_a_sketch_are_measured_exactly():
    weights = [drawn([WIDTH], rank) for rank in range(3)]
    _, error = estimate(sum(sketched(values) for values in weights), 3)
    assert error == pytest.approx(true_error(weights), rel=1e-5)


def test_equal_ranks_have_no_error_and_none_is_negative():
    values = drawn([5000], 3)
    step, error = estimate(sum(sketched(values, step=place) for place in (10, 11, 12)), 3)
    assert step == 11
    assert 0.0 <= error < 1e-9 * sum(float((value**2).sum()) for value in values)


def test_it_holds_what_the_values_were_when_it_was_taken():
    values = drawn([3000], 0)
    sketch = Sketch(values, 0)
    sketch.take()
    taken = sketch.to_sum(1)
    values[0].mul_(2)
    assert (sketch.to_sum(1) == taken).all()
    sketch.take()
    np.testing.assert_allclose(sketch.to_sum(1)[:-2], 2 * taken[:-2], rtol=1e-6, atol=1e-6)
