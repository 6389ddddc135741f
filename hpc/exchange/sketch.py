"""How far apart the ranks are, from a few numbers of each.

The consensus error eps = sum_m ||w_m - mean(w)||^2 (B 2.5.1) asks for the mean of all weights: a meeting. A sketch
s = S w by a random matrix S with E[S^T S] = I keeps lengths in expectation, and it is linear: the error of the
sketches, sum_m ||s_m||^2 - ||sum_m s_m||^2 / M, has the mean eps, and costs each rank one short vector.

S adds up blocks of the weights with random signs (a count sketch: Charikar, Chen, Farach-Colton 2002), which reads
the weights once and stores one sign for every thousand of them.
"""

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import torch

WIDTH: Final = 1024
"""Numbers in a sketch: the estimate's relative standard deviation is about sqrt(2 / WIDTH), 4.4 %."""

Sums = np.ndarray[Any, np.dtype[np.float64]]


class Sketch:
    """Sketches of one set of tensors; ranks that give the same seed can compare theirs.

    Args:
        values: flat tensors, on one device. They are read when :meth:`take` is called.
        seed: of the signs.
    """

    def __init__(self, values: Sequence[torch.Tensor], seed: int) -> None:
        self._values = values
        chance = torch.Generator().manual_seed(seed)
        device = values[0].device
        rows = [-(-value.numel() // WIDTH) for value in values]
        self._host = torch.zeros(WIDTH, pin_memory=device.type == "cuda")
        self._event = torch.cuda.Event() if device.type == "cuda" else None
        self._signs = [(torch.randint(0, 2, (row,), generator=chance) * 2.0 - 1).to(device) for row in rows]

    def take(self) -> None:
        """Sketch the values as they are now. On a CUDA device this only queues; see :meth:`ready`."""
        sketch = torch.zeros(WIDTH, device=self._values[0].device)
        for value, signs in zip(self._values, self._signs, strict=True):
            whole = value.numel() // WIDTH
            if whole:
                sketch.addmv_(value[: whole * WIDTH].view(whole, WIDTH).float().t(), signs[:whole])
            if rest := value.numel() - whole * WIDTH:
                sketch[:rest].add_(value[whole * WIDTH :] * signs[-1])
        self._host.copy_(sketch, non_blocking=True)
        if self._event is not None:
            self._event.record()

    def ready(self, *, wait: bool = False) -> bool:
        """Is the sketch in host memory? Wait until it is, if asked to."""
        if wait and self._event is not None:
            self._event.synchronize()
        return self._event is None or bool(self._event.query())

    def to_sum(self, step: int) -> Sums:
        """What ranks add up: the sketch, its squared length, and the step it was taken at; float64."""
        exact = self._host.double().numpy()
        return np.concatenate([exact, [exact @ exact, step]])


def nothing() -> Sums:
    """What a rank without weights adds."""
    return np.zeros(WIDTH + 2)


def estimate(sums: Sums, ranks: int) -> tuple[int, float]:
    """(the mean step of the ranks, their consensus error) that the sums of all ranks' :meth:`Sketch.to_sum` give."""
    together, lengths, steps = sums[:-2], sums[-2], sums[-1]
    return round(steps / ranks), max(0.0, float(lengths - together @ together / ranks))
