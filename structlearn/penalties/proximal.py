"""Proximal steps after an optimiser's: how long they are, and with which penalty they make sense."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch.optim import Optimizer

    from structlearn.penalties.base import Penalty


def shrink_after(optimizer: Optimizer, penalty: Penalty, strength: float) -> None:
    """The proximal step of `strength` times a penalty, for the weights that an optimiser has just moved. No wait.

    Raises:
        ValueError: as :func:`step_length` says.
    """
    moved = {each for group in optimizer.param_groups for each in group["params"] if each.grad is not None}
    penalty.shrink(step_length(optimizer) * strength, moved)


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
