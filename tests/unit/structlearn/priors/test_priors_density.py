"""Priors: normaliser, density and moments against scipy's distributions."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from structlearn.priors import Prior


@settings(deadline=None)
@given(p=st.floats(0.4, 10), scale=st.floats(1e-6, 1e6))
def test_generalised_normal_distributions(p, scale):
    prior, wanted = Prior(lambda x: -(np.abs(x / scale) ** p)), stats.gennorm(p, scale=scale)
    x = scale * np.linspace(-2, 2, 9)
    np.testing.assert_allclose(prior.log_density(x), wanted.logpdf(x), rtol=1e-11, atol=1e-11)
    assert prior.variance == pytest.approx(wanted.var(), rel=1e-11)
    assert prior.moment(4) == pytest.approx(scale**4 * math.gamma(5 / p) / math.gamma(1 / p), rel=1e-11)
    assert prior.mean == pytest.approx(0, abs=1e-12 * scale)
    assert prior.moment(3) == pytest.approx(0, abs=1e-12 * wanted.std() ** 3)


@settings(deadline=None)
@given(mean=st.floats(-1e4, 1e4), sd=st.floats(0.05, 20))
def test_a_normal_distribution_anywhere(mean, sd):
    prior = Prior(lambda x: -((x - mean) ** 2) / (2 * sd**2))
    assert prior.mean == pytest.approx(mean, rel=1e-10, abs=1e-10 * sd)
    assert prior.variance == pytest.approx(sd**2, rel=1e-9)
    assert prior.moment(3, about=mean) == pytest.approx(0, abs=1e-8 * sd**3)


def test_a_skewed_one():
    wanted = stats.gumbel_r(loc=0.3, scale=2.0)
    prior = Prior(lambda x: -(x - 0.3) / 2 - np.exp(-(x - 0.3) / 2))
    assert prior.mean == pytest.approx(wanted.mean(), rel=1e-11)
    assert prior.variance == pytest.approx(wanted.var(), rel=1e-11)
    skewness = prior.moment(3, about=prior.mean) / prior.variance**1.5
    assert skewness == pytest.approx(float(wanted.stats("s")), rel=1e-9)


def test_moments_that_do_not_exist():
    cauchy = Prior(lambda x: -np.log1p(x**2))
    assert cauchy.log_kappa == pytest.approx(math.log(math.pi))
    assert math.isnan(cauchy.mean)
    assert cauchy.second_moment == cauchy.variance == math.inf
    assert Prior(lambda x: 0 * x).log_kappa == math.inf


@pytest.mark.parametrize("d", [2, 3, 10, 1000, 10**6])
def test_radial_priors(d):
    """exp(-||x||) / kappa has the norm of a gamma distribution, exp(-||x||^2 / 2) / kappa is normal."""
    lasso = Prior(lambda x: -x, d)
    assert lasso.second_moment == pytest.approx(stats.gamma(d).moment(2), rel=1e-9)
    assert lasso.variance == pytest.approx(d + 1, rel=1e-9)
    sphere = math.log(2) + d / 2 * math.log(math.pi) - math.lgamma(d / 2)
    assert lasso.log_kappa == pytest.approx(sphere + math.lgamma(d), rel=1e-12)  # W 4.5.2
    normal = Prior(lambda x: -(x**2) / 2, d)
    assert normal.log_kappa == pytest.approx(d / 2 * math.log(2 * math.pi), rel=1e-10)
    assert normal.variance == pytest.approx(1, rel=1e-9)
    assert normal.mean == 0
    assert normal.log_density(1.5) == pytest.approx(-d / 2 * math.log(2 * math.pi) - 1.125, rel=1e-10)


def test_bad_dimensions_and_centres():
    with pytest.raises(ValueError, match="dimension must be a whole number of at least 1, got 0"):
        Prior(lambda x: -x, 0)
    with pytest.raises(ValueError, match="about 0; got 1"):
        Prior(lambda x: -x, 2).moment(2, about=1.0)
