"""A sum over all ranks of what each has to report, started again whenever it has come back.

Every rank sees one and the same sequence of totals, and so they agree on the next pause without a meeting. A rank
that is gone is noticed because the sum does not come back.
"""

import time
from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np

from hpc.communicator import Channel, Flight
from hpc.exchange.agenda import Pause

Report = np.ndarray[Any, np.dtype[np.int64]]
"""What a rank reports: steps made, a wish to stop, sketches offered."""

Offer = np.ndarray[Any, np.dtype[np.float64]]


class Agreement:
    """The rolling sum, and beside it sums of what the ranks offer now and then.

    Args:
        channel: the ranks.
        size: number of ranks.
        decide: what all ranks' reports mean: (their sum, this rank's own among them). The sums come in the same order
            on all ranks, and must be answered alike: with a pause, after which nothing is summed until
            :meth:`resume`, or with None.
        watch: called with when a sum was started and what is waited for, as long as it has not come back.
    """

    def __init__(
        self,
        channel: Channel,
        size: int,
        decide: Callable[[Report, Report], Pause | None],
        watch: Callable[[float, str], None],
    ) -> None:
        self._channel, self._size, self._decide, self._watch = channel, size, decide, watch
        self.report = np.zeros(3, np.int64)
        self.pause: Pause | None = None
        self.sums: deque[Offer] = deque()
        """Sums over all ranks of what each offered, in the order of offers, the same on every rank."""
        self._sum: tuple[Flight, Report, Report] | None = None
        self._since = 0.0
        self._offered: Offer | None = None
        self._summed = 0
        self._background: tuple[Flight, Offer] | None = None

    def resume(self) -> None:
        """Sum again, after a pause."""
        self.pause = None

    def offer(self, values: Offer) -> None:
        """Give numbers to be summed over all ranks, once each has offered its own; :attr:`sums` gets the result.

        One offer at a time: the next one only after its sum has come.
        """
        self._offered = values
        self.report[2] += 1

    def correct(self, values: Offer) -> None:
        """Give other numbers in place of those last offered, unless their sum is under way or has come."""
        if self._offered is not None and self._background is None:
            self._offered = values

    def expecting(self) -> bool:
        """Has this rank offered something whose sum has not come?"""
        return self._offered is not None

    def at_rest(self) -> bool:
        """Has the sum of every offer that all ranks made come? After a pause that all have seen, no new one starts."""
        return self._background is None

    def move(self) -> None:
        """Move the sums on by what can be done now. By one thread at a time."""
        self._sum_offers()
        if self.pause is None:
            self._sum_reports()

    def _sum_reports(self) -> None:
        if self._sum is None:
            own = self.report.copy()
            everyone = own.copy()
            self._sum, self._since = (self._channel.sum_(everyone), everyone, own), time.monotonic()
        flight, everyone, own = self._sum
        if flight.done():
            self._sum = None
            self.pause = self._decide(everyone, own)
            if everyone[2] == self._size * (self._summed + 1):  # all have offered, and all see so in this very sum
                assert self._offered is not None
                self._summed += 1
                self._background = (self._channel.sum_(self._offered), self._offered)
        else:
            self._watch(self._since, "report how far it is")

    def _sum_offers(self) -> None:
        if self._background is not None and self._background[0].done():
            values = self._background[1]
            self._background = self._offered = None  # before the trainer sees the sum, and may offer again
            self.sums.append(values)
