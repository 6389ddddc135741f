"""Posteriors: moments, entropies, characteristic functions, and what is seen of the theorem's conditions."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import special, stats

from structlearn.priors import ByCharacteristicFunction, Dirac, Gaussian


def logistic(xi):
    """pi xi / sinh(pi xi)."""
    y = 2 * np.pi * np.abs(xi)
    return np.where(y < 1e-8, 1.0, y * np.exp(-y / 2) / np.where(y < 1e-8, 1.0, -np.expm1(-y)))


def gumbel(xi):
    return special.gamma(1 - 1j * np.clip(xi, -400, 400)) * (np.abs(xi) < 400)


def student(xi, degrees=9):
    y = np.sqrt(degrees) * np.abs(xi) + 1e-300
    value = special.kve(degrees / 2, y) * np.exp(-y) * y ** (degrees / 2)
    return np.where(y < 1e-9, 1.0, value / (special.gamma(degrees / 2) * 2 ** (degrees / 2 - 1)))


SMOOTH = {
    "normal": (Gaussian(0.09), stats.norm(scale=0.3)),
    "logistic": (ByCharacteristicFunction(logistic, stats.logistic.logpdf, "logistic"), stats.logistic()),
    "logistic inverted": (ByCharacteristicFunction(logistic), stats.logistic()),
    "gumbel": (ByCharacteristicFunction(gumbel, stats.gumbel_r.logpdf, "gumbel"), stats.gumbel_r()),
}


@pytest.mark.parametrize("name", SMOOTH)
def test_moments_and_entropies_are_scipys(name):
    ours, wanted = SMOOTH[name]
    assert ours.entropy == pytest.approx(float(wanted.entropy()), rel=1e-10)
    for order in range(7):
        assert ours.moment(order) == pytest.approx(wanted.moment(order), rel=1e-7, abs=1e-9)
    assert ours.outside == ()


@pytest.mark.parametrize(("name", "exact"), [("logistic", 1e-14), ("logistic inverted", 1e-7)])
def test_a_high_moment_in_closed_form(name, exact):
    assert SMOOTH[name][0].moment(6) == pytest.approx(31 * math.pi**6 / 21, rel=exact)


@pytest.mark.parametrize("name", SMOOTH)
def test_nodes_and_characteristic_function_belong_together(name):
    ours, wanted = SMOOTH[name]
    x, weights = ours.nodes
    for xi in np.array([0.0, 0.1, 0.7, 2.0]) / wanted.std():
        assert complex(ours.characteristic(np.array([xi]))[0]) == pytest.approx((weights * np.exp(1j * xi * x)).sum())
    near = wanted.mean() + wanted.std() * np.linspace(-3, 3, 7)
    np.testing.assert_allclose(ours.log_density(near), wanted.logpdf(near), rtol=1e-9, atol=1e-9)


def test_a_posterior_with_a_kink_is_not_smooth():
    found = ByCharacteristicFunction(lambda xi: 1 / (1 + xi**2), stats.laplace.logpdf).outside
    assert len(found) == 1
    assert "falls like a power: its density is not smooth" in found[0]


def test_a_zero_of_the_characteristic_function_is_found():
    box = ByCharacteristicFunction(lambda xi: np.sinc(xi / np.pi), stats.uniform(-1, 2).logpdf)
    assert "characteristic function is 0 at xi = 3.14159" in box.outside[0]
    waves = ByCharacteristicFunction(  # an even mixture of two normal distributions, at -2 and 2
        lambda xi: np.cos(2 * xi) * np.exp(-(xi**2) / 2),
        lambda x: np.logaddexp(stats.norm.logpdf(x, -2), stats.norm.logpdf(x, 2)) - math.log(2),
    )
    assert waves.outside == (f"the posterior's characteristic function is 0 at xi = {math.pi / 4:.6g}",)


def test_heavy_tails_are_found_and_have_few_moments():
    heavy = ByCharacteristicFunction(student, stats.t(9).logpdf)
    assert heavy.outside == ("the posterior's density falls like |x|^-10, not faster than any power",)
    assert heavy.moment(6) == pytest.approx(stats.t(9).moment(6))
    assert heavy.moment(10) == math.inf
    assert math.isnan(heavy.moment(11))


def test_bad_posteriors():
    with pytest.raises(ValueError, match="variance must be above 0, got 0"):
        Gaussian(0)
    with pytest.raises(
        ValueError, match=r"the variance is learned: ask a Gaussian of one variance, Gaussian\(variance"
    ):
        Gaussian().entropy  # noqa: B018
    with pytest.raises(ValueError, match="dimension must be a whole number"):
        Dirac(0)
    with pytest.raises(ValueError, match="is 1 at 0, got 2"):
        ByCharacteristicFunction(lambda xi: 2 * np.exp(-(xi**2)))
    with pytest.raises(ValueError, match=r"do not belong together.*check both"):
        ByCharacteristicFunction(logistic, stats.norm.logpdf)
    with pytest.raises(ValueError, match="give log_density: the tails are too heavy for an inversion"):
        ByCharacteristicFunction(lambda xi: np.exp(-np.abs(xi)))
    with pytest.raises(ValueError, match="falls too slowly to be inverted"):
        ByCharacteristicFunction(np.ones_like)


def test_names():
    assert [repr(p) for p in (Dirac(), Dirac(3), Gaussian(), Gaussian(0.25))] == [
        "Dirac", "Dirac on R^3", "Gaussian of learned variance", "Gaussian of variance 0.25",
    ]  # fmt: skip
