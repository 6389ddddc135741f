"""Which entries of which axes are one unit: numbers for entries, and which of them are the same."""

from __future__ import annotations

from typing import Any, Final

import numpy as np

Labels = np.ndarray[Any, np.dtype[np.int64]]
"""One number for each entry of an axis."""

FREE: Final = 256
"""Labels below this one are of what is never cut, each for its own reason; whatever is united with one, neither."""


class Same:
    """A union-find over labels, for whole arrays at a time: the smallest label of a class stands for it."""

    def __init__(self) -> None:
        self._parent = np.arange(FREE)
        self._count = FREE

    def __len__(self) -> int:
        return self._count

    def fresh(self, count: int) -> Labels:
        """So many new labels."""
        start = self._count
        self._count += count
        if self._count > len(self._parent):
            bigger = np.arange(max(self._count, 2 * len(self._parent)))
            bigger[: len(self._parent)] = self._parent
            self._parent = bigger
        return np.arange(start, self._count)

    def unite(self, one: Labels, other: Labels) -> None:
        """From now on, each of `one` is the same as its partner in `other`; a single label is everybody's partner.

        Two that are never cut keep their own reasons.
        """
        pairs = np.broadcast_arrays(one, other)
        while True:
            left, right = self.find(pairs[0]), self.find(pairs[1])
            apart = (left != right) & (np.maximum(left, right) >= FREE)
            if not apart.any():
                return
            left, right = left[apart], right[apart]
            np.minimum.at(self._parent, np.maximum(left, right), np.minimum(left, right))

    def find(self, labels: Labels) -> Labels:
        """Of each, the label that stands for its class."""
        found = self._parent[labels]
        while not np.array_equal(further := self._parent[found], found):
            found = further
        self._parent[labels] = found
        return found
