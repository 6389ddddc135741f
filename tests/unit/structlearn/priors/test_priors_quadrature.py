"""Integrals over a half-line: of any scale, narrow, far, with kinks, with heavy tails, and those that diverge."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.special import betaln, gammaln

from structlearn.priors.quadrature import integral, log_integral

SCALES = st.floats(-30, 30).map(lambda power: 10.0**power)


@settings(deadline=None)
@given(p=st.floats(0.3, 12), scale=SCALES, d=st.floats(0.2, 1e5))
def test_generalised_gammas_of_any_scale_and_shape(p, scale, d):
    found = log_integral(lambda x: (d - 1) * np.log(x) - (x / scale) ** p)
    wanted = gammaln(d / p) - math.log(p) + d * math.log(scale)
    assert found == pytest.approx(wanted, rel=1e-12, abs=1e-10)


@settings(deadline=None)
@given(where=st.floats(1e-3, 1e6), width=st.floats(1e-6, 1e-1))
def test_a_narrow_peak_is_found_wherever_it_is(where, width):
    sigma = width * where
    found = log_integral(lambda x: -(((x - where) / sigma) ** 2) / 2)
    assert found == pytest.approx(math.log(2 * math.pi) / 2 + math.log(sigma), abs=1e-8)


@settings(deadline=None)
@given(power=st.floats(1.02, 30))
def test_a_heavy_tail_goes_on_beyond_where_it_was_looked_at(power):
    found = log_integral(lambda x: -power / 2 * np.log1p(x * x))
    assert found == pytest.approx(betaln(0.5, (power - 1) / 2) - math.log(2), abs=1e-5)


@pytest.mark.parametrize("power", [1.0, 0.99, 0.5, 0.0, -1.0])
def test_a_tail_that_is_too_heavy_diverges(power):
    assert log_integral(lambda x: -power / 2 * np.log1p(x * x)) == math.inf


def test_bertrand_is_on_the_border():
    def weight(power):
        return lambda x: -np.log(x + 1) - power * np.log(np.log(x + math.e))

    assert log_integral(weight(0.9)) == math.inf
    assert math.isfinite(log_integral(weight(2.0)))


@pytest.mark.parametrize(("power", "finite"), [(-0.9, True), (-1.0, False), (-1.5, False)])
def test_a_pole_at_0_is_integrated_or_diverges(power, finite):
    found = log_integral(lambda x: power * np.log(x) - x)
    assert found == pytest.approx(math.lgamma(1 + power), abs=1e-9) if finite else found == math.inf


def test_kinks_and_ends_in_the_middle_cost_no_digits():
    def kinked(x):
        return -np.abs(x - 0.7) - 3 * np.abs(x - 1.9)

    wanted, _ = quad(lambda x: math.exp(kinked(x)), 0, 60, points=[0.7, 1.9], epsabs=0, epsrel=1e-13)
    assert math.exp(log_integral(kinked)) == pytest.approx(wanted, rel=1e-12)
    assert math.exp(log_integral(lambda x: np.where(x < 0.3, 0.0, -np.inf))) == pytest.approx(0.3, rel=1e-12)


def test_nothing_is_nothing():
    assert log_integral(lambda x: np.full_like(x, -np.inf)) == -math.inf


def test_what_is_no_number_or_too_narrow_is_an_error():
    with pytest.raises(ValueError, match="is no number at x"):
        log_integral(lambda x: np.where(x > 1, np.nan, -x))
    with pytest.raises(ValueError, match=r"the peak at x = 1.41421 is too narrow: relative to x, below 9e-13"):
        log_integral(lambda x: -((x * x - 2) ** 2) * 1e300)


def test_noise_of_the_functions_own_rounding_ends_the_halving():
    noise = np.random.default_rng(0)
    assert integral(lambda x: 1 + 1e-6 * noise.random(x.shape), np.array([0.0, 1.0])) == pytest.approx(1, abs=2e-6)
