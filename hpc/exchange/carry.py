"""What is carried over a cut: a centre, a message of before that arrives after."""

from collections.abc import Mapping

import torch

from hpc.exchange.form import OWN, Key
from structlearn.structure import Cut


class Carry:
    """Does to other networks of the same structure what was done to the rank's own.

    Args:
        cut: which entries stay, and in which scale they are now.
        shifts: what was added before the cut, by the tensor's name.
    """

    def __init__(self, cut: Cut, shifts: Mapping[str, torch.Tensor]) -> None:
        self._cut, self._shifts = cut, shifts

    @property
    def version(self) -> int:
        """How often the network has been cut, this time included."""
        return self._cut.version

    def __call__(self, values: Mapping[Key, torch.Tensor]) -> dict[Key, torch.Tensor]:
        """Tensors of before, by their keys, as they are after."""
        return {key: self._one(*key, value) for key, value in values.items()}

    def _one(self, name: str, which: int, value: torch.Tensor) -> torch.Tensor:
        if which != OWN:  # an optimiser's average: it was not shifted, and is in no scale
            return self._cut.select(name, value)
        if (shift := self._shifts.get(name)) is not None:
            value = value + shift.to(value)
        return self._cut.carry(name, value)
