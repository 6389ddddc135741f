"""Does a prior give the penalty? KL(posterior || prior) - penalty, by quadrature, whatever the prior comes from."""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite, pi, sqrt
from typing import TYPE_CHECKING

import numpy as np

from structlearn.priors.posteriors import Dirac

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from structlearn.priors.density import Prior
    from structlearn.priors.posteriors import Smooth
    from structlearn.priors.quadrature import Array

MEANS = 41


@dataclass(frozen=True)
class Check:
    """What quadrature says about a prior; the arrays are what a plot of it needs.

    Attributes:
        mu: The means that were looked at, equally far from each other.
        kl: KL(posterior || prior) at each; a row for each variance, if that is learned. Of a Dirac posterior, whose
            entropy is an infinite constant, -ln prior(mu).
        penalty: r + ln kappa, of the same shape: what `kl` should be.
        residual: The largest difference of the two.
        mass: How far the integral of the prior is from 1, by the double exponential rule.
    """

    mu: Array
    kl: Array
    penalty: Array
    residual: float
    mass: float


def check(
    prior: Prior,
    members: Sequence[Dirac | Smooth],
    penalties: Sequence[Callable[[Array], Array]],
    *,
    centre: float,
    around: float,
) -> Check:
    """Compare both sides of r = KL(beta_mu || prior) - ln kappa; no constant is fitted (W (4.14)).

    Args:
        prior: See above.
        members: The posterior; one for each variance, if that is learned.
        penalties: The penalty for each of them.
        centre: The middle of the means that are looked at.
        around: How far they go on either side.
    """
    mu = centre + around * np.linspace(0 if prior.dimension > 1 else -1, 1, MEANS)
    kl = np.array([_divergence(prior, member, mu) for member in members])
    wanted = np.array([np.broadcast_to(penalty(mu), mu.shape) for penalty in penalties]) + prior.log_kappa
    with np.errstate(invalid="ignore"):  # both are infinite where the penalty is
        residual = float(np.abs(np.where(kl == wanted, 0.0, kl - wanted)).max())
    one = len(members) == 1
    return Check(mu, kl[0] if one else kl, wanted[0] if one else wanted, residual, abs(mass(prior) - 1))


def _divergence(prior: Prior, member: Dirac | Smooth, mu: Array) -> Array:
    """E ln beta_mu - E ln prior, both under beta_mu."""
    if isinstance(member, Dirac):
        return -prior.log_density(mu)
    x, weights = member.nodes
    some = weights > 0
    x, weights = x[some], weights[some]
    own = float(weights @ member.log_density(x))
    return np.array([own - float(weights @ prior.log_density(mean + x)) for mean in mu])


def mass(prior: Prior) -> float:
    """The integral of the density by the trapezoidal rule in t, on either side of the mean x = s exp(t - exp(-t))."""
    if prior.dimension > 1:
        d = prior.dimension
        middle = sqrt(prior.second_moment) if isfinite(prior.second_moment) else 1.0
        t, step = np.linspace(-40, 300, 1 + round(340 * 20 * sqrt(d)), retstep=True)
        # The sphere's surface by its area for one dimension less, twice: no gamma function, which the prior has used.
        volume = d * np.log(middle) + d * t
        with np.errstate(all="ignore"):
            return float(np.exp(_log_sphere(d) + volume + prior.log_density(middle * np.exp(t))).sum() * step)
    mean = prior.mean
    about = mean if isfinite(mean) else 0.0
    variance = prior.variance
    scale = sqrt(variance) if isfinite(variance) else 1.0

    def half(t: Array) -> float:
        x = scale * np.exp(t - np.exp(-t))
        both = prior.density(about + x) + prior.density(about - x)
        return float((both * x * (1 + np.exp(-t))).sum())

    t, step = np.linspace(-5, 300, 1 + 305 * 64, retstep=True)
    with np.errstate(all="ignore"):
        found, before = half(t), 0.0
        while abs(found * step - before) > 1e-12 and step > 1e-3:  # the points between, until they change nothing
            before = found * step
            found, step = found + half(np.arange(-5 + step / 2, 300, step)), step / 2
    return float(found * step)


def _log_sphere(d: int) -> float:
    """The logarithm of the unit sphere's surface: S_d = 2 pi S_(d-2) / (d - 2), from two points or a circle."""
    steps = np.arange(4 - d % 2, d + 1, 2)
    return float(np.log([2 * pi, 2.0][d % 2]) + np.log(2 * pi / (steps - 2)).sum())
