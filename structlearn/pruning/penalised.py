"""What methods share that push weights towards zero by a penalty."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING

from structlearn.checks import check_positive
from structlearn.penalties.proximal import shrink_after
from structlearn.pruning.pruner import Pruner

if TYPE_CHECKING:
    from torch import Tensor
    from torch.optim import Optimizer

    from structlearn.penalties import Penalty
    from structlearn.structure import Structure


class Penalised(Pruner):
    """A method with a penalty on some of the parameters.

    Args:
        structure: Of the network that is trained.
        strength: lambda: the objective is the mean loss of a batch plus `strength` times the penalty, in every step.
        threshold: At or below which a unit goes, as each method says.
        proximal: Take the penalty by proximal steps after the optimiser's, of its length, and not as a part of the
            gradient (:mod:`structlearn.penalties.proximal`). Only these make exact zeros: a subgradient hovers around
            them. It is the proximal gradient method for plain SGD, and has its fixed points with momentum. Other
            optimisers divide each parameter's step by something of its own: proximal steps would belong to another
            penalty, and are refused.
        patience: Epochs without an improvement that end a phase.

    Raises:
        ValueError: a number is out of its range, or the network has no unit that can be cut.
    """

    def __init__(
        self, structure: Structure, *, strength: float, threshold: float, proximal: bool, patience: int
    ) -> None:
        super().__init__(structure, patience=patience)
        self.strength = check_positive("strength", strength, zero=True)
        self.threshold = check_positive("threshold", threshold, zero=True)
        self.proximal = proximal
        self._built: tuple[int, Penalty] | None = None

    @abstractmethod
    def _build(self) -> Penalty:
        """The penalty of the network as it is now; it is built again after each cut."""

    def _current(self) -> Penalty:
        version = self.structure.version
        if self._built is None or self._built[0] != version:
            self._built = version, self._build()
        return self._built[1]

    def _penalty(self) -> Tensor:
        return self.strength * self._current().value()

    def _regularise(self) -> None:
        if not self.proximal:
            self._current().add_gradient(self.strength)

    def _after_step(self, optimizer: Optimizer) -> None:
        if self.proximal:
            shrink_after(optimizer, self._current(), self.strength)
