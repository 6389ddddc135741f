"""Where the time goes: seconds in each phase of the loop."""

import time
from typing import Any

import torch

from hpc.record import COLUMNS

# The phases of a step only queue work on a device; the others end with the host waiting for their results.
_QUEUED = frozenset({"data", "forward", "backward", "optimizer", "exchange"})


class Clock:
    """Adds up the time between two calls to the phase that the first of them named.

    On the CPU that is wall time. On a CUDA device the host runs ahead of the kernels, so events mark the phases
    in the device's own stream; they are read once an epoch, and nothing waits for the device in between.
    """

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self.phase = ""
        self._since = time.perf_counter()
        self.seconds = dict.fromkeys(COLUMNS["profile"], 0.0)
        self._on_device = False
        self._marks: list[tuple[str, Any]] = []

    def enter(self, phase: str) -> None:
        """From now on, time belongs to ``phase`` (a column of /profile, or "" for none of them)."""
        on_device = self._cuda and phase in _QUEUED
        if on_device or self._on_device:
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self._marks.append((phase if on_device else "", event))
        now = time.perf_counter()
        if self.phase and not self._on_device:
            self.seconds[self.phase] += now - self._since
        self.phase, self._since, self._on_device = phase, now, on_device

    def take(self) -> dict[str, float]:
        """The seconds of each phase since the last call, which starts again from zero."""
        if self._marks:
            self._marks[-1][1].synchronize()
            for (phase, start), (_, end) in zip(self._marks, self._marks[1:], strict=False):
                if phase:
                    self.seconds[phase] += start.elapsed_time(end) / 1e3
            self._marks.clear()
        taken, self.seconds = self.seconds, dict.fromkeys(self.seconds, 0.0)
        return taken
