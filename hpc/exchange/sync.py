"""Synchronous training: gradients are averaged at every step (B Alg. 1)."""

import time
from collections.abc import Sequence
from functools import partial
from typing import Any, ClassVar, Final

import torch
from torch import nn

from hpc.communicator import Communicator
from hpc.config.training import Sync as SyncConfig
from hpc.exchange.agenda import Agenda
from hpc.exchange.base import Exchange
from hpc.exchange.buckets import Buckets
from hpc.exchange.carry import Carry

_MIB: Final = 2**20


class Sync(Exchange):
    """All ranks step with the mean of their gradients, so they hold one network at all times.

    Each rank's gradient is the mean over its mini-batch, and all mini-batches are of one size b; the mean over
    W ranks is then the gradient of the mean loss over the global batch of W b samples. W ranks with batch b
    therefore follow one rank with batch W b, to rounding.

    A hook on each parameter tells :class:`Buckets` that its gradient is there, in every ``backward`` on this network:
    who wants gradients beside the training takes ``torch.autograd.grad``, which calls no hooks. Alone, there are none.

    Args:
        comm: the ranks.
        model: this rank's network.
        agenda: when the ranks pause.
        config: the section ``exchange``.
        beside: what each rank sums up in a step beside its gradients, and all need the whole of.
    """

    replicated: ClassVar[bool] = True

    def __init__(
        self,
        comm: Communicator,
        model: nn.Module,
        agenda: Agenda,
        config: SyncConfig = SyncConfig(),  # noqa: B008
        beside: Sequence[torch.Tensor] = (),
    ) -> None:
        super().__init__(comm, model, agenda)
        self._config, self._beside = config, beside
        self._buckets: Buckets | None = None
        self._hooks: list[Any] = []
        if comm.size > 1:
            self._hook()

    def _hook(self) -> None:
        """Have each parameter tell when its gradient is there."""
        parameters = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        limit, payload = int(self._config.bucket_mb * _MIB), getattr(torch, self._config.payload)
        self._buckets = Buckets(self.comm, parameters, limit, payload)
        for place, parameter in enumerate(parameters):
            self._hooks.append(parameter.register_post_accumulate_grad_hook(partial(_tell, self._buckets, place)))

    def _unhook(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    def after_backward(self) -> None:
        """Wait for the means. A parameter that took no part on this rank contributes zero."""
        if self._buckets is None:
            return
        start = time.perf_counter()
        rounds = self._buckets.finish()
        for values in self._beside:
            total = values.cpu()
            self.comm.sum_(total, "add up what is measured beside gradients")
            if total is not values:
                values.copy_(total)
        self.counters.seconds_blocked += time.perf_counter() - start
        self.counters.sent += 1
        self.counters.received += 1
        self.counters.bytes_sent += rounds * self._buckets.nbytes

    def after_step(self, step: int) -> None:
        """The ranks hold one network already."""

    def close(self) -> None:
        """Leave the network without hooks."""
        super().close()
        self._unhook()

    def restructure(self, carry: Carry) -> None:
        """Average gradients of other shapes."""
        super().restructure(carry)
        if self.comm.size > 1:
            self._unhook()
            self._hook()


def _tell(buckets: Buckets, place: int, _parameter: torch.Tensor) -> None:
    buckets.arrived(place)
