"""The mass of a gossip message: what a rank's weights count for (the sum-weight lambda of B Alg. 3-4).

Integers, because halving and adding floats drifts: with units the masses of all ranks and of all messages under
way add up to the whole, exactly, however long a run is.
"""

from collections.abc import Sequence
from typing import Final

UNITS: Final = 1 << 40
"""Units that each rank starts with: enough for forty halvings in a row, and 2^23 ranks together fit into 63 bits."""

LEAST: Final = 2
"""A rank with less keeps what it has: neither half may be nothing."""


def halve(mass: int) -> tuple[int, int]:
    """(what the sender keeps, what it gives away): the remainder of an odd number stays.

    Raises:
        ValueError: less than :data:`LEAST`, which cannot be divided.
    """
    if mass < LEAST:
        raise ValueError(f"a mass of {mass} cannot be halved; it must be at least {LEAST}")
    given = mass // 2
    return mass - given, given


def share(own: int, received: int) -> float:
    """The part of the mixture that the received weights make up: c of ``w <- (1 - c) w + c w_s`` (B Alg. 4)."""
    return received / (own + received)


def renormalise(masses: Sequence[int], whole: int) -> list[int]:
    """Masses in the same proportions that add up to a whole, exactly.

    Each is rounded down, and the units left over go to the largest remainders, the first of equal ones first. It is
    pure arithmetic in integers: ranks that know the same masses come to the same.

    Raises:
        ValueError: the masses are nothing together.
    """
    total = sum(masses)
    if total <= 0:
        raise ValueError(f"masses of {total} together have no proportions")
    shares = [mass * whole // total for mass in masses]
    by_remainder = sorted(range(len(masses)), key=lambda place: -(masses[place] * whole % total))
    for place in by_remainder[: whole - sum(shares)]:
        shares[place] += 1
    return shares
