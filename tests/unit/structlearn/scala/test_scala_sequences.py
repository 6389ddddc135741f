"""The sequences of scaling factors: closed forms, and the rule for their sum."""

from __future__ import annotations

from math import log, pi, sqrt

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from structlearn.scala import SEQUENCES, scaling

NAMES = st.sampled_from(sorted(SEQUENCES))


@settings(deadline=None)
@given(
    name=NAMES,
    inputs=st.integers(1, 3000),
    area=st.integers(1, 49),
    s2=st.floats(0.01, 10),
    biases=st.floats(0, 0.99),
)
def test_pre_activations_have_the_variance_wanted(name, inputs, area, s2, biases):
    """W eqs. 3.4 and 3.5."""
    sigma = scaling(name, inputs, kernel_area=area, s2=s2, tau_b2=biases * s2)
    assert sigma.shape == (inputs,)
    assert sigma.dtype == torch.float64
    assert area * sigma.square().sum().item() + biases * s2 == pytest.approx(s2, rel=1e-12)
    assert (sigma > 0).all()
    assert (sigma.diff() <= 0).all()


@settings(deadline=None)
@given(name=NAMES, groups=st.integers(1, 8), each=st.integers(1, 20), area=st.sampled_from([1, 9, 25]))
def test_each_group_of_a_convolution_meets_the_rule_by_itself(name, groups, each, area):
    sigma = scaling(name, groups * each, kernel_area=area, groups=groups).view(groups, each)
    torch.testing.assert_close(area * sigma.square().sum(1), torch.full((groups,), 2.0).double())


@settings(deadline=None)
@given(name=NAMES, ranks=st.lists(st.integers(0, 50), min_size=1, max_size=40))
def test_inputs_of_one_place_share_a_factor_and_all_meet_the_rule(name, ranks):
    sigma = scaling(name, torch.tensor(ranks), s2=1.0)
    assert sigma.square().sum().item() == pytest.approx(1)
    of_place = dict(zip(ranks, sigma.tolist(), strict=True))
    assert sigma.tolist() == [of_place[rank] for rank in ranks]
    plain = scaling(name, 51)  # the same sequence, whatever its factor
    for rank, factor in of_place.items():
        assert factor / of_place[ranks[0]] == pytest.approx((plain[rank] / plain[ranks[0]]).item())


def test_closed_forms():
    assert scaling("uniform", 8).tolist() == pytest.approx([0.5] * 8)
    # sum of 1 / k^2 over k = 1, 2, 3: 49 / 36
    assert scaling("inverse", 3, s2=49 / 36).tolist() == pytest.approx([1, 1 / 2, 1 / 3])
    first, second = scaling("sqrt_log", 2).tolist()
    assert first / second == pytest.approx(sqrt(3) * log(3) / (sqrt(2) * log(2)))
    # A depthwise convolution of 3 x 3 sees one channel: 9 sigma^2 = 2.
    assert scaling("sqrt_log", 4, kernel_area=9, groups=4).tolist() == pytest.approx([sqrt(2) / 3] * 4)


def test_the_first_factors_of_a_falling_sequence_hardly_depend_on_the_width():
    """That is what lets a network be cut, or start too wide (W 3.3.2, corollary 2)."""
    assert scaling("inverse", 10**6, s2=1.0)[0].item() == pytest.approx(sqrt(6) / pi, rel=1e-6)
    narrow, wide = (scaling("sqrt_log", width)[:100] for width in (10**4, 10**6))
    assert (wide / narrow).min() > 0.98
    narrow, wide = (scaling("uniform", width)[:100] for width in (10**4, 10**6))
    assert (wide / narrow).max() < 0.11


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (("sqrtlog", 3), {}, "did you mean 'sqrt_log'"),
        (("uniform", 0), {}, "number of inputs must be a whole number of at least 1, got 0"),
        (("uniform", 3), {"s2": 1.0, "tau_b2": 1.0}, "must be below it, got s2=1.0, tau_b2=1.0"),
        (("uniform", 3), {"s2": 0.0}, "s2 must be above 0"),
        (("uniform", 3), {"groups": 2}, "as many for each of the 2 group"),
        (("uniform", torch.zeros(2, 2)), {}, "one place for each input"),
    ],
)
def test_what_is_no_scaling_is_refused(arguments, options, message):
    with pytest.raises(ValueError, match=message):
        scaling(*arguments, **options)
