"""Synchronous training: gradients are averaged at every step (B Alg. 1)."""

from typing import ClassVar

import torch
from torch import nn

from hpc.comm import Communicator
from hpc.exchange.base import Exchange
from hpc.flat import FlatBuffer


class Sync(Exchange):
    """All ranks step with the mean of their gradients, so they hold one network at all times.

    Each rank's gradient is the mean over its mini-batch, and all mini-batches are of one size b; the mean over
    W ranks is then the gradient of the mean loss over the global batch of W b samples. W ranks with batch b
    therefore follow one rank with batch W b, to rounding.
    """

    replicated: ClassVar[bool] = True

    def __init__(self, comm: Communicator, model: nn.Module) -> None:
        super().__init__(comm, model)
        self._parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self._buffer = FlatBuffer(self._parameters) if comm.size > 1 else None

    def after_backward(self) -> None:
        """Average the gradients. A parameter that took no part on this rank contributes zero."""
        if self._buffer is None:
            return
        for parameter in self._parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        gradients = [parameter.grad for parameter in self._parameters if parameter.grad is not None]
        self._average(self._buffer, gradients, "average gradients")
        self.counters.sent += 1
        self.counters.received += 1
        self.counters.bytes_sent += self._buffer.host.nbytes

    def after_step(self, step: int) -> None:
        """The ranks hold one network already."""
