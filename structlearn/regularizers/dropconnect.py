"""DropConnect: connections drop out, not units (M; Wan and others 2013)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from structlearn.alrao import Heads
from structlearn.checks import check_share
from structlearn.regularizers.shadow import Shadow, Shadowed, chosen

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import Tensor, nn


class DropConnect(Shadowed):
    """Each weight of some layers is 0 with a chance, and else divided by what is left of 1.

    One mask for each batch. In evaluation weights are as they are: that is their expectation (Wan and others fit a
    normal distribution to each unit's input and draw from it; M does not say). Biases stay. Recurrent layers hand
    their weights to torch's kernels as a list that is made once: they are refused.

    Args:
        model: The network.
        rate: The chance that a connection drops out.
        layers: Names of linear layers, convolutions, or Alrao's heads; by default all that are linear.

    Raises:
        ValueError: the rate is not in [0, 1), or a layer cannot be masked.
    """

    def __init__(self, model: nn.Module, rate: float, *, layers: Iterable[str] | None = None) -> None:
        self.rate = check_share("rate", rate, zero=True)
        names = chosen(model, layers, (torch.nn.Linear, Heads), "DropConnect")
        super().__init__(model, names, _Mask(self.rate))


class _Mask(Shadow):
    def __init__(self, rate: float) -> None:
        super().__init__()
        self._rate = rate

    def changed(self, layer: nn.Module, weight: Tensor) -> Tensor:
        """Masked."""
        return torch.nn.functional.dropout(weight, self._rate)
