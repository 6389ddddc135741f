"""Learning rates: how units draw them and how heads share the interval out."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.stats import binomtest, kstest

from structlearn.alrao import draw, grid


def test_rates_are_log_uniform() -> None:
    rates = draw(20_000, 1e-5, 10).double()
    assert 1e-5 <= float(rates.min()) < float(rates.max()) <= 10
    assert kstest((rates.log10() + 5).numpy() / 6, "uniform").pvalue > 0.01


def test_the_same_seed_draws_the_same_and_another_others() -> None:
    before = torch.get_rng_state()
    assert torch.equal(draw(100, 1e-5, 10, seed=3), draw(100, 1e-5, 10, seed=3))
    assert not torch.equal(draw(100, 1e-5, 10, seed=3), draw(100, 1e-5, 10, seed=4))
    assert torch.equal(torch.get_rng_state(), before)  # torch's own generator is left alone


def test_frozen_units_are_as_many_as_asked_for_and_the_others_keep_their_rates() -> None:
    all_awake, rates = draw(10_000, 1e-5, 10), draw(10_000, 1e-5, 10, frozen=0.3)
    asleep = rates == 0
    assert binomtest(int(asleep.sum()), 10_000, 0.3).pvalue > 0.01
    assert torch.equal(rates[~asleep], all_awake[~asleep])


def test_one_rate_is_one_rate() -> None:
    assert set(draw(50, 0.1, 0.1).tolist()) == {float(torch.tensor(0.1))}
    assert set(grid(5, 0.1, 0.1).tolist()) == {float(torch.tensor(0.1))}


def test_the_grid_is_even_on_a_log_scale_and_has_both_ends() -> None:
    rates = grid(7, 1e-5, 10)
    torch.testing.assert_close(rates, torch.tensor([1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0]))
    assert (rates[0], rates[-1]) == (torch.tensor(1e-5), torch.tensor(10.0))


def test_one_head_alone_has_the_geometric_mean() -> None:
    assert grid(1, 1e-5, 10).tolist() == [pytest.approx(math.sqrt(1e-4))]


@pytest.mark.parametrize(("low", "high"), [(0, 1), (1, 0.1), (1, math.inf), (math.nan, 1)])
def test_an_interval_that_is_none_is_refused(low: float, high: float) -> None:
    for function in (draw, grid):
        with pytest.raises(ValueError, match="interval above 0"):
            function(3, low, high)


def test_a_chance_of_one_and_no_heads_are_refused() -> None:
    with pytest.raises(ValueError, match="frozen"):
        draw(3, 0.1, 1, frozen=1)
    with pytest.raises(ValueError, match="heads"):
        grid(0, 0.1, 1)
