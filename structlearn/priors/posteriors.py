"""Families of variational posteriors that are moved by their mean: beta_mu(theta) = beta_0(theta - mu) (W 4.4.1)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import cached_property
from math import e, exp, factorial, inf, isfinite, log, nan, pi
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from structlearn.checks import check_count, check_positive
from structlearn.priors.quadrature import Array, log_integral, panels

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

FAINT: Final = 1e-14
"""A density below this, relative to its peak, is noise when it comes from its characteristic function."""

LEARNED: Final = tuple(float(variance) for variance in np.geomspace(1e-4, 1e2, 25))
"""The variances that are looked at where the variance is learned."""


class Dirac:
    """Deterministic weights: beta_mu is all at mu (W 4.4.3).

    Args:
        dimension: d. Above 1 the penalty is a function of the 2-norm of d weights, as a group Lasso is.
    """

    def __init__(self, dimension: int = 1) -> None:
        self.dimension = check_count("dimension", dimension)

    def __repr__(self) -> str:
        return "Dirac" if self.dimension == 1 else f"Dirac on R^{self.dimension}"


class Smooth(ABC):
    """A posterior of one weight with a density, moved by its mean alone."""

    @abstractmethod
    def log_density(self, x: Array) -> Array:
        """The logarithm of beta_0(x)."""

    @abstractmethod
    def characteristic(self, xi: Array) -> NDArray[np.complex128]:
        """E exp(i xi x) under beta_0: the Fourier transform of beta_0(-x), by which the theorem divides."""

    @property
    @abstractmethod
    def entropy(self) -> float:
        """-E ln beta_0."""

    @abstractmethod
    def moment(self, order: int) -> float:
        """E x^order under beta_0; inf or nan if there is none."""

    @property
    @abstractmethod
    def outside(self) -> tuple[str, ...]:
        """What is not as Theorem 1 wants it: smooth with light tails (Schwartz class), phi nowhere 0."""

    @cached_property
    def scale(self) -> float:
        """How far from 0 most of the mass is."""
        x = np.geomspace(1e-30, 1e30, 4001)
        return float(x[(np.logaddexp(self.log_density(x), self.log_density(-x)) + np.log(x)).argmax()])

    @cached_property
    def nodes(self) -> tuple[Array, Array]:
        """Points x and weights beta_0(x) dx for expectations of whatever grows no faster than x^6.

        Gauss's rule on panels that grow away from 0, four of them an octave.
        """
        edges = self.scale * 2.0 ** (np.arange(-160, 400) / 4)
        size = np.logaddexp(self.log_density(edges), self.log_density(-edges)) + 7 * np.log(edges / self.scale)
        edges = np.append(0.0, edges[: int(np.flatnonzero(size > size.max() - 80)[-1]) + 2])
        x, weights = panels(np.concatenate([-edges[:0:-1], edges]))
        return x, weights * np.exp(self.log_density(x))


class Gaussian(Smooth):
    """N(mu, variance).

    Args:
        variance: Fixed. None: learned, together with the mean; the penalty is then a function of both.
    """

    def __init__(self, variance: float | None = None) -> None:
        self.variance = None if variance is None else check_positive("variance", variance)

    def __repr__(self) -> str:
        return "Gaussian of learned variance" if self.variance is None else f"Gaussian of variance {self.variance:g}"

    @property
    def fixed(self) -> float:
        """The variance, if it is fixed."""
        if self.variance is None:
            raise ValueError("the variance is learned: ask a Gaussian of one variance, Gaussian(variance)")
        return self.variance

    def log_density(self, x: Array) -> Array:
        """-x^2 / (2 s^2) - ln(2 pi s^2) / 2."""
        return -(x**2) / (2 * self.fixed) - log(2 * pi * self.fixed) / 2

    def characteristic(self, xi: Array) -> NDArray[np.complex128]:
        """exp(-s^2 xi^2 / 2)."""
        return np.asarray(np.exp(-self.fixed * xi**2 / 2), dtype=np.complex128)

    @property
    def entropy(self) -> float:
        """ln(2 pi e s^2) / 2. W prints (4.17) without the half; its proof has it."""
        return log(2 * pi * e * self.fixed) / 2

    def moment(self, order: int) -> float:
        """s^order (order - 1)!!, 0 for an odd order."""
        half = order // 2
        return 0.0 if order % 2 else self.fixed**half * factorial(order) / (2**half * factorial(half))

    @property
    def outside(self) -> tuple[str, ...]:
        """Nothing."""
        return ()


class ByCharacteristicFunction(Smooth):
    """Any posterior of one weight, by the characteristic function of beta_0.

    Entropy and moments come by quadrature from the density, which is found by Fourier inversion where it is not given.
    Give it where you can: an inverted density is cut off where it falls below 1e-14 of its peak.

    Args:
        characteristic: phi(xi) = E exp(i xi x), of an array; phi(0) = 1.
        log_density: ln beta_0, of an array.
        name: What it is called in answers.
    """

    def __init__(
        self,
        characteristic: Callable[[Array], NDArray[Any]],
        log_density: Callable[[Array], Array] | None = None,
        name: str = "posterior by its characteristic function",
    ) -> None:
        self._characteristic = characteristic
        self._log_density = log_density
        self.name = name
        one = complex(self.characteristic(np.zeros(1))[0])
        if not abs(one - 1) < 1e-10:
            raise ValueError(f"a characteristic function is 1 at 0, got {one:.6g} from that of {name}")
        if log_density is None and self.band == self._frequencies[-1]:
            raise ValueError(
                f"the characteristic function of {name} falls too slowly to be inverted "
                f"(above 1e-14 up to xi = {self.band:.3g}): give log_density, too"
            )
        x, weights = self.nodes
        for xi in (0.0, 0.3 / self.scale, 1 / self.scale):
            said, found = (
                complex(self.characteristic(np.array([xi]))[0]),
                complex((weights * np.exp(1j * xi * x)).sum()),
            )
            if not abs(said - found) < (1e-2 if log_density else 1e-6):  # a jump costs Gauss's rule some digits
                raise ValueError(
                    f"density and characteristic function of {name} do not belong together: at xi = {xi:.4g} "
                    f"the density gives {found:.6g}, the function is {said:.6g}; "
                    + ("check both" if log_density else "give log_density: the tails are too heavy for an inversion")
                )

    def __repr__(self) -> str:
        return self.name

    def log_density(self, x: Array) -> Array:
        """As it was given, or by Fourier inversion."""
        with np.errstate(all="ignore"):
            if self._log_density is not None:
                return np.asarray(self._log_density(x), dtype=np.float64)
            return np.log(self._inverted(np.asarray(x, dtype=np.float64)))

    def characteristic(self, xi: Array) -> NDArray[np.complex128]:
        """As it was given."""
        with np.errstate(all="ignore"):
            return np.asarray(self._characteristic(xi), dtype=np.complex128)

    @cached_property
    def entropy(self) -> float:
        """By quadrature."""
        x, weights = self.nodes
        some = weights > 0
        return -float(weights[some] @ self.log_density(x[some]))

    def moment(self, order: int) -> float:
        """By quadrature, with a look at the tails."""
        if self._log_density is None:
            x, weights = self.nodes
            return float((weights * x**order).sum())
        above = log_integral(lambda x: self.log_density(x) + order * np.log(x))
        below = log_integral(lambda x: self.log_density(-x) + order * np.log(x))
        if isfinite(above) and isfinite(below):
            return exp(above) + (-exp(below) if order % 2 else exp(below))
        return nan if order % 2 else inf

    @cached_property
    def outside(self) -> tuple[str, ...]:
        """What a look at a grid finds. It cannot see what happens between or beyond: that is for you to know."""
        found = []
        if (zero := self._zero()) is not None:
            found.append(f"the posterior's characteristic function is 0 at xi = {zero:.6g}")
        if self.band == self._frequencies[-1]:
            found.append("the posterior's characteristic function falls like a power: its density is not smooth")
        x = 1e6 * self.scale * np.array([-2.0, -1.0, 1.0, 2.0])
        heights = self.log_density(x)
        with np.errstate(all="ignore"):
            powers = np.array([heights[1] - heights[0], heights[2] - heights[3]]) / log(2)
        if (np.isfinite(powers) & (powers < 50)).any():
            found.append(
                f"the posterior's density falls like |x|^-{powers[powers < 50].min():.3g}, not faster than any power"
            )
        return tuple(found)

    @cached_property
    def _frequencies(self) -> Array:
        """Where phi is looked at: from 0, then densely, to where it must have ended if the density is smooth."""
        if self._log_density is None:
            return np.geomspace(1e-30, 1e30, 12001)
        return np.geomspace(1e-3, 1e4, 14001) / self.scale

    @cached_property
    def band(self) -> float:
        """Beyond this |phi| is below 1e-14, as far as was looked; the furthest xi if it never is."""
        xi = self._frequencies
        some = np.flatnonzero(np.abs(self.characteristic(xi)) > FAINT)
        return float(xi[min(int(some[-1]) + 1, len(xi) - 1)])

    def _zero(self) -> float | None:
        """The first xi at which phi is 0, if one is seen."""
        xi = self._frequencies
        size = np.abs(self.characteristic(xi))
        low = 1 + np.flatnonzero((size[1:-1] < size[:-2]) & (size[1:-1] < size[2:]) & (size[1:-1] > FAINT))
        for place in low[:32]:
            at, width = xi[place], xi[place + 1] - xi[place - 1]
            for _ in range(30):
                near = at + width * np.linspace(-1, 1, 21)
                at = near[np.abs(self.characteristic(near)).argmin()]
                width *= 0.2
            if abs(complex(self.characteristic(np.array([at]))[0])) < 1e-9 * size[place + 1]:
                return float(at)
        return None

    @cached_property
    def _waves(self) -> tuple[Array, NDArray[np.complex128], float]:
        """Frequencies, amplitudes and half the period of the sum that is the density."""
        xi, step = np.linspace(0, self.band, 2049, retstep=True)
        amplitudes = self.characteristic(xi) * step / pi
        amplitudes[0] /= 2
        return xi, amplitudes, pi / step

    def _inverted(self, x: Array) -> Array:
        """The density, by the trapezoidal rule, which is as good as exact here; 0 where it is faint."""
        xi, amplitudes, half_period = self._waves
        density = np.zeros(x.size)
        inside = np.flatnonzero(np.abs(x.ravel()) < half_period)
        for part in np.array_split(inside, 1 + len(inside) // 1000):
            density[part] = (np.exp(-1j * np.outer(x.ravel()[part], xi)) @ amplitudes).real
        density[density < FAINT * np.abs(amplitudes).sum()] = 0.0
        return density.reshape(x.shape)
