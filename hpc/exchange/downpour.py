"""Downpour: workers send a master what they have learnt, and go on from its weights (B 2.3.3.3; Dean et al. 2012)."""

from typing import Any

import torch
from torch import nn

from hpc.communicator import Communicator
from hpc.config.training import Downpour as DownpourConfig
from hpc.exchange.agenda import Agenda
from hpc.exchange.carry import Carry
from hpc.exchange.desk import Floats
from hpc.exchange.form import flat_of
from hpc.exchange.master import WithMaster, split
from hpc.flat import copy_all


class Downpour(WithMaster):
    """After every ``tau`` of its own steps a worker sends what it has accumulated, and is answered with the centre.

    Each worker has a base b_m: ``w_m - b_m`` is what it has accumulated since it last asked. Asking, it sends
    ``u = w_m - b_m`` and sets ``b_m <- b_m + u``; the master sets ``w_0 <- w_0 + u`` and answers w_0; the worker,
    where it is when w_0 comes, takes it and keeps what it has done since: ``w_m <- w_0 + (w_m - b_m)``,
    ``b_m <- w_0``. So the centre is where it started plus all that was ever sent, and nothing is sent twice or lost.

    The source's matrices K(send) and K(receive) are these two, acting on updates; written for weights, with the base as
    a row of its own, they are in :mod:`hpc.exchange.matrices`. Updates are added, not averaged (the source): M workers
    move the centre as far as M times the steps of one.

    Statistics: the worker sends its own, the master moves ``s_0 <- s_0 + (s - s_0) / M`` and answers s_0, which the
    worker takes as they are. Momentum stays with its worker (the source).
    """

    def __init__(
        self,
        comm: Communicator,
        model: nn.Module,
        config: DownpourConfig,
        agenda: Agenda,
        *,
        seed: int,
        deadline_s: float,
    ) -> None:
        super().__init__(comm, model, config, agenda, seed=seed, deadline_s=deadline_s)
        self._bottom: torch.Tensor | None = None
        """b_m, flat, where the weights are."""

    def _base(self) -> torch.Tensor | None:
        return self._bottom

    def resume(self, epoch: int, step: int) -> None:
        """Go on; the first time, nothing has been accumulated yet. Collective."""
        if self._bottom is None and self.comm.size > 1 and self.trains:
            self._bottom = torch.empty(self._numbers, dtype=self._dtype, device=self._weights[0].device)
            copy_all(split(self._bottom, self._weights), self._weights)
        super().resume(epoch, step)

    def restructure(self, carry: Carry) -> None:
        """The base, too, is cut like the weights: what has been accumulated and not sent stays so."""
        before = self._weights_form
        super().restructure(carry)
        if self._bottom is not None:
            self._bottom = flat_of(carry(before.named(self._bottom)), self._weights_form, self._bottom)

    def _answer(self, centre: Floats, message: Floats) -> None:
        weights, statistics = self._parts(centre)
        accumulated, measured = self._parts(message)
        weights += accumulated
        accumulated[:] = weights
        statistics += (measured - statistics) / self.workers
        measured[:] = statistics

    def _take(self, weights: list[torch.Tensor], statistics: list[torch.Tensor]) -> None:
        assert self._bottom is not None
        base = split(self._bottom, self._weights)
        torch._foreach_sub_(self._weights, base)  # what has been done since; nothing, and w_m is w_0 exactly
        torch._foreach_add_(self._weights, weights)
        copy_all(base, weights)
        copy_all(self._statistics, statistics)

    def state_dict(self) -> dict[str, Any]:
        """The base, beside the centre: a worker may pause with steps that it has not sent yet."""
        return {**super().state_dict(), "base": self._bottom}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what :meth:`state_dict` gave. Before the first :meth:`resume`."""
        super().load_state_dict(state)
        if state["base"] is not None:
            self._bottom = state["base"].to(self._weights[0].device, copy=True)
