"""What is to be cut, as plain data."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from numbers import Integral
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence


@dataclass(frozen=True)
class Plan:
    """Which units of which coupled sets stay, and in which order.

    Ranks that are to cut one network alike compare digests; a checkpoint holds a plan to rebuild the shape of its
    network from the shape that it began with.

    Attributes:
        keep: For each set that changes, by its name: the units that stay, in their new order. Sets that are not named
            stay as they are.

    Raises:
        ValueError: units are no whole numbers.
    """

    keep: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "keep", {name: _whole(name, units) for name, units in self.keep.items()})

    def __bool__(self) -> bool:
        return bool(self.keep)

    @property
    def digest(self) -> str:
        """16 hexadecimal digits that differ where plans do."""
        text = json.dumps({name: list(units) for name, units in sorted(self.keep.items())}, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def then(self, later: Plan) -> Plan:
        """The plan that does at once what this one and a later one do one after the other."""
        keep = dict(self.keep)
        for name, units in later.keep.items():
            before = keep.get(name)
            keep[name] = tuple(units if before is None else (before[unit] for unit in units))
        return Plan(keep)

    def as_dict(self) -> dict[str, list[int]]:
        """Plain values, as JSON can hold them."""
        return {name: list(units) for name, units in self.keep.items()}

    @staticmethod
    def from_dict(values: Mapping[str, Sequence[Any]]) -> Plan:
        """Take back what :meth:`as_dict` gave.

        Raises:
            ValueError: units are no whole numbers.
        """
        return Plan({name: _whole(name, units) for name, units in values.items()})


def _whole(name: str, units: Iterable[Any]) -> tuple[int, ...]:
    """The units, if they are whole numbers (numpy's, too)."""
    if isinstance(units, tuple) and {int}.issuperset(map(type, units)):
        return units
    text = isinstance(units, str | bytes)
    given = units if text else tuple(units)  # an iterator can be read but once
    if text or any(not isinstance(unit, Integral) or isinstance(unit, bool) for unit in given):
        raise ValueError(f"a plan's units are whole numbers, such as (0, 2, 3); for {name} it got {units!r}")
    return tuple(int(unit) for unit in given)
