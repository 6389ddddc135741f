"""Where the time goes: seconds in each phase of the loop."""

import time
from itertools import pairwise
from typing import Any, Final

import torch

from hpc.record import COLUMNS

# The phases of a step only queue work on a device; the others end with the host waiting for their results.
_QUEUED = frozenset({"data", "forward", "backward", "optimizer", "exchange"})


# Marks that may wait to be read. A device is never so many kernels behind its host (its queue holds about a thousand):
# reading the older half of them waits for nothing, and an epoch of any length needs no more events than these.
_MARKS: Final = 4096


class Clock:
    """Adds up the time between two calls to the phase that the first of them named.

    On the CPU that is wall time. On a CUDA device the host runs ahead of the kernels, so events mark the phases
    in the device's own stream; they are read once an epoch, and nothing waits for the device within a step. A phase
    of the host (``evaluate``, ``checkpoint``) starts when the device has done what was queued before it, so that no
    second is counted in two phases.
    """

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self.phase = ""
        self._since = time.perf_counter()
        self.seconds = dict.fromkeys(COLUMNS["profile"], 0.0)
        self._on_device = False
        self._marks: list[tuple[str, Any]] = []
        self._spare: list[Any] = []  # events that were read: making one costs more than recording it

    def enter(self, phase: str) -> None:
        """From now on, time belongs to ``phase`` (a column of /profile, or "" for none of them)."""
        now = time.perf_counter()
        if self.phase and not self._on_device:
            self.seconds[self.phase] += now - self._since
        on_device = self._cuda and phase in _QUEUED
        if on_device or self._on_device:
            self._mark(phase if on_device else "")
        if phase and not on_device and self._marks:
            self._marks[-1][1].synchronize()
            now = time.perf_counter()
        self.phase, self._since, self._on_device = phase, now, on_device

    def take(self) -> dict[str, float]:
        """The seconds of each phase since the last call, which starts again from zero."""
        if self._marks:
            self._read(len(self._marks) - 1)
        taken, self.seconds = self.seconds, dict.fromkeys(self.seconds, 0.0)
        return taken

    def _mark(self, phase: str) -> None:
        """Mark where a phase starts in the device's stream; one without a name only ends the last."""
        if len(self._marks) == _MARKS:
            self._read(_MARKS // 2)
        event = self._spare.pop() if self._spare else torch.cuda.Event(enable_timing=True)
        event.record()
        self._marks.append((phase, event))

    def _read(self, count: int) -> None:
        """Add up the first phases of the device, from mark to mark. The last mark stays, to start the next phase."""
        self._marks[count][1].synchronize()
        for (phase, start), (_, end) in pairwise(self._marks[: count + 1]):
            if phase:
                self.seconds[phase] += start.elapsed_time(end) / 1e3
        self._spare += [event for _, event in self._marks[:count]]
        del self._marks[:count]
