"""Periodic synchronisation: weights are replaced by their mean every so many steps (B Alg. 2)."""

from typing import TYPE_CHECKING, ClassVar

from torch import nn
from torch.optim import Optimizer

from hpc.communicator import Communicator
from hpc.config.training import PerSyn as PerSynConfig
from hpc.errors import RunError
from hpc.exchange.agenda import Agenda
from hpc.exchange.carry import Carry
from hpc.exchange.contents import forget, running_averages, weights_and_buffers
from hpc.exchange.instep import InStep

if TYPE_CHECKING:
    from hpc.flat import FlatBuffer


class PerSyn(InStep):
    """Ranks train alone for ``tau`` steps, then all take the mean of their weights and float buffers.

    In the source's terms (B 2.3.3.1) the frequency is 1/tau, and the matrix K is the identity or the mean.

    ``momentum: keep``: each rank keeps its running averages (the source); ``mix``: they are averaged with the weights;
    ``reset``: they become zero.

    Args:
        comm: the ranks.
        model: this rank's network.
        optimizer: its optimiser.
        config: the section ``exchange``.
        agenda: when the ranks pause.
        seed: the master seed.
    """

    replicated: ClassVar[bool] = False

    def __init__(
        self,
        comm: Communicator,
        model: nn.Module,
        optimizer: Optimizer,
        config: PerSynConfig,
        agenda: Agenda,
        *,
        seed: int,
    ) -> None:
        super().__init__(comm, model, agenda, seed=seed, consensus_every=config.consensus_every)
        self._optimizer, self._tau, self._momentum = optimizer, config.tau, config.momentum
        self._buffer: FlatBuffer | None = None

    def restructure(self, carry: Carry) -> None:
        """Average other numbers."""
        super().restructure(carry)
        self._buffer = None

    def meet(self, step: int) -> None:
        """Every ``tau`` steps, take the mean."""
        if step % self._tau or self.comm.size == 1:
            return
        values = weights_and_buffers(self.model)
        if self._momentum == "mix":
            values += running_averages(self._optimizer)
        elif self._momentum == "reset":
            forget(self._optimizer)
        if self._buffer is None:  # made late: the optimiser has no state before its first step
            self._buffer = self._flat(values)
            self._compare(self._buffer.flat.numel())
        self._average(self._buffer, values, "average weights")
        self.counters.sent += 1
        self.counters.received += 1
        self.counters.bytes_sent += self._buffer.flat.nbytes

    def _compare(self, numbers: int) -> None:
        """Averages of unlike things would be nonsense: a parameter unused on one rank has no momentum there."""
        everyone = self.comm.gather(numbers, "compare what is averaged")
        if len(set(everyone)) > 1:
            raise RunError(
                f"the ranks would average {everyone} numbers: some parameters take no part on some ranks, so their "
                f"optimisers hold different state; use exchange.momentum: keep"
            )
