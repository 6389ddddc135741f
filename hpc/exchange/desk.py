"""The master: it keeps the centre w_0, and answers one request after the other."""

from collections.abc import Callable
from typing import Any

import numpy as np

from hpc.exchange.wire import Envelope, Letter, now_ns

Floats = np.ndarray[Any, np.dtype[np.floating[Any]]]

Rule = Callable[[Floats, Floats], None]
"""What a master does with a request: (the centre, the request's numbers, which become those of the answer)."""


class Desk:
    """The centre in host memory, and the rule by which requests change it.

    A request becomes its answer in place: the memory that came is the memory that goes, and a master holds one centre
    and as many messages as it can receive at a time, however many workers there are. The arithmetic is numpy's: it
    works in the thread that calls it, where torch would start a second team of threads beside the training's.

    Args:
        centre: w_0, flat; changed in place, by one request at a time.
        rule: what a request does.
        structure: the version of the network, which workers must share.
    """

    def __init__(self, centre: Floats, rule: Rule, structure: int = 0) -> None:
        self.centre, self._rule, self._structure = centre, rule, structure
        self.events: list[tuple[int, int]] | None = None
        """Where a list is put here, it gets (worker, its step) of each request, in the order they were answered."""

    def answer(self, envelope: Envelope) -> int:
        """Turn the request in an envelope into its answer; the rank to send it to. Raises RunError."""
        letter = envelope.open()
        letter.check(self._structure)
        numbers = envelope.payload.numpy().view(self.centre.dtype)
        self._rule(self.centre, numbers)
        envelope.seal(Letter(0, letter.step, 0, now_ns(), structure=self._structure), len(envelope.bytes))
        if self.events is not None:
            self.events.append((letter.sender, letter.step))
        return letter.sender
