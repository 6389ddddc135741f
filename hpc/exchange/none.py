"""No exchange: every rank trains by itself."""

from typing import Any, ClassVar

import torch

from hpc.exchange.instep import InStep
from hpc.flat import FlatBuffer


class NoExchange(InStep):
    """Ranks train alone, each on its share of the batches. The baseline for everything else.

    The network they stand for is rank 0's: a mean of networks that never met is none of them.
    """

    replicated: ClassVar[bool] = False

    def meet(self, step: int) -> None:
        """Nothing is said."""

    def _agree(self, values: list[torch.Tensor]) -> None:
        buffer = FlatBuffer(values)
        flat = buffer.pack(values)
        with self._blocked():
            self.comm.broadcast_(flat, "evaluate the network of rank 0")
        buffer.unpack(values)

    def shares(self, state: dict[str, Any], rank: int, ranks: int) -> list[float]:
        """All of it, or nothing."""
        return [float(rank == 0)]
