"""Theorem 1: which penalties are KL divergences; each prior checked by scipy's quadrature, from scratch."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special, stats
from scipy.integrate import quad

from structlearn.priors import ByCharacteristicFunction, Dirac, Gaussian, Polynomial, prior_of


def logistic(xi):
    y = 2 * np.pi * np.abs(xi)
    return np.where(y < 1e-8, 1.0, y * np.exp(-y / 2) / np.where(y < 1e-8, 1.0, -np.expm1(-y)))


def divergence(beta, prior, mu):
    """KL(beta moved by mu || prior) by scipy's adaptive quadrature."""

    def integrand(x):
        density = beta.pdf(x)
        return density * (beta.logpdf(x) - float(prior.log_density(mu + x))) if density > 0 else 0.0

    low, high = beta.ppf(1e-30), beta.isf(1e-30)
    points = np.linspace(low, high, 12)[1:-1]
    return quad(integrand, low, high, points=points, epsabs=1e-13, epsrel=1e-13, limit=500)[0]


# --- fixed variance ------------------------------------------------------------------------------------


def test_l2_with_a_gaussian_of_fixed_variance():
    answer = prior_of(lambda mu: mu**2, Gaussian(0.01))
    assert answer.exists
    np.testing.assert_allclose(answer.quotient, [-0.01, 0, 1], atol=1e-15)
    assert answer.prior.variance == pytest.approx(0.5, rel=1e-12)
    assert answer.residual < 1e-13
    assert answer.check.mass < 1e-12
    theta = np.linspace(-2, 2, 9)
    np.testing.assert_allclose(answer.prior.density(theta), stats.norm.pdf(theta, scale=math.sqrt(0.5)), rtol=1e-12)


@settings(max_examples=40, deadline=None)
@given(
    lower=st.lists(st.floats(-5, 5), min_size=6, max_size=6),
    degree=st.sampled_from([2, 4, 6]),
    lead=st.floats(0.05, 5),
    variance=st.floats(0.01, 1.5),
)
def test_polynomials_to_degree_6_by_brute_force(lower, degree, lead, variance):
    r = Polynomial([*lower[:degree], lead])
    answer = prior_of(r, Gaussian(variance))
    assert answer.exists
    beta = stats.norm(scale=math.sqrt(variance))
    differences = [divergence(beta, answer.prior, mu) - float(r(mu)) for mu in (-1.5, 0.0, 0.4, 2.0)]
    scale = 1 + max(abs(float(answer.prior.log_density(x))) for x in (-5, 0, 5))
    np.testing.assert_allclose(differences, answer.prior.log_kappa, atol=1e-10 * scale)
    # The rounding of the polynomial's terms, where the prior is.
    size = 1 + np.polynomial.polynomial.polyval(np.abs(answer.check.mu).max(), np.abs(answer.quotient))
    assert answer.residual < 1e-13 * size
    assert answer.check.mass < 1e-12 + 1e-14 * size


@settings(deadline=None, max_examples=40)
@given(lower=st.lists(st.floats(-5, 5), min_size=5, max_size=5), odd=st.sampled_from([1, 3, 5]), lead=st.floats(0.1, 5))
def test_odd_degrees_have_no_prior(lower, odd, lead):
    for sign in (-1, 1):
        answer = prior_of(Polynomial([*lower[:odd], sign * lead]), Gaussian(0.5))
        assert answer.exists is False
        assert f"the degree {odd} is odd" in answer.why
        assert answer.prior is answer.check is answer.residual is None


def test_a_falling_even_degree_and_a_constant_have_no_prior():
    assert "the highest coefficient, -1, is not above 0" in prior_of(lambda mu: mu**2 - mu**4, Gaussian(1)).why
    for constant in (Polynomial([3]), Polynomial([0]), lambda mu: 0 * mu + 3):
        answer = prior_of(constant, Gaussian(1))
        assert answer.exists is False
        assert "it is constant" in answer.why


def test_a_quotient_with_two_wells_is_a_prior_all_the_same():
    """mu^4 is convex, theta^4 - 6 s^2 theta^2 + 3 s^4 is not."""
    answer = prior_of(lambda mu: mu**4, Gaussian(1.0))
    np.testing.assert_allclose(answer.quotient, [3, 0, -6, 0, 1], atol=1e-12)
    assert answer.exists
    assert answer.prior.density(math.sqrt(3)) > 100 * answer.prior.density(0.0)


@pytest.mark.parametrize("given_density", [True, False])
def test_a_logistic_posterior(given_density):
    posterior = ByCharacteristicFunction(logistic, stats.logistic.logpdf if given_density else None, "logistic")
    r = Polynomial([0, 1, 2, 0, 0.1])
    answer = prior_of(r, posterior)
    assert answer.exists
    assert answer.outside == ()
    for mu in (-1.0, 0.0, 3.0):
        wanted = float(r(mu)) + answer.prior.log_kappa
        assert divergence(stats.logistic(), answer.prior, mu) == pytest.approx(
            wanted, abs=1e-9 if given_density else 1e-5
        )


def test_a_skewed_posterior_is_mirrored():
    """The theorem divides by the transform of beta_0(-x); by that of beta_0 the odd terms would have the other sign."""
    phi = lambda xi: special.gamma(1 - 1j * np.clip(xi, -400, 400)) * (np.abs(xi) < 400)  # noqa: E731
    answer = prior_of(Polynomial([0, 1, 0, -1, 2]), ByCharacteristicFunction(phi, stats.gumbel_r.logpdf, "gumbel"))
    assert answer.exists
    size = np.abs(answer.check.kl).max()
    assert answer.residual < 1e-11 * size
    for mu in (-1.0, 0.5):
        wanted = mu - mu**3 + 2 * mu**4 + answer.prior.log_kappa
        assert divergence(stats.gumbel_r(), answer.prior, mu) == pytest.approx(wanted, rel=1e-9)


def test_a_posterior_outside_the_conditions_can_still_give_the_penalty():
    """Of Laplace's distribution 1 / phi is 1 - d^2/dtheta^2: exact, though its density has a kink."""
    answer = prior_of(lambda mu: mu**2, ByCharacteristicFunction(lambda xi: 1 / (1 + xi**2), stats.laplace.logpdf))
    assert answer.exists
    assert "does not say that no other prior" in answer.why
    assert answer.outside
    np.testing.assert_allclose(answer.quotient, [-2, 0, 1], atol=1e-12)
    assert answer.residual < 1e-10
    odd = prior_of(lambda mu: mu**3, ByCharacteristicFunction(lambda xi: 1 / (1 + xi**2), stats.laplace.logpdf))
    assert odd.exists is None


def test_a_posterior_without_enough_moments_has_an_infinite_divergence():
    def cauchy(xi):
        return np.exp(-np.abs(xi))

    answer = prior_of(lambda mu: mu**2, ByCharacteristicFunction(cauchy, stats.cauchy.logpdf))
    assert answer.exists is None
    assert "the posterior has no moment of order 2" in answer.why


# --- learned variance: W corollary 7 -------------------------------------------------------------------


@settings(deadline=None, max_examples=40)
@given(st.floats(1e-2, 1e2), st.floats(-10, 10))
def test_corollary_7_forwards(sigma, constant):
    answer = prior_of(lambda mu, nu: ((nu + mu**2) / sigma + math.log(sigma / nu) - 1) / 2 + constant, Gaussian())
    assert answer.exists
    assert answer.prior.variance == pytest.approx(sigma, rel=1e-8)
    assert answer.prior.mean == pytest.approx(0, abs=1e-9 * math.sqrt(sigma))
    assert answer.residual < 1e-8 * (1 + np.abs(answer.check.kl).max())
    assert answer.spread < 1e-12
    assert "(corollary 7)" in answer.why


@settings(deadline=None, max_examples=40)
@given(
    b=st.floats(0.1, 10),
    power=st.floats(0.05, 1) | st.floats(-1, -0.05),
    factor=st.floats(1e-3, 3) | st.floats(-3, -1e-3),
)
def test_corollary_7_backwards(b, power, factor):
    """a(nu) + b(nu) mu^2 is a KL divergence only if a and b are those of (4.18) and (4.19)."""

    def a(nu):
        return nu * b - math.log(2 * math.pi * math.e * nu) / 2

    bent = prior_of(Polynomial([lambda nu: a(nu) + factor * nu**power, 0, b]), Gaussian())
    assert bent.exists is False
    assert "A depends on the variance (in the constant)" in bent.why
    other = prior_of(Polynomial([a, 0, lambda nu: b * (1 + nu)]), Gaussian())
    assert other.exists is False
    assert "A depends on the variance (in the constant, theta^2)" in other.why


@pytest.mark.parametrize("penalty", [lambda mu, _nu: mu**2, lambda mu, nu: mu**2 + nu, Polynomial([0, 0, 1])])
def test_l2_with_a_learned_variance_is_none_and_what_would_be_is_said(penalty):
    answer = prior_of(penalty, Gaussian())
    assert answer.exists is False
    assert answer.prior is None
    assert answer.spread > 1e-3
    assert "A depends on the variance (in the constant)" in answer.why
    assert "(mu^2 + nu) - ln(2 pi e nu) / 2 + constant is a KL divergence, that from N(0, 0.5)" in answer.why


def test_a_negative_b_and_b_zero_have_no_prior():
    for b in (-1.0, 0.0):
        r = Polynomial([lambda nu, b=b: nu * b - math.log(2 * math.pi * math.e * nu) / 2, 0, b])
        answer = prior_of(r, Gaussian())
        assert answer.exists is False
        assert "no finite integral" in answer.why


def test_a_moved_prior():
    """KL(N(mu, nu) || N(2, 3))."""
    answer = prior_of(lambda mu, nu: ((nu + (mu - 2) ** 2) / 3 - math.log(nu)) / 2, Gaussian())
    assert answer.exists
    assert (answer.prior.mean, answer.prior.variance) == pytest.approx((2, 3), rel=1e-9)
    assert "N(2, 3)" in answer.why


def test_a_prior_that_is_not_gaussian_with_a_learned_variance():
    """E theta^4 under N(mu, nu), less the entropy, comes from exp(-theta^4)."""
    entropy = [lambda nu: 3 * nu**2 - math.log(2 * math.pi * math.e * nu) / 2, 0, lambda nu: 6 * nu, 0, 1]
    answer = prior_of(Polynomial(entropy), Gaussian())
    assert answer.exists
    np.testing.assert_allclose(answer.quotient, [0, 0, 0, 0, 1], atol=1e-9)
    assert answer.prior.variance == pytest.approx(math.gamma(3 / 4) / math.gamma(1 / 4), rel=1e-11)


def test_the_variances_that_are_looked_at_are_the_callers():
    """At 1 and 2 alone this one cannot be told from a KL divergence; between them it can."""
    bump = Polynomial([lambda nu: nu - math.log(nu) / 2 + (nu - 1) * (nu - 2), 0, 1])
    assert prior_of(bump, Gaussian(), variances=[1, 2]).exists
    assert prior_of(bump, Gaussian(), variances=[1, 1.5, 2]).exists is False


# --- no polynomial -------------------------------------------------------------------------------------


def test_l1_lies_outside_and_its_candidate_says_by_how_much():
    answer = prior_of(np.abs, Gaussian(0.01))
    assert answer.exists is False
    assert "smooth function of mu, and the penalty has a kink at 0" in answer.why
    assert "compact support" in answer.outside[0]
    assert 1e-3 < answer.residual < 0.1
    assert answer.check.mass < 1e-9
    assert answer.quotient is None
    for mu in (0.0, 0.05, 1.0):
        at = divergence(stats.norm(scale=0.1), answer.prior, mu) - abs(mu) - answer.prior.log_kappa
        assert abs(at) <= answer.residual * 1.001


def test_higher_frequencies_bring_the_candidate_closer():
    """The residual of L1 is that of the window alone, a constant over the cutoff: 1.06 / n."""
    found = [prior_of(np.abs, Gaussian(0.01), cutoff=n).residual * n for n in (10, 20, 40)]
    np.testing.assert_allclose(found, found[0], rtol=2e-3)


@pytest.mark.parametrize(
    ("penalty", "quotient"),
    [
        (lambda mu: mu**2 + np.cos(mu), lambda x: x**2 - 0.04 + math.exp(0.02) * np.cos(x)),
        (lambda mu: 3 * mu**2 + np.sin(2 * mu + 1), lambda x: 3 * x**2 - 0.12 + math.exp(0.08) * np.sin(2 * x + 1)),
    ],
)
def test_waves_of_low_frequency_are_exact(penalty, quotient):
    """Their Fourier transforms have compact supports; dividing by phi is multiplying a wave."""
    answer = prior_of(penalty, Gaussian(0.04))
    x = np.linspace(-3, 3, 41)
    found = answer.prior.log_density(x) - answer.prior.log_density(0.0)
    np.testing.assert_allclose(found, quotient(np.array(0.0)) - quotient(x), atol=1e-7)
    assert answer.exists is None
    assert answer.residual < 1e-6


def test_a_candidate_for_a_skewed_posterior():
    phi = lambda xi: special.gamma(1 - 1j * np.clip(xi, -400, 400)) * (np.abs(xi) < 400)  # noqa: E731
    answer = prior_of(lambda mu: 2 * np.sqrt(25 + mu**2), ByCharacteristicFunction(phi, stats.gumbel_r.logpdf))
    assert answer.exists is None
    assert answer.residual < 1e-3


def test_slow_penalties_have_not_even_a_candidate():
    answer = prior_of(lambda mu: 0.3 * np.log1p(mu**2), Gaussian(0.01))
    assert answer.exists is None
    assert "not even the candidate" in answer.why
    assert answer.prior is None


def test_a_penalty_must_be_finite_where_the_posterior_is():
    with pytest.raises(
        ValueError, match=r"the penalty is -inf at 0: one under a posterior with a density must be finite"
    ):
        prior_of(lambda mu: np.log(np.abs(mu)), Gaussian(1))
    with pytest.raises(ValueError, match="grow no faster than a power"):
        prior_of(lambda mu: np.cosh(10 * mu), Gaussian(1))


def test_rounding_is_no_kink():
    assert prior_of(lambda mu: 1e6 + np.sqrt(1 + mu**2), Gaussian(0.01)).exists is None


def test_kinks_elsewhere_are_found_and_smooth_bends_are_none():
    assert "kink at 0.3" in prior_of(lambda mu: np.abs(mu - 0.3), Gaussian(0.01)).why
    huber = prior_of(lambda mu: np.where(np.abs(mu) < 1, mu**2 / 2, np.abs(mu) - 0.5), Gaussian(0.01))
    assert huber.exists is None
    steep = prior_of(lambda mu: np.sqrt(1e-6 + mu**2), Gaussian(0.01))
    assert steep.exists is None


def test_l1_with_a_learned_variance():
    answer = prior_of(lambda mu, _nu: np.abs(mu), Gaussian())
    assert answer.exists is False
    assert "kink at 0" in answer.why
    smooth = prior_of(lambda mu, _nu: np.sqrt(1 + mu**2), Gaussian())
    assert smooth.exists is None
    assert smooth.prior is None


# --- Dirac ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("penalty", "wanted"),
    [
        (lambda mu: mu**2, stats.norm(scale=math.sqrt(0.5))),
        (np.abs, stats.laplace()),
        (lambda mu: 3 * np.log1p(mu**2 / 5), stats.t(5)),
        (lambda mu: mu + 2 * np.log1p(np.exp(-mu)), stats.logistic()),
    ],
)
def test_of_dirac_posteriors_the_prior_is_exp_of_minus_the_penalty(penalty, wanted):
    answer = prior_of(penalty, Dirac())
    assert answer.exists
    theta = np.linspace(-5, 5, 21)
    np.testing.assert_allclose(answer.prior.log_density(theta), wanted.logpdf(theta), rtol=1e-10)
    assert answer.prior.variance == pytest.approx(wanted.var(), rel=1e-9)
    assert answer.residual < 1e-12
    assert answer.check.mass < 1e-9


def test_a_box_and_large_powers_of_both_signs():
    box = prior_of(lambda mu: np.where(np.abs(mu) < 2, 0.0, np.inf), Dirac())
    assert box.prior.density([0.0, 3.0]).tolist() == [pytest.approx(0.25, rel=1e-12), 0]
    assert box.prior.variance == pytest.approx(4 / 3, rel=1e-12)
    assert box.residual == 0
    mixed = prior_of(lambda mu: mu**4 - mu**3 + 0.1 * np.abs(mu), Dirac())
    wanted = [quad(lambda x, k=k: x**k * math.exp(x**3 - x**4 - 0.1 * abs(x)), -9, 9, points=[0])[0] for k in (0, 1)]
    assert mixed.prior.mean == pytest.approx(wanted[1] / wanted[0], rel=1e-8)
    assert prior_of(lambda mu: mu**3 - mu**4 + np.abs(mu), Dirac()).exists is False


def test_a_heavy_tailed_group():
    answer = prior_of(lambda norm: 2 * np.log1p(norm), Dirac(2))
    assert answer.exists is False
    heavy = prior_of(lambda norm: 1.5 * np.log1p(norm**2), Dirac(2))  # Student's distribution with one degree
    assert heavy.exists
    assert heavy.prior.log_kappa == pytest.approx(math.log(2 * math.pi), rel=1e-9)
    assert heavy.prior.second_moment == math.inf
    assert heavy.check.mass < 1e-6


@pytest.mark.parametrize("penalty", [lambda mu: np.log1p(np.abs(mu)), np.cos, lambda mu: mu, lambda mu: -(mu**2)])
def test_what_grows_too_slowly_or_falls_has_no_prior(penalty):
    answer = prior_of(penalty, Dirac())
    assert answer.exists is False
    assert "no finite integral" in answer.why


@pytest.mark.parametrize("d", [2, 3, 512])
def test_groups(d):
    answer = prior_of(lambda norm: norm, Dirac(d))
    assert answer.exists
    assert answer.prior.second_moment == pytest.approx(d * (d + 1), rel=1e-11)
    assert answer.check.mass < 1e-10


# --- what is asked, and how it is printed --------------------------------------------------------------


def test_bad_questions():
    with pytest.raises(TypeError, match="posterior must be Dirac"):
        prior_of(np.abs, "gaussian")
    with pytest.raises(TypeError, match="penalty must be a Polynomial or a function of an array, got 3"):
        prior_of(3, Dirac())
    with pytest.raises(ValueError, match="penalty must be a function of one array, the means"):
        prior_of(lambda mu, _nu: mu, Gaussian(1))
    with pytest.raises(ValueError, match=r"a function of an array of means and the variance, r\(mu, nu\)"):
        prior_of(lambda mu: mu**2, Gaussian())
    with pytest.raises(ValueError, match="one number for each mean, got float64 of shape"):
        prior_of(lambda mu: mu[:1] ** 2, Dirac())
    with pytest.raises(ValueError, match="at least two different ones"):
        prior_of(Polynomial([1]), Gaussian(), variances=[1, 1])
    with pytest.raises(ValueError, match="variance must be above 0, got 0"):
        prior_of(Polynomial([1]), Gaussian(), variances=[0, 1])
    with pytest.raises(ValueError, match="cutoff must be above 0"):
        prior_of(np.abs, Gaussian(1), cutoff=0)
    with pytest.raises(ValueError, match="below 1e-12"):
        prior_of(np.abs, Gaussian(1), cutoff=10)
    with pytest.raises(ValueError, match="is a function of the variance"):
        prior_of(Polynomial([lambda nu: nu]), Gaussian(1))


def test_an_answer_is_a_table_with_its_residual():
    answer = prior_of(lambda mu: mu**2, Gaussian(0.01))
    text = str(answer)
    assert "quotient     theta^2 - 0.01" in text
    assert f"residual     {answer.residual:.1e} = max |KL - penalty - ln kappa|" in text
    assert "prior        not known: outside" in str(prior_of(lambda mu: np.sqrt(1 + mu**2), Gaussian(1)))
    assert "E ||.||^2    6" in str(prior_of(lambda norm: norm, Dirac(2)))
    assert "spread of A" in str(prior_of(lambda mu, _nu: mu**2, Gaussian()))


def test_the_numbers_of_a_plot():
    answer = prior_of(np.abs, Dirac())
    curve = answer.curve([0.0, 1.0])
    np.testing.assert_allclose(curve["density"], [0.5, 0.5 / math.e])
    np.testing.assert_allclose(np.exp(curve["log_density"]), curve["density"])
    assert answer.check.mu.shape == answer.check.kl.shape == answer.check.penalty.shape
    learned = prior_of(lambda mu, nu: (mu**2 + nu - math.log(nu)) / 2, Gaussian(), variances=[0.1, 1, 10])
    assert learned.check.kl.shape == (3, len(learned.check.mu))
    with pytest.raises(ValueError, match="there is no prior to be drawn"):
        prior_of(lambda mu: mu, Dirac()).curve([0.0])
