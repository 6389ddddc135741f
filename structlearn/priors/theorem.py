"""Theorem 1 (W 4.4.1): which prior, if any, makes a penalty the KL divergence from it."""

from __future__ import annotations

from functools import partial
from math import isfinite, sqrt
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.polynomial import polynomial

from structlearn.checks import check_positive
from structlearn.priors.answer import Answer
from structlearn.priors.check import check
from structlearn.priors.density import Prior
from structlearn.priors.kinks import kink
from structlearn.priors.polynomials import Polynomial, divided, recognised, written
from structlearn.priors.posteriors import LEARNED, Dirac, Gaussian, Smooth
from structlearn.priors.regularised import Regularised

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from structlearn.priors.quadrature import Array

    Penalty = Callable[..., Array]

SAME: Final = 1e-9
"""Coefficients of A that differ by less than this, relative to the terms they consist of, are the same."""


def prior_of(
    penalty: Penalty,
    posterior: Dirac | Smooth,
    *,
    cutoff: float | None = None,
    variances: Sequence[float] = LEARNED,
) -> Answer:
    """Find the prior alpha with r = KL(posterior || alpha) + constant, or say why there is none.

    Args:
        penalty: r: a :class:`Polynomial`, or a function of an array of means; of means and the variance where the
            variance is learned, of norms where the posterior is on R^d. A function that is a polynomial of degree at
            most 8 is recognised, and then all is exact.
        posterior: The family.
        cutoff: For a penalty that is no polynomial: the highest frequency that the regularised candidate keeps.
            None: where dividing by the posterior's characteristic function enlarges it 100 times.
        variances: Where the variance is learned: those that are looked at.
    """
    if isinstance(posterior, Dirac):
        return _deterministic(penalty, posterior)
    if not isinstance(posterior, Smooth):
        raise TypeError(
            "posterior must be Dirac(), Gaussian(variance), Gaussian() or ByCharacteristicFunction(...), "
            f"got {posterior!r}"
        )
    if isinstance(posterior, Gaussian) and posterior.variance is None:
        return _learned(penalty, posterior, variances)
    coefficients = penalty.at() if isinstance(penalty, Polynomial) else recognised(_checked(penalty))
    if coefficients is None:
        return _regularised(penalty, posterior, cutoff)
    return _polynomial(coefficients, posterior)


def _deterministic(penalty: Penalty, posterior: Dirac) -> Answer:
    """A = -r (W 4.4.3)."""
    r = _checked(penalty)
    coefficients = penalty.at() if isinstance(penalty, Polynomial) else recognised(r)
    name = _name(penalty, coefficients)
    outside = ("a Dirac is no function: the formula is used formally, without its infinite entropy",)
    prior = Prior(lambda theta: -r(theta), posterior.dimension)
    if not isfinite(prior.log_kappa):
        return Answer(
            name, repr(posterior), False, _not_integrable("exp(-penalty)", coefficients), outside, coefficients
        )
    checked = check(prior, [posterior], [r], **_where(prior, 1.0))
    why = (
        "A = -penalty, and exp(A) can be integrated: the posterior's mode under this prior is what training finds (MAP)"
    )
    return Answer(name, repr(posterior), True, why, outside, coefficients, prior, checked)


def _polynomial(coefficients: Array, posterior: Smooth) -> Answer:
    """A is a polynomial, too: F r has the support {0}, so all that counts is the posterior's moments."""
    answer = partial(Answer, written(coefficients, "mu"), repr(posterior), outside=posterior.outside)
    degree = len(coefficients) - 1
    if not isfinite(posterior.moment(degree + degree % 2)):
        why = f"the posterior has no moment of order {degree}, so the KL divergence from exp(-polynomial) is infinite"
        return answer(exists=None, why=why)
    quotient, _ = divided(coefficients, posterior)
    if not _integrable(quotient):
        # Without the conditions another prior, which is no exp(-polynomial), could do.
        why = _not_integrable(f"exp(-({written(quotient, 'theta')}))", quotient)
        return answer(exists=None if posterior.outside else False, why=why, quotient=quotient)
    prior = _exponential(quotient, posterior.entropy)
    checked = check(prior, [posterior], [partial(_value, coefficients)], **_where(prior, posterior.scale))
    exponent = -quotient
    exponent[0] -= posterior.entropy
    why = f"A = {written(exponent, 'theta')}, and exp(A) can be integrated"
    if posterior.outside:
        why += "; the KL divergence is the penalty, but the theorem does not say that no other prior does it, too"
    return answer(exists=True, why=why, quotient=quotient, prior=prior, check=checked)


def _learned(penalty: Penalty, posterior: Gaussian, variances: Sequence[float]) -> Answer:
    """One A must do for all variances (W corollary 7 is the case of degree 2)."""
    values = [check_positive("variance", variance) for variance in variances]
    if len(set(values)) < 2:
        raise ValueError(f"variances must be at least two different ones, got {list(variances)!r}")
    members = [Gaussian(value) for value in values]
    rows = [_coefficients_at(penalty, value) for value in values]
    if any(row is None for row in rows):
        return _learned_no_polynomial(penalty, posterior, members)
    width = max(len(row) for row in rows if row is not None)
    padded = [np.pad(row, (0, width - len(row))) for row in rows if row is not None]
    found = [divided(row, member) for row, member in zip(padded, members, strict=True)]
    entropies = np.array([member.entropy for member in members])
    exponents = np.array([-quotient for quotient, _ in found])  # A's coefficients, a row for each variance
    exponents[:, 0] -= entropies
    sizes = np.array([size for _, size in found])
    sizes[:, 0] += np.abs(entropies)
    spreads = np.ptp(exponents, axis=0) / np.maximum(sizes.max(0), 1e-300)
    name = repr(penalty) if isinstance(penalty, Polynomial) else f"polynomial of degree {width - 1} in mu"
    answer = partial(Answer, name, repr(posterior), spread=float(spreads.max()))
    varying = np.flatnonzero(spreads > SAME)
    if len(varying):
        return answer(exists=False, why=_depends(varying.tolist(), padded))
    exponent = np.trim_zeros(np.where(np.abs(exponents).max(0) <= SAME * sizes.max(0), 0.0, exponents.mean(0)), "b")
    quotient = -exponent
    if not _integrable(quotient):
        return answer(exists=False, why=_not_integrable(f"exp({written(exponent, 'theta')})", quotient))
    prior = _exponential(quotient, 0.0)
    parts = [partial(_value, row) for row in padded]
    why = f"A = {written(exponent, 'theta')} for all variances, and exp(A) can be integrated"
    if len(exponent) == 3:
        mean, variance = exponent[1] / (-2 * exponent[2]), 1 / (-2 * exponent[2])
        why = f"the penalty is KL(N(mu, nu) || N({mean + 0.0:.6g}, {variance:.6g})) (corollary 7)"
    return answer(
        exists=True,
        why=why,
        quotient=quotient,
        prior=prior,
        check=check(prior, members, parts, **_where(prior, 1.0)),
    )


def _depends(varying: list[int], rows: list[Array]) -> str:
    """Why A is not one for all variances, and what would be."""
    powers = ", ".join({0: "the constant", 1: "theta"}.get(k, f"theta^{k}") for k in varying)
    why = f"A depends on the variance (in {powers}), and one prior must do for all"
    second = np.array([row[2] if len(row) > 2 else 0.0 for row in rows])
    if len(rows[0]) == 3 and np.ptp(second) <= SAME * second.max() and not np.any([row[1] for row in rows]):
        b = float(second.mean())
        factor = f"{b:.6g} ".removeprefix("1 ")
        why += (
            f"; with {factor}mu^2 only {factor}(mu^2 + nu) - ln(2 pi e nu) / 2 + constant is a KL divergence, "
            f"that from N(0, {1 / (2 * b):.6g}) (corollary 7)"
        )
    return why


def _learned_no_polynomial(penalty: Penalty, posterior: Gaussian, members: list[Gaussian]) -> Answer:
    """Said, and no more: a candidate would be another for each variance."""
    name = _name(penalty, None)
    outside = (NO_COMPACT_SUPPORT,)
    place = next((at for m in members if (at := kink(_at(penalty, m.fixed), 0.0, 5 * m.scale + 5)) is not None), None)
    hint = "; ask for a fixed variance, Gaussian(variance), to see a candidate"
    if place is not None:
        return Answer(name, repr(posterior), False, _kinked(place) + hint, outside)
    return Answer(name, repr(posterior), None, "the penalty is no polynomial in mu" + hint, outside)


def _regularised(penalty: Penalty, posterior: Smooth, cutoff: float | None) -> Answer:
    """The penalty is no polynomial: a candidate without its high frequencies (W 4.8.5)."""
    r = _checked(penalty)
    quotient = Regularised(r, posterior, cutoff)
    outside = (NO_COMPACT_SUPPORT, *posterior.outside)
    place = None if posterior.outside else kink(r, quotient.centre, 5 * posterior.scale + 5)
    why = "the penalty is no polynomial; see how close the candidate comes" if place is None else _kinked(place)
    exists = None if place is None else False
    answer = partial(Answer, _name(penalty, None), repr(posterior), exists, outside=outside, cutoff=quotient.cutoff)
    prior = Prior(lambda theta: -quotient(theta), constant=-posterior.entropy)
    if not isfinite(prior.log_kappa):
        return answer(why=why + "; but not even the candidate is one: its exponential has no finite integral")
    return answer(why=why, prior=prior, check=check(prior, [posterior], [r], **_where(prior, posterior.scale)))


NO_COMPACT_SUPPORT: Final = (
    "the penalty's Fourier transform must have a compact support, as that of a polynomial has and that of |mu| has "
    "not (remark 4); this penalty is not recognised as a polynomial"
)


def _kinked(place: float) -> str:
    """A convolution with a Schwartz function is smooth, so such a penalty is none."""
    return f"the KL divergence is a smooth function of mu, and the penalty has a kink at {place:.6g}"


def _not_integrable(what: str, coefficients: Array | None) -> str:
    """Why there is no kappa."""
    if coefficients is None:
        return f"{what} has no finite integral: the penalty grows too slowly, or is too low somewhere"
    degree = len(coefficients) - 1
    if degree == 0:
        return f"{what} has no finite integral: it is constant"
    if degree % 2:
        return f"{what} has no finite integral: the degree {degree} is odd, so it grows on one side"
    return f"{what} has no finite integral: the highest coefficient, {coefficients[-1]:.6g}, is not above 0"


def _integrable(quotient: Array) -> bool:
    """Is exp(-polynomial) integrable? Its highest coefficient is that of the penalty."""
    return len(quotient) % 2 == 1 and len(quotient) > 1 and bool(quotient[-1] > 0)


def _checked(penalty: Penalty) -> Callable[[Array], Array]:
    """The penalty, if it is a function of an array of means."""
    if isinstance(penalty, Polynomial):
        penalty.at()
        return penalty
    if not callable(penalty):
        raise TypeError(f"penalty must be a Polynomial or a function of an array, got {penalty!r}")
    x = np.linspace(0.5, 2.0, 4).reshape(2, 2)
    try:
        with np.errstate(all="ignore"):
            values = np.asarray(penalty(x))
    except TypeError as error:
        raise ValueError(
            f"penalty must be a function of one array, the means ({error}); one of means and variance belongs to the "
            "Gaussian posterior of learned variance, Gaussian()"
        ) from error
    if values.shape not in {x.shape, ()} or values.dtype.kind not in "fiu":
        raise ValueError(
            f"penalty must give one number for each mean, got {values.dtype} of shape {values.shape} for {x.shape}"
        )
    return lambda mu: np.broadcast_to(np.asarray(penalty(mu), dtype=np.float64), np.shape(mu))


def _coefficients_at(penalty: Penalty, variance: float) -> Array | None:
    """Of a penalty on mean and variance."""
    return penalty.at(variance) if isinstance(penalty, Polynomial) else recognised(_at(penalty, variance))


def _at(penalty: Penalty, variance: float) -> Callable[[Array], Array]:
    """A penalty on mean and variance, at this variance."""
    try:
        penalty(np.ones(2), variance)
    except TypeError as error:
        raise ValueError(
            "where the variance is learned, penalty must be a Polynomial or a function of an array of means and the "
            f"variance, r(mu, nu) ({error})"
        ) from error
    return _checked(lambda mu: penalty(mu, variance))


def _name(penalty: Penalty, coefficients: Array | None) -> str:
    """The penalty in words."""
    if coefficients is not None:
        return written(coefficients, "mu")
    return getattr(penalty, "__name__", repr(penalty)).replace("<lambda>", "a function of mu")


def _value(coefficients: Array, x: Array) -> Array:
    """Of a polynomial."""
    return polynomial.polyval(x, coefficients)


def _exponential(quotient: Array, entropy: float) -> Prior:
    """Of A = -Ent - quotient."""
    powers = quotient.copy()
    powers[0] = 0.0
    return Prior(lambda theta: -polynomial.polyval(theta, powers), constant=-entropy - float(quotient[0]))


def _where(prior: Prior, scale: float) -> dict[str, float]:
    """Which means to look at: four standard deviations of the prior on either side of its mean.

    If it has none, as far as the density is above 5 % of its peak, on the scale of the posterior.
    """
    if prior.dimension > 1 and isfinite(prior.second_moment):
        return {"centre": 0.0, "around": 4 * sqrt(prior.second_moment)}
    if isfinite(prior.variance):
        return {"centre": prior.mean, "around": 4 * sqrt(prior.variance)}
    x = scale * np.geomspace(1e-6, 1e6, 241)
    height = prior.log_density(x)
    if prior.dimension == 1:
        height = np.logaddexp(height, prior.log_density(-x))
    return {"centre": 0.0, "around": 4 * float(x[np.flatnonzero(height > height.max() - 3)[-1]])}
