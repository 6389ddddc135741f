"""Alrao-Adam: Adam with one learning rate a unit (W 2.9.4)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from structlearn.alrao.hand import at_hand
from structlearn.alrao.optimizer import PerUnit
from structlearn.checks import check_positive, check_share


class Adam(PerUnit):
    """torch.optim.Adam, each unit with its own learning rate.

    W found it less reliable than Alrao-SGD: it fits well and may generalise badly (W 2.9.4, fig. 2.9).
    With one common rate it makes torch.optim.Adam's steps to rounding.

    Args:
        network: Any network; usually an :class:`structlearn.alrao.Alrao`.
        lr_min: Lower end of the interval of rates.
        lr_max: Upper end.
        betas: Decay rates of the running averages of gradients and of their squares.
        eps: Added to the denominator.
        weight_decay: Added to the gradient as this factor times the weight.
        frozen: The chance that a unit has the rate 0.
        seed: Of the draw of rates.
    """

    averages = ("exp_avg", "exp_avg_sq")

    def __init__(
        self,
        network: nn.Module,
        *,
        lr_min: float = 1e-5,
        lr_max: float = 10.0,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        frozen: float = 0.0,
        seed: int = 0,
    ) -> None:
        for place, beta in enumerate(betas):
            check_share(f"betas[{place}]", beta, zero=True)
        check_positive("eps", eps)
        check_positive("weight_decay", weight_decay, zero=True)
        defaults = {"betas": tuple(betas), "eps": eps, "weight_decay": weight_decay}
        super().__init__(network, defaults, lr_min=lr_min, lr_max=lr_max, frozen=frozen, seed=seed)

    def _directions(
        self, group: dict[str, Any], parameters: list[Tensor], gradients: list[Tensor]
    ) -> tuple[list[Tensor], float]:
        first, second = group["betas"]
        if group["weight_decay"]:
            gradients = list(torch._foreach_add(gradients, parameters, alpha=group["weight_decay"]))
        means, squares = self._average(parameters, "exp_avg"), self._average(parameters, "exp_avg_sq")
        torch._foreach_lerp_(means, gradients, 1 - first)
        torch._foreach_mul_(squares, second)
        torch._foreach_addcmul_(squares, gradients, gradients, 1 - second)
        counts = self._count(parameters)
        directions = torch._foreach_sqrt(squares)
        # m / (1 - first^t) / (sqrt(s / (1 - second^t)) + eps), with the first divisor moved into the second
        torch._foreach_mul_(directions, [(1 - first**count) / (1 - second**count) ** 0.5 for count in counts])
        torch._foreach_add_(directions, [group["eps"] * (1 - first**count) for count in counts])
        torch._foreach_reciprocal_(directions)
        torch._foreach_mul_(directions, means)
        return list(directions), 1.0

    def _count(self, parameters: list[Tensor]) -> list[float]:
        """The steps of each parameter, this one included: counted on the host, as in torch."""
        counts = [self.state[parameter].setdefault("step", torch.zeros(())) for parameter in parameters]
        torch._foreach_add_(counts, 1.0)
        return [float(at_hand(count)) for count in counts]
