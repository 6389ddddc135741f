"""What methods share that push weights towards zero by a penalty."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING

import torch

from structlearn.checks import check_positive
from structlearn.pruning.pruner import Pruner

if TYPE_CHECKING:
    from torch import Tensor
    from torch.optim import Optimizer

    from structlearn.pruning.penalties import Penalty
    from structlearn.structure import Structure


class Penalised(Pruner):
    """A method with a penalty on some of the parameters.

    Args:
        structure: Of the network that is trained.
        strength: lambda: the objective is the mean loss of a batch plus `strength` times the penalty, in every step.
        threshold: At or below which a unit goes, as each method says.
        proximal: Take the penalty by proximal steps after the optimiser's, of its length (:func:`step_length`), and not
            as a part of the gradient. Only these make exact zeros: a subgradient hovers around them. It is the proximal
            gradient method for plain SGD, and has its fixed points with momentum. Other optimisers divide each
            parameter's step by something of its own: proximal steps would belong to another penalty, and are refused.
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
            moved = {each for group in optimizer.param_groups for each in group["params"] if each.grad is not None}
            self._current().shrink(step_length(optimizer) * self.strength, moved)


def step_length(optimizer: Optimizer) -> float:
    """How far a steady gradient of 1 moves a parameter in a step of SGD: the learning rate over 1 - momentum.

    With it, a weight of 0 stays there just where the loss's gradient is at most lambda, as the penalty wants; with the
    learning rate alone a momentum of 0.9 would make a tenth of the penalty.

    Raises:
        ValueError: the optimiser is not torch.optim.SGD, or its parameters have several such lengths.
    """
    if not isinstance(optimizer, torch.optim.SGD):
        raise ValueError(  # noqa: TRY004  it is an optimiser, which does not go with this option
            f"proximal steps are as long as the optimiser's, and those of {type(optimizer).__name__} have another "
            f"length for each parameter; use torch.optim.SGD, or proximal=False"
        )
    lengths = [group["lr"] * (1 - group["dampening"]) / (1 - group["momentum"]) for group in optimizer.param_groups]
    if any(length != lengths[0] for length in lengths[1:]):
        raise ValueError(
            f"proximal steps need one learning rate and one momentum for all parameters, and these groups make steps "
            f"of {lengths}; give the optimiser one group, or proximal=False"
        )
    return float(lengths[0])


def check_proximal(penalty: str, *, proximal: bool) -> None:
    """Raise ValueError where proximal steps are asked of a penalty whose steps only shrink: none makes exact zeros."""
    if proximal and penalty == "l2":
        raise ValueError(
            "proximal=True is for exact zeros, but the proximal step of the penalty l2 only divides all weights; give "
            "proximal=False, or a penalty with a kink at zero, such as l1 or group_lasso"
        )
