"""What is close to a penalty and within the theorem's conditions: its high frequencies taken away (W 4.8.5)."""

from __future__ import annotations

from math import pi
from typing import TYPE_CHECKING, Final

import numpy as np

from structlearn.checks import check_positive

if TYPE_CHECKING:
    from collections.abc import Callable

    from structlearn.priors.posteriors import Smooth
    from structlearn.priors.quadrature import Array

FLAT: Final = 0.25  # of the cutoff: frequencies below are left as they are
AMPLIFIED: Final = 100.0  # by how much 1 / phi may enlarge a frequency unless a cutoff is given

FREQUENCIES: Final = 1024  # up to the cutoff
POINTS: Final = 2**19  # of the kernel's grid, a period of 2 pi 1024 / cutoff
REACH: Final = 500.0  # over the cutoff: beyond, the kernel is 1e-11 of its peak
CORE: Final = 500.0  # over the cutoff: up to here the grid is fine, for a kink at the lowest point and others near it
FAR: Final = 1e6  # over the cutoff: beyond, a power of theta and what dividing by phi makes of it agree to 1e-12
COARSE: Final = 64  # further out the penalty is smooth, and each 64th point of the kernel does


class Regularised:
    """f = F^-1[window F r / phi] for any penalty r of polynomial growth; the candidate for ln prior is -Ent - f.

    W cuts F r off at +-n. A sharp edge makes a kernel that falls like 1 / |y|, against which a growing penalty
    cannot be integrated; so the window is smooth (infinitely often differentiable): 1 up to n / 4, 0 from n on. It
    also has a compact support, so -Ent - f is what the theorem makes of the penalty r_n = F^-1[window F r], r_n tends
    to r as n grows, and polynomials are left as they are. The larger n is, the closer r_n is to r, and the wilder f:
    dividing by phi enlarges the frequency n by 1 / |phi(n)|.

    Computed as the convolution of r with the kernel F^-1[window / phi]: on a fine grid around r's
    lowest point (or 0, if it is as low), by sums further out, and as r itself where r bends no more. A kink further
    than 500 / n from there is seen by the coarse sums only.

    Args:
        penalty: Of an array.
        posterior: Gives phi.
        cutoff: n. None: where 1 / |phi| reaches 100.
    """

    def __init__(self, penalty: Callable[[Array], Array], posterior: Smooth, cutoff: float | None = None) -> None:
        self.penalty = penalty
        self.cutoff = _cutoff(posterior) if cutoff is None else check_positive("cutoff", cutoff)
        xi = np.linspace(0, self.cutoff, FREQUENCIES + 1)
        window = _window(xi / self.cutoff)
        phi = posterior.characteristic(xi)
        if not (np.abs(phi[:-1]) > 1e-12).all():
            raise ValueError(
                f"the characteristic function is below 1e-12 at xi = {xi[np.abs(phi).argmin()]:.4g}: nothing is left "
                f"after a division by it; give a cutoff below that, got {self.cutoff:.4g}"
            )
        self._step = 2 * pi * FREQUENCIES / (POINTS * self.cutoff)
        spectrum = np.zeros(POINTS // 2 + 1, dtype=np.complex128)
        spectrum[:FREQUENCIES] = (window / np.where(window > 0, phi, 1.0))[:-1]
        kernel = np.fft.irfft(spectrum, POINTS) / self._step
        far = COARSE * round(REACH / self.cutoff / self._step / COARSE)
        self._kernel = np.concatenate([kernel[-far:], kernel[: far + 1]])  # at -far, ..., far steps
        self._offsets = self._step * np.arange(-far, far + 1)
        self._core = CORE / self.cutoff
        self.centre = lowest(penalty)
        self._table = self._tabulated()

    def __call__(self, theta: Array) -> Array:
        """Gives f."""
        theta = np.asarray(theta, dtype=np.float64)
        flat = theta.ravel()
        found = np.empty_like(flat)
        distance = np.abs(flat - self.centre)
        near = distance < self._core - 4 * self._step
        found[near] = self._interpolated(flat[near])
        weights, offsets = COARSE * self._step * self._kernel[::COARSE], self._offsets[::COARSE]
        found[~near] = self.penalty(flat[~near])
        outside = np.flatnonzero(~near & (distance < FAR / self.cutoff))
        for part in np.array_split(outside, 1 + len(outside) // 1000):
            found[part] = self.penalty(flat[part][:, None] - offsets) @ weights
        return found.reshape(theta.shape)

    def _tabulated(self) -> Array:
        """Gives f at even multiples of the step in the core, by Simpson's rule, with the lowest point as a node."""
        half, far = 2 * round(self._core / self._step / 2), len(self._offsets) // 2
        x = self.centre + self._step * np.arange(-half - far, half + far + 1)
        with np.errstate(all="ignore"):
            values = self.penalty(x)
        if not np.isfinite(values).all():
            raise ValueError(
                f"the penalty is {values[~np.isfinite(values)][0]} at {x[~np.isfinite(values)][0]:.4g}: one under a "
                "posterior with a density must be finite everywhere and grow no faster than a power"
            )
        weights = self._step * self._kernel * np.where(np.arange(-far, far + 1) % 2, 4 / 3, 2 / 3)
        length = 1 << (len(x) + len(weights) - 1).bit_length()
        product = np.fft.rfft(values, length) * np.fft.rfft(weights, length)
        table: Array = np.fft.irfft(product, length)[2 * far : 2 * far + 2 * half + 1 : 2]
        return table

    def _interpolated(self, theta: Array) -> Array:
        """From the table by cubics through four points: f has no frequency above the cutoff, so that is nine digits."""
        place = (theta - self.centre) / (2 * self._step) + len(self._table) // 2
        left = np.clip(np.floor(place).astype(np.int64), 1, len(self._table) - 3)
        u = place - left
        before, here, after, last = (self._table[left + k] for k in (-1, 0, 1, 2))
        inner = (here * (1 - u) * (2 - u) + after * u * (2 - u)) * (1 + u) / 2
        return np.asarray(inner - (before * (2 - u) + last * (1 + u)) * u * (1 - u) / 6)


def lowest(penalty: Callable[[Array], Array]) -> float:
    """Where the penalty is least, as far as a grid and a search around its least point find; 0 if it is as low."""
    grid = np.geomspace(1e-9, 1e9, 1201)
    x = np.concatenate([-grid[::-1], [0.0], grid])
    with np.errstate(all="ignore"):
        values = penalty(x)
        place = int(np.nanargmin(values))
        if not values[place] < values[len(grid)]:
            return 0.0
        at, width = x[place], abs(x[place]) / 10
        for _ in range(25):
            near = at + width * np.linspace(-1, 1, 21)
            at = near[np.nanargmin(penalty(near))]
            width *= 0.2
    return float(at)


def _cutoff(posterior: Smooth) -> float:
    """Up to where 1 / |phi| stays below 100."""
    xi = np.geomspace(1e-3, 1e4, 7001) / posterior.scale
    return float(xi[max(int((np.abs(posterior.characteristic(xi)) < 1 / AMPLIFIED).argmax()) - 1, 0)])


def _window(share: Array) -> Array:
    """1 up to FLAT, 0 from 1 on, smooth between."""
    fall = np.clip((share - FLAT) / (1 - FLAT), 1e-9, 1 - 1e-9)
    return np.asarray((1 - np.tanh((1 / (1 - fall) - 1 / fall) / 2)) / 2)
