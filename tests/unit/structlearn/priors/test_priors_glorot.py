"""The strength of a penalty: W table 4.1 and others, in closed form and by the moments of scipy's distributions."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad

from structlearn.priors import ByCharacteristicFunction, Dirac, Gaussian, Polynomial, Prior, glorot_strength

INPUTS = st.one_of(st.integers(1, 10), st.integers(1, 10**5))


@settings(deadline=None, max_examples=40)
@given(inputs=INPUTS, units=INPUTS)
def test_the_four_of_table_4_1(inputs, units):
    p = inputs
    assert glorot_strength(lambda w: w**2, p) == pytest.approx(p / 2, rel=1e-12)
    assert glorot_strength(np.abs, p) == pytest.approx(math.sqrt(2 * p), rel=1e-12)
    assert glorot_strength(lambda norm: norm, p, group=p) == pytest.approx(math.sqrt(p * (p + 1)), rel=1e-9)
    assert glorot_strength(lambda norm: norm, p, group=units) == pytest.approx(math.sqrt(p * (units + 1)), rel=1e-9)


@settings(deadline=None, max_examples=40)
@given(inputs=st.integers(1, 1000), units=st.integers(1, 300), side=st.sampled_from([1, 3, 5, 7]))
def test_groups_of_a_convolution_by_input_channel(inputs, units, side):
    """W prints the linear layer only: sqrt(P (n + 1)). With k x k patches a group has n k^2 weights."""
    p, d = inputs * side**2, units * side**2
    assert glorot_strength(lambda norm: norm, p, group=d) == pytest.approx(math.sqrt(p * (d + 1)), rel=1e-9)


def test_a_million_weights_in_a_group():
    found = glorot_strength(lambda norm: norm, 10**5, group=10**6)
    assert found == pytest.approx(math.sqrt(10**5 * (10**6 + 1)), rel=1e-9)


@settings(deadline=None, max_examples=40)
@given(inputs=INPUTS, p=st.floats(0.3, 8))
def test_powers(inputs, p):
    """Of exp(-lam |w|^p) E w^2 is lam^(-2/p) gamma(3/p) / gamma(1/p)."""
    wanted = (inputs * math.exp(math.lgamma(3 / p) - math.lgamma(1 / p))) ** (p / 2)
    assert glorot_strength(lambda w: np.abs(w) ** p, inputs) == pytest.approx(wanted, rel=1e-10)


@settings(deadline=None, max_examples=40)
@given(inputs=INPUTS, d=st.integers(1, 1000))
def test_heavy_tails(inputs, d):
    """exp(-lam ln(1 + w^2)) is Student's distribution, E w^2 = d / (2 lam - d - 2)."""
    found = glorot_strength(lambda w: np.log1p(w**2), inputs, group=d)
    assert found == pytest.approx((inputs + d + 2) / 2, rel=1e-9)


@pytest.mark.parametrize(
    "penalty",
    [
        lambda w: np.where(np.abs(w) < 0.1, w**2 / 0.2, np.abs(w) - 0.05),  # Huber
        lambda w: np.abs(w) + 3 * w**2,  # elastic net
        lambda w: np.sqrt(0.01 + w**2) - 0.1,
        lambda w: np.cosh(w) - 1,
        Polynomial([0, 0, 1, 0, 2]),
    ],
)
@pytest.mark.parametrize("inputs", [3, 1000])
def test_the_prior_of_the_penalty_with_this_strength_has_glorots_variance(penalty, inputs):
    lam = glorot_strength(penalty, inputs)

    def moment(order):
        far = 60 / math.sqrt(inputs)
        points = [-0.1, 0.0, 0.1]
        return quad(
            lambda w: w**order * math.exp(-lam * float(penalty(w))), -far, far, points=points, epsrel=1e-12, limit=500
        )[0]

    assert moment(2) / moment(0) == pytest.approx(1 / inputs, rel=1e-8)


def test_a_posterior_with_a_variance():
    """L2's prior does not depend on it; that of mu^4 + mu^2 does."""
    assert glorot_strength(lambda w: w**2, 100, posterior=Gaussian(0.3)) == pytest.approx(50, rel=1e-12)
    r = Polynomial([0, 0, 1, 0, 1])
    lam = glorot_strength(r, 100, posterior=Gaussian(0.01))
    prior = Prior(lambda w: -lam * (w**4 + (1 - 6 * 0.01) * w**2))
    assert prior.second_moment == pytest.approx(0.01, rel=1e-12)
    assert lam != pytest.approx(glorot_strength(r, 100), rel=1e-3)
    assert lam == pytest.approx(glorot_strength(lambda mu: mu**2 + mu**4, 100, posterior=Gaussian(0.01)), rel=1e-9)


def test_dirac_is_what_is_taken_otherwise():
    assert glorot_strength(np.abs, 8, posterior=Dirac()) == glorot_strength(np.abs, 8) == pytest.approx(4)
    assert glorot_strength(np.abs, 8, group=3, posterior=Dirac(3)) == pytest.approx(math.sqrt(32))


@pytest.mark.parametrize(
    ("penalty", "message"),
    [
        (lambda w: 1 - np.exp(-(w**2)), "up to lam = 1e.39 it is infinite"),
        (lambda w: np.log(np.abs(w)), "up to lam = 1e.39 it is infinite"),
        (lambda w: -(w**2), "up to lam = 1e.39 it is infinite"),
        (lambda w: 0 * w, "up to lam = 1e.39 it is infinite"),
        (lambda w: (w**2 - 1) ** 2, "it has settled at 0.99.*least at 0 alone"),
        (lambda w: np.where(np.abs(w) < 0.1, w**2, np.inf), "it has settled at 0.00333.*must be finite"),
        (lambda w: (w - 0.1) ** 2, "the prior's mean is 0.1, not 0; centre the penalty"),
    ],
)
def test_penalties_without_a_strength(penalty, message):
    with pytest.raises(ValueError, match=message):
        glorot_strength(penalty, 10)


def test_bad_questions():
    with pytest.raises(ValueError, match="inputs must be a whole number of at least 1, got 0"):
        glorot_strength(np.abs, 0)
    with pytest.raises(ValueError, match="group must be a whole number of at least 1, got 0"):
        glorot_strength(np.abs, 5, group=0)
    with pytest.raises(ValueError, match="where the variance is learned"):
        glorot_strength(lambda w: w**2, 5, posterior=Gaussian())
    with pytest.raises(ValueError, match="must be a polynomial: others lie outside"):
        glorot_strength(np.abs, 5, posterior=Gaussian(1))
    with pytest.raises(ValueError, match="a group needs Dirac"):
        glorot_strength(lambda w: w**2, 5, group=2, posterior=Gaussian(1))
    with pytest.raises(ValueError, match=r"the posterior is on R\^3, and group = 2"):
        glorot_strength(np.abs, 5, group=2, posterior=Dirac(3))
    heavy = ByCharacteristicFunction(lambda xi: np.exp(-np.abs(xi)), lambda x: -np.log(np.pi) - np.log1p(x**2))
    with pytest.raises(ValueError, match="no moment of order 1"):
        glorot_strength(lambda w: w**2, 5, posterior=heavy)
