"""What is checked before anything is built: names, numbers, intervals.

Every message says what was got, what is allowed and what to do.
"""

from __future__ import annotations

from difflib import get_close_matches
from math import isfinite
from numbers import Integral
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable


def check_choice(what: str, given: str, allowed: Iterable[str]) -> None:
    """Raise ValueError, with the nearest name as a suggestion, unless `given` is among `allowed`."""
    names = list(allowed)
    if given in names:
        return
    near = get_close_matches(str(given), names, n=1)
    hint = f" (did you mean {near[0]!r}?)" if near else ""
    raise ValueError(f"unknown {what} {given!r}{hint}; use one of: {', '.join(names)}")


def check_count(what: str, given: int) -> int:
    """`given`, if it is a whole number of at least 1."""
    # Integral and not int: sizes also come from numpy.
    if not isinstance(given, Integral) or isinstance(given, bool) or given < 1:
        raise ValueError(f"{what} must be a whole number of at least 1, got {given!r}")
    return int(given)


def check_share(what: str, given: float, *, zero: bool = False) -> float:
    """`given`, if it is between 0 and 1; 1 is not among them, 0 where `zero` is set."""
    if not (0 < given < 1 or (zero and given == 0)):
        least = "at least 0" if zero else "above 0"
        raise ValueError(f"{what} must be {least} and below 1, got {given!r}")
    return float(given)


def check_positive(what: str, given: float, *, zero: bool = False) -> float:
    """`given`, if it is finite and above 0; 0 is allowed where `zero` is set."""
    if not (isfinite(given) and (given > 0 or (zero and given == 0))):
        raise ValueError(f"{what} must be {'at least' if zero else 'above'} 0, got {given!r}")
    return float(given)


def check_interval(what: str, low: float, high: float) -> tuple[float, float]:
    """`(low, high)`, if both are finite, above 0, and in this order; they may be equal."""
    if not (isfinite(low) and isfinite(high) and 0 < low <= high):
        raise ValueError(f"{what} must be an interval above 0 with its lower end first, got [{low!r}, {high!r}]")
    return float(low), float(high)
