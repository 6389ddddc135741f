"""The switch: equal to the sum over all sequences of predictors, and what holds whatever it is told."""

from __future__ import annotations

import math
from itertools import pairwise, product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from structlearn.alrao import Switch

ONE = torch.ones(())


def prior(changes: list[int], steps: int, count: int, theta: float, *, last: bool) -> float:
    """The chance of a sequence of predictors that changes after the steps `changes`, among the first `steps`.

    The first predictor and each new one are drawn evenly, and each may be the last, with chance 1 - theta. One that is
    not the last stays after step t with chance t/(t+1): from after a change in s up to t, (s+1)/(t+1).
    """
    chance = (1 / count) ** (1 + len(changes)) * theta ** len(changes)
    for before, after in pairwise([0, *changes]):
        chance *= (before + 1) / after * (1 / (after + 1))
    since = changes[-1] if changes else 0
    return chance * ((1 - theta) if last else theta * (since + 1) / (steps + 1))


def by_enumeration(likelihoods: list[list[float]], theta: float) -> list[float]:
    """What each predictor is worth for the next step, from all sequences of predictors one by one."""
    steps, count = len(likelihoods), len(likelihoods[0])
    worth = [0.0] * count
    for flags in product((False, True), repeat=steps):
        changes = [t for t, changed in enumerate(flags, 1) if changed]
        chance = sum(prior(changes, steps, count, theta, last=last) for last in (False, True))
        spans = list(pairwise([0, *changes, steps]))
        said = [[math.prod(row[j] for row in likelihoods[a:b]) for j in range(count)] for a, b in spans]
        for predictors in product(range(count), repeat=len(spans)):
            worth[predictors[-1]] += chance * math.prod(part[j] for part, j in zip(said, predictors, strict=True))
    return [each / sum(worth) for each in worth]


def follow(switch: Switch, rows: list[list[float]]) -> list[torch.Tensor]:
    posteriors = []
    for row in rows:
        switch.update(torch.tensor(row, dtype=torch.float64), ONE)
        posteriors.append(switch.posterior().exp())
    return posteriors


def assert_as_enumerated(rows: list[list[float]], theta: float) -> None:
    for t, posterior in enumerate(follow(Switch(len(rows[0]), theta=theta), rows), 1):
        expected = by_enumeration([[math.exp(value) for value in row] for row in rows[:t]], theta)
        torch.testing.assert_close(posterior, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-12)


def tables(most_steps: int, most_heads: int) -> st.SearchStrategy[list[list[float]]]:
    values = st.floats(-6, 3, width=32)
    return st.integers(2, most_heads).flatmap(
        lambda count: st.lists(st.lists(values, min_size=count, max_size=count), min_size=1, max_size=most_steps)
    )


def test_the_chances_of_all_sequences_add_up_to_one() -> None:
    total = 0.0
    for flags in product((False, True), repeat=8):
        changes = [t for t, changed in enumerate(flags, 1) if changed]
        total += sum(3 ** (1 + len(changes)) * prior(changes, 8, 3, 0.9, last=last) for last in (False, True))
    assert total == pytest.approx(1, abs=1e-12)


@settings(max_examples=40, deadline=None)
@given(tables(4, 4), st.sampled_from([0.999, 0.9999, 0.5, 0.01]))
def test_the_posterior_is_that_of_all_sequences(rows: list[list[float]], theta: float) -> None:
    assert_as_enumerated(rows, theta)


@pytest.mark.parametrize(("steps", "count"), [(8, 2), (6, 3), (5, 4)])
@pytest.mark.parametrize("theta", [0.999, 0.6])
def test_the_posterior_is_that_of_all_sequences_over_more_steps(steps: int, count: int, theta: float) -> None:
    rows = torch.randn(steps, count, generator=torch.Generator().manual_seed(steps), dtype=torch.float64)
    assert_as_enumerated(rows.tolist(), theta)


@pytest.mark.slow
def test_the_posterior_is_that_of_all_sequences_of_four_over_eight_steps() -> None:
    rows = torch.randn(8, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    assert_as_enumerated(rows.tolist(), 0.999)


@settings(max_examples=40, deadline=None)
@given(tables(30, 6), st.randoms())
def test_it_is_normalised_and_knows_no_order_of_predictors(rows: list[list[float]], random: object) -> None:
    order = list(range(len(rows[0])))
    random.shuffle(order)
    plain = follow(Switch(len(order)), rows)
    permuted = follow(Switch(len(order)), [[row[j] for j in order] for row in rows])
    for one, other in zip(plain, permuted, strict=True):
        assert float(one.sum()) == pytest.approx(1, abs=1e-12)
        torch.testing.assert_close(one[order], other, rtol=1e-9, atol=1e-300)


def test_one_predictor_is_trusted_whatever_it_says() -> None:
    switch = Switch(1)
    for value in (-3.0, math.nan, -math.inf):
        switch.update(torch.tensor([value]), ONE)
        assert switch.posterior().tolist() == [0.0]


@pytest.mark.parametrize("value", [math.nan, -math.inf, math.inf])
def test_a_predictor_that_is_not_finite_once_is_lost_and_no_other(value: float) -> None:
    switch, without = Switch(3), Switch(3)
    switch.update(torch.tensor([-1.0, value, -2.0]), ONE)
    without.update(torch.tensor([-1.0, -math.inf, -2.0]), ONE)
    for _ in range(5):
        for each in (switch, without):
            each.update(torch.tensor([-1.0, 0.0, -1.5]), ONE)
    assert switch.alive.tolist() == [True, False, True]
    assert switch.posterior()[1] == -math.inf
    assert float(switch.posterior().exp().sum()) == pytest.approx(1, abs=1e-12)
    assert torch.equal(switch.posterior(), without.posterior())


@pytest.mark.parametrize("value", [math.nan, -math.inf])
@pytest.mark.parametrize("dead", [False, True])
def test_a_step_at_which_nobody_is_finite_says_nothing(value: float, dead: bool) -> None:
    """Time goes on, as if all had said the same; nobody is lost who was not before."""
    switch, same = Switch(3), Switch(3)
    for each in (switch, same):
        each.update(torch.tensor([-1.0, -2.0, math.nan if dead else -2.5]), ONE)
    switch.update(torch.tensor([value, value, 0.0 if dead else value]), ONE)
    same.update(torch.tensor([-4.0, -4.0, -4.0]), ONE)
    assert switch.alive.tolist() == [True, True, not dead]
    torch.testing.assert_close(switch.logw, same.logw, rtol=1e-12, atol=1e-12)


def test_who_is_declared_lost_is_lost_unless_nobody_would_be_left() -> None:
    switch = Switch(3)
    switch.lose(torch.tensor([True, False, False]))
    switch.lose(torch.tensor([False, True, True]))
    assert switch.alive.tolist() == [False, True, True]


@pytest.mark.parametrize("examples", [1, 7])
def test_per_example_is_per_batch_that_is_told_sums(examples: int) -> None:
    one, other = Switch(4, per="example"), Switch(4, per="batch")
    for row in torch.randn(20, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)):
        one.update(row, torch.tensor(examples, dtype=torch.float64))
        other.update(row * examples, ONE)
    assert torch.equal(one.logw, other.logw)


def test_its_state_is_float64_whatever_becomes_of_the_network() -> None:
    switch = Switch(3)
    switch.update(torch.tensor([-1.0, -2.0, -3.0]), ONE)
    before = switch.logw.clone()
    for changed in (switch.float(), switch.bfloat16(), switch.to(torch.float16)):
        assert changed.logw.dtype == changed._refill.dtype == torch.float64
        assert torch.equal(changed.logw, before)


def test_its_state_is_saved() -> None:
    switch, fresh = Switch(3), Switch(3)
    switch.update(torch.tensor([-1.0, math.nan, -3.0]), ONE)
    fresh.load_state_dict(switch.state_dict())
    for each in (switch, fresh):
        each.update(torch.tensor([-3.0, 1.0, -1.0]), ONE)
    assert torch.equal(switch.logw, fresh.logw)
    assert int(fresh.steps) == 2
    assert fresh.alive.tolist() == [True, False, True]


@pytest.mark.parametrize("options", [{"count": 0}, {"theta": 0.0}, {"theta": 1.0}, {"per": "step"}])
def test_what_makes_no_sense_is_refused(options: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"must be|allowed"):
        Switch(**{"count": 2, **options})


def _best_for(switch: Switch, steps: int, gap: float, best: int = 0) -> None:
    said = torch.full((switch.count,), -gap, dtype=torch.float64)
    said[best] = 0.0
    for _ in range(steps):
        switch.update(said, ONE)


def _mass_that_never_changes(switch: Switch) -> float:
    return float(switch.logw[1].logsumexp(0).exp())


def _floor(switch: Switch) -> float:
    """The least log posterior, against one in K(t+1)."""
    return float(switch.posterior().min()) + math.log(switch.count * (int(switch.steps) + 1))


# Ten predictors, the best ahead by 1 nat a step, theta = .9999 as in the authors' code.
FATES = [(100, 0.0054, -6.46), (1_000, 0.0414, -8.79)]
LATE_FATES = [(10_000, 0.2556, -11.35), (100_000, 0.7317, -14.67)]


def assert_fates(fates: list[tuple[int, float, float]]) -> None:
    switch = Switch(10, theta=0.9999)
    for steps, settled, least in fates:
        _best_for(switch, steps - int(switch.steps), gap=1.0)
        assert _mass_that_never_changes(switch) == pytest.approx(settled, rel=5e-3)
        assert float(switch.posterior().min()) == pytest.approx(least, abs=0.01)
        assert abs(_floor(switch)) < 1  # about one in K (t + 1)


def test_losers_keep_about_one_part_in_all_steps_and_a_change_becomes_unlikely() -> None:
    assert_fates(FATES)


@pytest.mark.slow
def test_after_many_steps_a_change_is_unlikely() -> None:
    assert_fates(LATE_FATES)


@pytest.mark.parametrize(("before", "factor", "steps"), [(100, 1, 68), (1_000, 1, 113), (100, 32, 5), (1_000, 32, 6)])
def test_a_new_best_takes_over_in_so_many_steps(before: int, factor: int, steps: int) -> None:
    assert_takes_over(before, factor, steps)


@pytest.mark.slow
@pytest.mark.parametrize(("factor", "steps"), [(1, 159), (32, 8)])
def test_a_late_new_best_takes_over_in_so_many_steps(factor: int, steps: int) -> None:
    assert_takes_over(10_000, factor, steps)


def assert_takes_over(before: int, factor: int, steps: int) -> None:
    """One ahead by .05 nats an example is trusted by more than a half after `steps`, and not before."""
    switch = Switch(10, theta=0.9999)
    _best_for(switch, before, gap=0.05 * factor)
    _best_for(switch, steps - 1, gap=0.05 * factor, best=1)
    assert switch.posterior()[1] <= math.log(0.5)
    _best_for(switch, 1, gap=0.05 * factor, best=1)
    assert switch.posterior()[1] > math.log(0.5)
