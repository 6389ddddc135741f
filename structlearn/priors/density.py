"""A prior exp(A) / kappa: its normaliser, density and moments."""

from __future__ import annotations

from functools import cached_property
from math import exp, inf, isfinite, lgamma, log, nan, pi
from typing import TYPE_CHECKING

import numpy as np

from structlearn.checks import check_count
from structlearn.priors.quadrature import Array, log_integral

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import ArrayLike


class Prior:
    """The density exp(A) / kappa, on the line or, where A is a function of the 2-norm, on R^d.

    Args:
        log_weight: A, but for a constant. On R^d with d > 1 a function of the norm.
        dimension: d.
        constant: The rest of A; apart, so that a large one costs no digits.

    Attributes:
        log_kappa: ln of the integral of exp(A); inf where that diverges, and no prior exists.
    """

    def __init__(self, log_weight: Callable[[Array], Array], dimension: int = 1, constant: float = 0.0) -> None:
        self.log_weight = log_weight
        self.dimension = check_count("dimension", dimension)
        self._log_total = self._log_moment(0, 0.0)[0]
        self.log_kappa = self._log_total + constant

    def log_density(self, theta: ArrayLike) -> Array:
        """The density's logarithm; on R^d with d > 1 at points of this norm."""
        return np.asarray(self.log_weight(np.asarray(theta, dtype=np.float64)) - self._log_total)

    def density(self, theta: ArrayLike) -> Array:
        """The density; on R^d with d > 1 at points of this norm, with respect to the volume."""
        return np.asarray(np.exp(self.log_density(theta)))

    def moment(self, order: int, about: float = 0.0) -> float:
        """E[(theta - about)^order], on R^d with d > 1 E[||theta||^order]; inf or nan if there is none."""
        if self.dimension > 1 and about:
            raise ValueError(f"moments of a prior on R^{self.dimension} are those of the norm, about 0; got {about!r}")
        size, balance = self._log_moment(order, about)
        if size == inf:
            return inf if balance == 1 else nan
        return balance * exp(size - self._log_total)

    @cached_property
    def mean(self) -> float:
        """E[theta]; 0 on R^d with d > 1, if the norm has a mean."""
        first = self.moment(1)
        return first if self.dimension == 1 else 0.0 * first

    @cached_property
    def second_moment(self) -> float:
        """E[theta^2], on R^d with d > 1 E[||theta||^2]: what Glorot's condition is about."""
        return self.moment(2)

    @cached_property
    def variance(self) -> float:
        """Of theta, or of each coordinate."""
        if self.dimension > 1:
            return self.second_moment / self.dimension
        mean = self.mean
        return self.moment(2, about=mean) if isfinite(mean) else inf

    def _log_moment(self, order: int, about: float) -> tuple[float, float]:
        """The integral of exp(log_weight) (theta - about)^order: ln of both sides' sizes, share of it that is left."""
        d = self.dimension
        if d > 1:  # in polar coordinates; W 4.5.2 writes S_{d-1} for the sphere's surface
            sphere = log(2) + d / 2 * log(pi) - lgamma(d / 2)
            return sphere + log_integral(lambda x: self.log_weight(x) + (d - 1 + order) * np.log(x)), 1.0
        above = log_integral(lambda x: self.log_weight(about + x) + order * np.log(x))
        below = log_integral(lambda x: self.log_weight(about - x) + order * np.log(x))
        both = float(np.logaddexp(above, below))
        if order % 2 == 0 or not isfinite(both):
            return both, 1.0 if order % 2 == 0 else 0.0
        return both, exp(above - both) - exp(below - both)
