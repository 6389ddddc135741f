"""Polynomial penalties: division by the characteristic function, recognition, words."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.polynomial import HermiteE, polynomial
from scipy import stats

from structlearn.priors import ByCharacteristicFunction, Gaussian, Polynomial
from structlearn.priors.polynomials import divided, recognised, written

COEFFICIENTS = st.lists(st.floats(-10, 10), min_size=1, max_size=7)


def test_l2_under_a_gaussian_is_theta_squared_less_its_variance():
    """W remark 5."""
    found, _ = divided(np.array([0.0, 0.0, 1.0]), Gaussian(0.3))
    np.testing.assert_array_equal(found, [-0.3, 0, 1])


@pytest.mark.parametrize("degree", range(7))
def test_powers_under_the_standard_normal_are_hermites_polynomials(degree):
    power = np.eye(degree + 1)[degree]
    found, _ = divided(power, Gaussian(1.0))
    np.testing.assert_allclose(found, HermiteE(power).convert(kind=polynomial.Polynomial).coef, atol=1e-13)


@settings(deadline=None)
@given(COEFFICIENTS, st.floats(1e-3, 3))
def test_it_is_the_heat_equation_backwards(coefficients, variance):
    """Of a Gaussian the operator is exp(-(s^2/2) d^2/dtheta^2)."""
    wanted, term = np.zeros(len(coefficients)), np.array(coefficients)
    for k in range(len(coefficients) // 2 + 1):
        wanted[: len(term)] += (-variance / 2) ** k / math.factorial(k) * term
        term = polynomial.polyder(term, 2) if len(term) > 2 else np.zeros(1)
    np.testing.assert_allclose(divided(np.array(coefficients), Gaussian(variance))[0], wanted, rtol=1e-9, atol=1e-9)


@settings(deadline=None)
@given(COEFFICIENTS, st.floats(-2, 2))
def test_the_expectation_gives_the_penalty_back_also_for_a_skewed_posterior(coefficients, mu):
    """E quotient(mu + x) = r(mu): brute force with samples' exact moments, those of three points."""
    points, weights = np.array([-1.0, 0.5, 2.0]), np.array([0.5, 0.3, 0.2])

    class Points:
        @staticmethod
        def moment(order):
            return float(weights @ points**order)

    quotient, size = divided(np.array(coefficients), Points())
    mean = weights @ polynomial.polyval(mu + points, quotient)
    scale = polynomial.polyval(abs(mu) + 2, size)
    assert mean == pytest.approx(polynomial.polyval(mu, coefficients), abs=1e-12 * scale + 1e-12)


def test_a_skewed_posterior_shifts():
    """Of Gumbel's distribution the mean is Euler's gamma: mu becomes theta - gamma."""
    posterior = ByCharacteristicFunction(lambda xi: 1 / (1 + xi**2), stats.laplace.logpdf)
    np.testing.assert_allclose(divided(np.array([0, 0, 1.0]), posterior)[0], [-2, 0, 1], atol=1e-12)
    from scipy.special import gamma

    gumbel = ByCharacteristicFunction(
        lambda xi: gamma(1 - 1j * np.clip(xi, -400, 400)) * (np.abs(xi) < 400), stats.gumbel_r.logpdf
    )
    np.testing.assert_allclose(divided(np.array([0, 1.0]), gumbel)[0], [-np.euler_gamma, 1], atol=1e-12)


@settings(deadline=None)
@given(st.lists(st.integers(-50, 50).map(lambda n: n / 8), min_size=1, max_size=7))
def test_functions_that_are_polynomials_are_recognised(coefficients):
    found = recognised(lambda mu: polynomial.polyval(mu, coefficients))
    wanted = np.trim_zeros(coefficients, "b") or [0.0]
    np.testing.assert_allclose(found, wanted, atol=1e-9 * np.abs(wanted).max())


@pytest.mark.parametrize(
    "function",
    [np.abs, np.cos, lambda mu: np.log1p(mu**2), lambda mu: np.abs(mu) ** 3, lambda mu: np.minimum(mu**2, 1e6),
     lambda mu: mu**2 + np.abs(mu) * 1e-3, np.exp, np.log],
)  # fmt: skip
def test_functions_that_are_none_are_not(function):
    assert recognised(function) is None


def test_evaluation_with_and_without_variance():
    r = Polynomial([lambda nu: 2 * nu, 1, lambda nu: nu**2])
    assert r(np.array([0.0, 2.0]), 3.0).tolist() == [6, 6 + 2 + 36]
    np.testing.assert_array_equal(Polynomial([1, 0, 0]).at(), [1])
    np.testing.assert_array_equal(Polynomial([0]).at(), [0])


def test_bad_polynomials():
    with pytest.raises(ValueError, match="at least one coefficient"):
        Polynomial([])
    with pytest.raises(ValueError, match=r"coefficient of mu\^1 must be finite or a function, got nan"):
        Polynomial([1, math.nan])
    with pytest.raises(ValueError, match=r"coefficient of mu\^0 is a function of the variance: give the variance"):
        Polynomial([lambda nu: nu])(1.0)
    with pytest.raises(ValueError, match=r"coefficient of mu\^0 is inf at variance 2"):
        Polynomial([lambda nu: nu * math.inf])(1.0, 2.0)
    with pytest.raises(ValueError, match="variance must be above 0"):
        Polynomial([1])(1.0, -1.0)


@pytest.mark.parametrize(
    ("coefficients", "text"),
    [
        ([0], "0"),
        ([-0.01, 0, 1], "theta^2 - 0.01"),
        ([1, -1], "-theta + 1"),
        ([0, 0, -2.5], "-2.5 theta^2"),
        ([3], "3"),
    ],
)
def test_words(coefficients, text):
    assert written(np.array(coefficients, dtype=float), "theta") == text


def test_names():
    assert repr(Polynomial([0, 0, 1])) == "mu^2"
    assert repr(Polynomial([lambda nu: nu, 0, 1])) == "polynomial of degree 2, coefficients by variance"
