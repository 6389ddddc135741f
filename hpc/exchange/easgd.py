"""Elastic averaging: workers and a centre draw each other (EASGD, B 2.3.3.2; Zhang, Choromanska, LeCun 2015)."""

from typing import Any, ClassVar

import torch
from torch import nn

from hpc.communicator import Communicator
from hpc.config.training import Easgd as EasgdConfig
from hpc.exchange.agenda import Agenda
from hpc.exchange.carry import Carry
from hpc.exchange.contents import weights_and_buffers
from hpc.exchange.desk import Floats
from hpc.exchange.form import keyed
from hpc.exchange.instep import InStep
from hpc.exchange.master import WithMaster
from hpc.flat import FlatBuffer, copy_all


class SyncEasgd(InStep):
    """Every ``tau`` steps ``w_m += a (w_0 - w_m)`` and ``w_0 += a sum_m (w_m - w_0)``, both from the old values.

    No master: the sum is all that w_0 needs of the others, so that every rank holds the same centre, bit for bit. What
    is summed are the differences ``d_m = a (w_m - w_0)`` themselves: what a worker loses is what it gives into
    the sum (to the rounding of their mean, times their number), and small numbers are rounded where weights would be.

    The centre starts as rank 0's weights. Float buffers are drawn like the weights; momentum stays as it is (the
    source). One rank alone has nobody to meet: it trains by itself.

    Args:
        comm: the ranks.
        model: this rank's network.
        agenda: when the ranks pause.
        config: the section ``exchange``.
        seed: the master seed.
    """

    replicated: ClassVar[bool] = False

    def __init__(self, comm: Communicator, model: nn.Module, config: EasgdConfig, agenda: Agenda, *, seed: int) -> None:
        super().__init__(comm, model, agenda, seed=seed, consensus_every=config.consensus_every)
        self._tau, self._alpha = config.tau, moving_rate(config, comm.size)
        self._values = weights_and_buffers(model)
        self._centre: list[torch.Tensor] = []
        self._pulls: list[torch.Tensor] = []
        self._buffer: FlatBuffer | None = None

    def resume(self, epoch: int, step: int) -> None:
        """Go on; the first time, rank 0 says where the centre is. Collective."""
        super().resume(epoch, step)
        if self.comm.size == 1 or self._buffer is not None:
            return
        self._make_room()
        if not self._centre:
            self._centre = [value.clone() for value in self._values]
            start = FlatBuffer(self._centre)  # through the host: only sums and means are of device memory
            flat = start.pack(self._centre)
            with self._blocked():
                self.comm.broadcast_(flat, "agree on the centre")
            start.unpack(self._centre)

    def _make_room(self) -> None:
        self._buffer = self._flat(self._values)
        self._pulls = [torch.empty_like(value) for value in self._values]

    def restructure(self, carry: Carry) -> None:
        """The centre is cut like the weights."""
        super().restructure(carry)
        keys = list(keyed(self.model))
        if self._centre:
            carried = carry(dict(zip(keys, self._centre, strict=True)))
            self._centre = [carried[key] for key in keys]
        self._values = weights_and_buffers(self.model)
        if self._buffer is not None:
            self._make_room()

    def meet(self, step: int) -> None:
        """Every ``tau`` steps."""
        if step % self._tau or self.comm.size == 1:
            return
        buffer, pulls = self._buffer, self._pulls
        assert buffer is not None, "resume() comes before the first step"
        with torch.no_grad():
            copy_all(pulls, self._values)
            torch._foreach_sub_(pulls, self._centre)
            torch._foreach_mul_(pulls, self._alpha)
            torch._foreach_sub_(self._values, pulls)
            flat = buffer.pack(pulls)
            with self._blocked():
                self.comm.start_mean(flat, "draw the centre to all ranks").wait()
            buffer.unpack(pulls)
            torch._foreach_add_(self._centre, pulls, alpha=self.comm.size)
        self.counters.sent += 1
        self.counters.received += 1
        self.counters.bytes_sent += buffer.flat.nbytes

    def _agree(self, values: list[torch.Tensor]) -> None:
        """The centre, which every rank holds."""
        copy_all(values, self._centre)

    def put_centre(self, state: dict[str, Any], values: list[torch.Tensor]) -> None:
        """The centre; one rank alone has none."""
        if state["centre"]:
            copy_all(values, state["centre"])

    def state_dict(self) -> dict[str, Any]:
        """The centre, beside the counters."""
        return {**super().state_dict(), "centre": list(self._centre)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what :meth:`state_dict` gave. Before the first :meth:`resume`."""
        super().load_state_dict(state)
        self._centre = [
            torch.empty_like(value).copy_(saved) for value, saved in zip(self._values, state["centre"], strict=False)
        ]


class AsyncEasgd(WithMaster):
    """After every ``tau`` of its own steps a worker and the centre draw each other, one worker at a time.

    With x the worker's weights when it asks and w_0 the centre when it is this request's turn, the master takes
    ``d = a (x - w_0)``, sets ``w_0 <- w_0 + d`` and answers d; the worker, where it is when d comes,
    ``w_m <- w_m - d``. Both move by the very same d, so that ``w_0 + sum_m w_m`` (and all d under way) is kept. With
    no step between asking and taking it is the source's matrix with one worker awake.

    mpiT, the authors' own program, fetches w_0, waits for it, and computes d at the worker. Here d travels instead: a
    worker that trains on would have to keep x for as long, and two devices might round the difference differently.

    Statistics: the master's ``s_0 <- s_0 + a (s - s_0)``, it answers its old s_0, and the worker takes
    ``s_m <- s_m + a (s_0 - s_m)``: means of values on both sides.
    """

    def __init__(
        self, comm: Communicator, model: nn.Module, config: EasgdConfig, agenda: Agenda, *, seed: int, deadline_s: float
    ) -> None:
        super().__init__(comm, model, config, agenda, seed=seed, deadline_s=deadline_s)
        self._alpha = moving_rate(config, self.workers)

    def _answer(self, centre: Floats, message: Floats) -> None:
        weights, statistics = self._parts(centre)
        asked, measured = self._parts(message)
        asked -= weights
        asked *= self._alpha
        weights += asked
        old = statistics.copy()
        statistics += self._alpha * (measured - old)
        measured[:] = old

    def _take(self, weights: list[torch.Tensor], statistics: list[torch.Tensor]) -> None:
        torch._foreach_sub_(self._weights, weights)
        for own, centre in zip(self._statistics, statistics, strict=True):
            own.lerp_(centre.to(own.dtype), self._alpha)


def moving_rate(config: EasgdConfig, workers: int) -> float:
    """The a of a configuration: as it says, or 0.9 divided by the number of workers, as the method's authors did."""
    return config.alpha if config.alpha is not None else 0.9 / workers


def build(
    comm: Communicator, model: nn.Module, config: EasgdConfig, agenda: Agenda, *, seed: int, deadline_s: float
) -> SyncEasgd | AsyncEasgd:
    """Elastic averaging, synchronous or not."""
    if config.mode == "sync":
        return SyncEasgd(comm, model, config, agenda, seed=seed)
    return AsyncEasgd(comm, model, config, agenda, seed=seed, deadline_s=deadline_s)
