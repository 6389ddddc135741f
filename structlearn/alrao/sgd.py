"""Alrao-SGD: stochastic gradient descent with one learning rate a unit (W Alg. 1)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from structlearn.alrao.optimizer import PerUnit
from structlearn.checks import check_positive, check_share


class SGD(PerUnit):
    """torch.optim.SGD, each unit with its own learning rate: momentum, weight decay and Nesterov's form as there.

    With one common rate (`lr_min = lr_max`) it makes torch.optim.SGD's steps to rounding: there the rate and the
    step are multiplied and added in one rounding, here in two. The momentum is kept times 1 - momentum, as a running
    mean of gradients, which takes one pass through memory where torch's sum takes two.

    Args:
        network: Any network; usually an :class:`structlearn.alrao.Alrao`.
        lr_min: Lower end of the interval of rates.
        lr_max: Upper end.
        momentum: Momentum, below 1.
        weight_decay: Added to the gradient as this factor times the weight: so its strength goes with the unit's rate.
        nesterov: Nesterov's form of momentum.
        frozen: The chance that a unit has the rate 0.
        seed: Of the draw of rates.
    """

    averages = ("momentum_buffer",)

    def __init__(
        self,
        network: nn.Module,
        *,
        lr_min: float = 1e-5,
        lr_max: float = 10.0,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        frozen: float = 0.0,
        seed: int = 0,
    ) -> None:
        check_share("momentum", momentum, zero=True)
        if nesterov and momentum == 0:
            raise ValueError("nesterov needs a momentum above 0")
        check_positive("weight_decay", weight_decay, zero=True)
        defaults = {"momentum": momentum, "weight_decay": weight_decay, "nesterov": nesterov}
        defaults["momentum_of_means"] = momentum
        super().__init__(network, defaults, lr_min=lr_min, lr_max=lr_max, frozen=frozen, seed=seed)

    def _directions(
        self, group: dict[str, Any], parameters: list[Tensor], gradients: list[Tensor]
    ) -> tuple[list[Tensor], float]:
        momentum = group["momentum"]
        if group["weight_decay"]:
            gradients = list(torch._foreach_add(gradients, parameters, alpha=group["weight_decay"]))
        if not momentum:
            return gradients, 1.0
        means = self._average(parameters, "momentum_buffer")
        if (before := group["momentum_of_means"]) != momentum:  # a schedule of momentum: torch's sum stays as it is
            every = [state["momentum_buffer"] for state in self.state.values() if "momentum_buffer" in state]
            torch._foreach_mul_(every, (1 - momentum) / (1 - before))
            group["momentum_of_means"] = momentum
        torch._foreach_lerp_(means, gradients, 1 - momentum)
        if group["nesterov"]:
            return list(torch._foreach_add(gradients, means, alpha=momentum / (1 - momentum))), 1.0
        return means, 1 / (1 - momentum)
