"""The training losses of the steps since the last evaluation: on the device, so that no step waits for them."""

import math
from typing import Any

import torch

from hpc.communicator import Communicator


class Losses:
    """One loss a step; ranks may have made different numbers of steps.

    Args:
        steps: how many are expected; more find room, too.
        device: where the losses are.
    """

    def __init__(self, steps: int, device: torch.device) -> None:
        self._values = torch.zeros(steps, device=device)
        self._count = 0

    def add(self, loss: torch.Tensor) -> None:
        """Take the loss of one more step, a scalar on the device."""
        if self._count == len(self._values):
            self._values = torch.cat([self._values, torch.zeros_like(self._values)])
        self._values[self._count].copy_(loss)
        self._count += 1

    def last(self) -> float:
        """The newest loss, nan where there is none: waits for the device."""
        return float(self._values[self._count - 1]) if self._count else math.nan

    def take(self, comm: Communicator, every: int | None) -> tuple[float, list[float]]:
        """(the mean over all steps of all ranks, the means of every ``every`` steps); start again. Collective.

        Every batch has the same number of samples, so the mean of their means is the mean. A mean of ``every`` steps
        is over the ranks that have made them.
        """
        own = self._values[: self._count].double().cpu()
        spans = [float(span.mean()) for span in own.split(every) if len(span) == every] if every else []
        everyone = comm.gather([float(own.sum()), self._count, spans], "average the training loss")
        self._count = 0
        longest = max(len(theirs) for _, _, theirs in everyone)
        at = [[theirs[place] for _, _, theirs in everyone if place < len(theirs)] for place in range(longest)]
        mean = sum(total for total, _, _ in everyone) / sum(count for _, count, _ in everyone)
        return mean, [sum(values) / len(values) for values in at]

    def state_dict(self) -> dict[str, Any]:
        """The losses so far."""
        return {"values": self._values[: self._count]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what :meth:`state_dict` gave."""
        self._count = 0
        for loss in state["values"].to(self._values.device):
            self.add(loss)
