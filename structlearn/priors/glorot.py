"""How strong a penalty should be: its prior should have the variance of Glorot's initialisation (W 4.5)."""

from __future__ import annotations

from math import exp, inf, isfinite, log
from typing import TYPE_CHECKING, Final

import numpy as np

from structlearn.checks import check_count
from structlearn.priors.density import Prior
from structlearn.priors.polynomials import Polynomial, divided, recognised
from structlearn.priors.posteriors import Dirac, Gaussian, Smooth

if TYPE_CHECKING:
    from collections.abc import Callable

    from structlearn.priors.quadrature import Array

FURTHEST: Final = 40  # factors of 10 from 1 to the weakest and strongest that are tried


def glorot_strength(
    penalty: Callable[[Array], Array],
    inputs: int,
    *,
    group: int | None = None,
    posterior: Smooth | Dirac | None = None,
) -> float:
    """Find lam such that the prior of lam times the penalty has mean 0 and E w^2 = 1 / inputs for each weight.

    This is condition (#), and for a group of all a unit's incoming weights, where E ||w||^2 = 1, condition (#').
    For W's four penalties it gives P/2 (w^2), sqrt(2 P) (|w|), sqrt(P (P + 1)) (||w||, group = P) and
    sqrt(P (n + 1)) (||w||, group = n), with P = `inputs`. In general sqrt(P (d + 1)) for the norm of d weights: the
    last is that of a linear layer with n units, and W prints only this; a convolution with k x k patches groups
    d = n k^2 weights by input channel, and has P = k^2 channels.

    The strength is for the whole data set: divide it by the number of samples where the loss is a mean (W remark 6).

    Args:
        penalty: Of an array of weights, or for a group of an array of 2-norms.
        inputs: P, incoming weights of a unit.
        group: d, how many weights the penalty takes the norm of. None: it is on single weights, with their sign.
        posterior: None: Dirac, where the prior is exp(-lam r) / kappa. Otherwise one of fixed shape, by whose
            characteristic function the theorem divides; the penalty must be a polynomial.

    Raises:
        ValueError: There is no such lam.
    """
    weight, d = _weight(penalty, group, posterior), group or 1
    wanted = log(d / check_count("inputs", inputs))
    low = high = 0.0  # ln lam
    at_low = at_high = _log_second_moment(weight, d, 0.0)
    while at_low < wanted:
        high, at_high = low, at_low
        low, at_low = _next(weight, d, low, -1, at_low, wanted)
    while at_high > wanted:
        low, at_low = high, at_high
        high, at_high = _next(weight, d, high, 1, at_high, wanted)
    found = _root(lambda x: _log_second_moment(weight, d, x) - wanted, low, high)
    if group is None:
        _check_mean(Prior(lambda w: -exp(found) * weight(w)))
    return exp(found)


def _weight(
    penalty: Callable[[Array], Array], group: int | None, posterior: Smooth | Dirac | None
) -> Callable[[Array], Array]:
    """The f in the prior exp(-lam f) / kappa."""
    if posterior is None or isinstance(posterior, Dirac):
        if posterior is not None and posterior.dimension not in {1, group}:
            raise ValueError(f"the posterior is on R^{posterior.dimension}, and group = {group}; give group alone")
        return penalty if group is None or check_count("group", group) > 1 else lambda w: penalty(np.abs(w))
    if isinstance(posterior, Gaussian) and posterior.variance is None:
        raise ValueError(
            "where the variance is learned a penalty is a KL divergence or none, and no multiple of it is one: there "
            "is no lam to be chosen; (#) holds for KL(N(mu, nu) || N(0, 1 / inputs)) (W 4.5.1)"
        )
    if group is not None:
        raise ValueError(
            f"for {posterior!r} the penalty is on single weights, got group = {group}; a group needs Dirac"
        )
    coefficients = penalty.at() if isinstance(penalty, Polynomial) else recognised(penalty)
    if coefficients is None:
        raise ValueError(
            f"for {posterior!r} the penalty must be a polynomial: others lie outside the theorem's conditions. "
            "Use a Dirac posterior, or look at the candidate of prior_of"
        )
    return Polynomial(list(divided(coefficients, posterior)[0]))


def _log_second_moment(weight: Callable[[Array], Array], d: int, log_strength: float) -> float:
    """The logarithm of E ||w||^2 under exp(-lam f); inf where the prior is none or has none."""
    strength = exp(log_strength)

    def log_weight(w: Array) -> Array:
        return np.broadcast_to(-strength * np.asarray(weight(w), dtype=np.float64), w.shape)

    prior = Prior(log_weight, d)
    size = prior.second_moment if isfinite(prior.log_kappa) else inf
    return log(size) if size > 0 else -inf


def _next(
    weight: Callable[[Array], Array], d: int, at: float, way: int, before: float, wanted: float
) -> tuple[float, float]:
    """A strength 10 times as far on this way, and its ln E ||w||^2; an error where no further one can do."""
    place = at + way * log(10)
    after = _log_second_moment(weight, d, place)
    settled = isfinite(before) and abs(after - before) < 1e-3
    if settled or abs(place) > FURTHEST * log(10):
        if before == inf:
            raise ValueError(
                f"no lam gives E ||w||^2 = {exp(wanted):.6g}: up to lam = {exp(at):.1g} it is infinite; the penalty "
                "must grow without bound on both sides, at least like a logarithm"
            )
        raise ValueError(
            f"no lam gives E ||w||^2 = {exp(wanted):.6g}: at lam = {exp(at):.1g} it has settled at {exp(before):.4g}; "
            "the penalty must be finite, and least at 0 alone"
        )
    return place, after


def _root(f: Callable[[float], float], low: float, high: float) -> float:
    """Where f is 0, between f(low) >= 0 and f(high) <= 0: secants, kept in the bracket by halving (Illinois)."""
    above, below = f(low), f(high)
    for _ in range(200):
        middle = (low + high) / 2
        if isfinite(above) and isfinite(below) and above > below:
            middle = (low * below - high * above) / (below - above)
        value = f(middle)
        if abs(value) < 1e-14 or high - low < 1e-14 * max(1.0, abs(low)):
            return middle
        if value > 0:
            low, above, below = middle, value, below / 2
        else:
            high, above, below = middle, above / 2, value
    return (low + high) / 2


def _check_mean(prior: Prior) -> None:
    """The first half of (#)."""
    mean = prior.mean
    if abs(mean) > 1e-6 * prior.second_moment**0.5:
        raise ValueError(
            f"no lam fulfils Glorot's condition: the prior's mean is {mean:.4g}, not 0; centre the penalty"
        )
