"""Penalties that are polynomials in mu, and what the theorem makes of them, which is exact."""

from __future__ import annotations

from math import comb
from typing import TYPE_CHECKING

import numpy as np
from numpy.polynomial import polynomial

from structlearn.checks import check_positive

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import ArrayLike

    from structlearn.priors.posteriors import Smooth
    from structlearn.priors.quadrature import Array

    Coefficient = float | Callable[[float], float]

HIGHEST = 8
"""The highest degree that :func:`recognised` tries."""


class Polynomial:
    """r(mu) = c_0 + c_1 mu + c_2 mu^2 + ...; where the variance nu is learned, r(mu, nu).

    Args:
        coefficients: c_0, c_1, ..., each a number or a function of nu.
    """

    def __init__(self, coefficients: Sequence[Coefficient]) -> None:
        if not len(coefficients):
            raise ValueError("a polynomial needs at least one coefficient, got none; give them from c_0 on")
        self.coefficients = tuple(coefficients)
        for power, coefficient in enumerate(self.coefficients):
            if not callable(coefficient) and not np.isfinite(coefficient):
                raise ValueError(f"the coefficient of mu^{power} must be finite or a function, got {coefficient!r}")

    def __call__(self, mu: ArrayLike, variance: float | None = None) -> Array:
        """r(mu), or r(mu, variance)."""
        return polynomial.polyval(np.asarray(mu, dtype=np.float64), self.at(variance))

    def __repr__(self) -> str:
        if any(map(callable, self.coefficients)):
            return f"polynomial of degree {len(self.coefficients) - 1}, coefficients by variance"
        return written(self.at(), "mu")

    def at(self, variance: float | None = None) -> Array:
        """The coefficients as numbers; the highest is not 0, unless it is the only one."""
        if variance is not None:
            check_positive("variance", variance)
        numbers = []
        for power, coefficient in enumerate(self.coefficients):
            if callable(coefficient):
                if variance is None:
                    raise ValueError(
                        f"the coefficient of mu^{power} is a function of the variance: give the variance, "
                        "or ask for the Gaussian posterior of learned variance"
                    )
                coefficient = coefficient(variance)  # noqa: PLW2901 - its number takes its place
                if not np.isfinite(coefficient):
                    raise ValueError(f"the coefficient of mu^{power} is {coefficient!r} at variance {variance:g}")
            numbers.append(float(coefficient))
        return np.trim_zeros(np.array(numbers), "b") if any(numbers) else np.zeros(1)


def divided(coefficients: Array, posterior: Smooth) -> tuple[Array, Array]:
    """F^-1[F r / phi] of a polynomial r (W (4.3)), and the size of the terms that each coefficient is the sum of.

    On polynomials phi is the operator E exp(x d/dtheta), a series in the moments m_k of beta_0. Its inverse has the
    coefficients n_k / k! with sum_j comb(k, j) m_j n_(k-j) = 0 for k > 0 and n_0 = 1; of a Gaussian it is
    exp(-(s^2/2) d^2/dtheta^2).
    """
    degree = len(coefficients) - 1
    moments = [1.0] + [posterior.moment(k) for k in range(1, degree + 1)]
    if not np.isfinite(moments).all():
        raise ValueError(f"{posterior!r} has no moment of order {int(np.isfinite(moments).argmin())}")
    inverse = [1.0]
    for k in range(1, degree + 1):
        inverse.append(-sum(comb(k, j) * moments[j] * inverse[k - j] for j in range(1, k + 1)))
    found, size = np.zeros(degree + 1), np.zeros(degree + 1)
    for power, coefficient in enumerate(coefficients):
        for k in range(power + 1):  # theta^power differentiated k times, over k!
            term = coefficient * comb(power, k) * inverse[k]
            found[power - k] += term
            size[power - k] += abs(term)
    return found, size


def recognised(penalty: Callable[[Array], Array]) -> Array | None:
    """The coefficients of a function that is a polynomial of degree at most 8, else None.

    It is fitted between -2 and 2 and must then agree, to nine digits, from 1e-3 to 1e6 on both sides. So a function
    that leaves its polynomial further out is taken for one; whoever has such a function says so with a variable
    of another scale.
    """
    test = np.concatenate([sign * np.geomspace(1e-3, 1e6, 46) for sign in (-1, 1)])
    with np.errstate(all="ignore"):
        there = np.asarray(penalty(test), dtype=np.float64)
        for degree in range(HIGHEST + 1):
            x = 2 * np.cos(np.pi * (np.arange(degree + 1) + 0.5) / (degree + 1))
            here = np.asarray(penalty(x), dtype=np.float64)
            if here.shape != x.shape or not (np.isfinite(here).all() and np.isfinite(there).all()):
                return None
            fitted = polynomial.polyfit(x, here, degree)
            for found in (np.where(np.abs(fitted) < 1e-12 * np.abs(fitted).max(), 0.0, fitted), fitted):
                size = polynomial.polyval(np.abs(test), np.abs(found))
                rounding = 1e-13 * np.abs(here).max()  # where large terms have cancelled
                if (np.abs(polynomial.polyval(test, found) - there) <= 1e-9 * size + rounding).all():
                    return np.trim_zeros(found, "b") if found.any() else np.zeros(1)
    return None


def written(coefficients: Array, variable: str) -> str:
    """Like ``theta^2 - 0.01``."""
    terms = []
    for power in range(len(coefficients) - 1, -1, -1):
        if (c := float(coefficients[power])) == 0:
            continue
        what = {0: "", 1: variable}.get(power, f"{variable}^{power}")
        number = f"{abs(c):.6g}" if power == 0 or f"{abs(c):.6g}" != "1" else ""
        terms.append(("- " if c < 0 else "+ ") + " ".join(filter(None, (number, what))))
    text = " ".join(terms).removeprefix("+ ") or "0"
    return "-" + text.removeprefix("- ") if text.startswith("- ") else text
