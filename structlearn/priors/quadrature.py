"""Integrals of positive functions over a half-line, of any scale and in logarithms, and whether they are finite."""

from __future__ import annotations

from math import inf, log
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.polynomial.legendre import leggauss
from numpy.typing import NDArray

if TYPE_CHECKING:
    from collections.abc import Callable

    Function = Callable[[NDArray[Any]], NDArray[Any]]

Array = NDArray[np.floating[Any]]

NODES, WEIGHTS = leggauss(20)

FURTHEST: Final = 345.0
"""The largest |ln x| that is looked at: beyond, x^2 is no longer a number."""

NEGLIGIBLE: Final = 60.0
"""What is this much below the peak, in logarithms, is left out: 1e-26 of it."""

NARROWEST: Final = 2.0**-40
"""The narrowest a peak may be, relative to where it is: some thousand floats."""

OVERFLOW: Final = 46.0
"""From this ln x on (1e20) what is no number has run out of them; its trend is that of the last number."""

STEP: Final = 0.1  # of the first look, in ln x
BOUNDED: Final = 60.0  # ln x: a function that is 0 from here on has been cut off, rather than run out of numbers


def log_integral(log_f: Function) -> float:
    """The logarithm of the integral of exp(log_f(x)) over x > 0; inf where it diverges.

    The function is looked at in t = ln x from -345 to 345; Gauss's rule follows on panels that double in size away
    from 0 and from each peak, halved until nothing changes. So a peak may lie anywhere and be as narrow as it likes,
    and a kink costs some panels. Beyond both ends the function goes on as the power of x that it is there.

    Args:
        log_f: Takes an array of x > 0; -inf is a weight of 0.
    """
    t = np.linspace(-FURTHEST, FURTHEST, round(2 * FURTHEST / STEP) + 1)
    with np.errstate(all="ignore"):
        heights = np.array(log_f(np.exp(t)))
        heights[np.isnan(heights) & (t > OVERFLOW)] = -inf  # such as inf - inf
        look = heights + t
    if np.isnan(look).any():
        x = np.exp(t[np.isnan(look)][0])
        raise ValueError(f"the function to be integrated is no number at x = {x:.3g}; it must be one for all x > 0")
    if np.isneginf(look).all() or (top := float(look.max())) == -inf:
        return -inf
    if top == inf or not (_falls(heights, t) and _falls(heights[::-1], t[::-1])):
        return inf
    peaks = _peaks(log_f, t, look)
    with np.errstate(all="ignore"):
        tops = np.append(log_f(np.exp(peaks)) + peaks, top)
    highest = float(np.append(peaks, t[look.argmax()])[tops.argmax()])
    top = float(tops.max())
    matters = np.concatenate([t[look > top - NEGLIGIBLE], peaks, [highest]])
    edges = _edges(float(matters.min()) - STEP, float(matters.max()) + STEP, peaks)
    level = top - highest  # ln f at the peak
    with np.errstate(all="ignore"):
        beside = log_f(np.exp(highest) * (1 + NARROWEST * np.array([-1.0, 1.0]))) - level
        if (beside < -NEGLIGIBLE).all():
            raise ValueError(
                f"the peak at x = {np.exp(highest):.6g} is too narrow: relative to x, below {NARROWEST:.1g}"
            )
        total = integral(lambda x: np.exp(log_f(x) - level), edges)
        total += _end(look - level) + _end((look - level)[::-1])
    return level + log(total)


def integral(f: Function, edges: Array, tolerance: float = 1e-13) -> float:
    """The integral of `f` over the panels between `edges`: Gauss's rule, panels halved until halving changes nothing.

    Args:
        f: Takes an array of any shape.
        edges: Ascending.
        tolerance: What a panel's halving may change, of the whole.
    """
    left, right = edges[:-1], edges[1:]
    whole, done = _gauss(f, left, right), 0.0
    for _ in range(50):
        middle = (left + right) / 2
        first, second = _gauss(f, left, middle), _gauss(f, middle, right)
        halved = first + second
        rough = np.abs(halved - whole) > tolerance * abs(done + halved.sum())
        done += float(halved[~rough].sum())
        # So many panels that still change are noise of the function's own rounding.
        if not rough.any() or np.count_nonzero(rough) > 1024:
            return done + float(halved[rough].sum())
        left, right = np.concatenate([left[rough], middle[rough]]), np.concatenate([middle[rough], right[rough]])
        whole = np.concatenate([first[rough], second[rough]])
    return done + float(whole.sum())


def panels(edges: Array) -> tuple[Array, Array]:
    """Nodes and weights of Gauss's rule on the panels between `edges`, in one row."""
    half = np.diff(edges)[:, None] / 2
    return (edges[:-1, None] + half * (1 + NODES)).ravel(), (half * WEIGHTS).ravel()


def _gauss(f: Function, left: Array, right: Array) -> Array:
    """The integral over each panel."""
    half = (right - left)[:, None] / 2
    values: Array = (f(left[:, None] + half * (1 + NODES)) * half) @ WEIGHTS
    return values


def _falls(heights: Array, t: Array) -> bool:
    """Is the integral of exp(heights + t) over t finite at its end, which is where the arrays end?

    It is if it falls faster than 1 / |t| (Bertrand), judged between the last t with a value and half of it. An
    integrand in x that falls as x^-(1+s) is exp(-s t) in t: s below 0.004 is taken for 0.
    """
    last = int(np.flatnonzero(np.isfinite(heights))[-1])
    if t[last] * np.sign(t[-1]) < BOUNDED:
        return True
    half = int(np.abs(t - t[last] / 2).argmin())
    # Each difference by itself: heights may be so large that t is lost in the sum.
    return bool(heights[half] - heights[last] + (t[half] - t[last]) > log(t[last] / t[half]))


def _end(look: Array) -> float:
    """What lies beyond the last t if the fall goes on as it is there."""
    fall, last = float(look[-2] - look[-1]) / STEP, float(np.exp(look[-1]))
    return last / fall if last > 0 else 0.0


def _peaks(log_f: Function, t: Array, look: Array) -> Array:
    """Where, in ln x, the integrand in ln x is largest; the highest first, none that is negligible."""
    inner = look[1:-1]
    places = 1 + np.flatnonzero((inner >= look[:-2]) & (inner > look[2:]))
    at = t[places[np.argsort(-look[places])][:64]]
    width = STEP
    with np.errstate(all="ignore"):
        for _ in range(14):
            near = at[:, None] + width * np.linspace(-1, 1, 21)
            at = near[np.arange(len(at)), (log_f(np.exp(near)) + near).argmax(1)]
            width *= 0.15
        height = log_f(np.exp(at)) + at
    order = np.argsort(-height)
    kept: Array = at[order][height[order] >= height.max(initial=-inf) - NEGLIGIBLE]
    return kept


def _edges(low: float, high: float, peaks: Array) -> Array:
    """Panels between exp(low) and exp(high): octaves, and around each peak more and more narrow ones."""
    octaves = np.exp(np.append(np.arange(low, high, log(2)), high))
    shares = 2.0 ** -np.arange(1, 45)
    shares = np.concatenate([-shares, [0.0], shares])
    around = (np.exp(peaks)[:, None] * (1 + shares)).ravel()
    inside = (around > octaves[0]) & (around < octaves[-1])
    edges: Array = np.unique(np.concatenate([octaves, around[inside]]))
    return edges
