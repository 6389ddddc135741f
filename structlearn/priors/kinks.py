"""Where a function has a kink, as far as numbers can tell."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    from structlearn.priors.quadrature import Array


def kink(f: Callable[[Array], Array], centre: float, around: float) -> float | None:
    """A place at which the slope of `f` jumps, within `around` of `centre`; None if none is seen.

    (f(x + h) - 2 f(x) + f(x - h)) / h is halved with h where f is smooth, and stays where the slope jumps; this is
    followed through 20 halvings from where it is largest, and from the centre.
    """
    x, h = np.linspace(centre - around, centre + around, 2001, retstep=True)
    best = x[np.argsort(-_bend(f, x, h))[:8]]
    slope, size = float(np.abs(np.diff(f(x))).max()) / h, float(np.abs(f(x)).max())
    rounding = 1e-14 * size / (h * 2.0**-20)
    for start in (centre, *best):
        at, width, first = float(start), float(h), float(_bend(f, np.array([start]), h)[0])
        for _ in range(20):
            width /= 2
            near = at + width * np.linspace(-2, 2, 33)
            at = float(near[_bend(f, near, width).argmax()])
        if _bend(f, np.array([at]), width)[0] > max(0.25 * first, 1e-3 * slope, rounding):
            return 0.0 if abs(at) < 2 * h * 2.0**-20 else at
    return None


def _bend(f: Callable[[Array], Array], x: Array, h: float) -> Array:
    """By how much the slope changes within h."""
    return np.asarray(np.abs(f(x + h) - 2 * f(x) + f(x - h)) / h)
