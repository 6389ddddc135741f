"""Alrao-Adam: Adam with one learning rate a unit (W 2.9.4)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from structlearn.alrao.optimizer import Chunk, PerUnit
from structlearn.checks import check_share


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
        defaults = {"betas": tuple(betas), "eps": eps, "weight_decay": weight_decay}
        super().__init__(network, defaults, lr_min=lr_min, lr_max=lr_max, frozen=frozen, seed=seed)

    def _directions(self, group: dict[str, Any], chunk: Chunk) -> tuple[list[Tensor], list[list[Tensor]], float]:
        first, second = group["betas"]
        gradients = chunk.gradients
        if group["weight_decay"]:
            gradients = list(torch._foreach_add(gradients, chunk.parameters, alpha=group["weight_decay"]))  # noqa: SLF001
        means, squares = self._averages(chunk, "exp_avg"), self._averages(chunk, "exp_avg_sq")
        torch._foreach_lerp_(means, gradients, 1 - first)
        torch._foreach_mul_(squares, second)
        torch._foreach_addcmul_(squares, gradients, gradients, 1 - second)
        counts = self._count(chunk)
        roots = torch._foreach_sqrt(squares)  # noqa: SLF001
        torch._foreach_div_(roots, [(1 - second**count) ** 0.5 for count in counts])
        torch._foreach_add_(roots, group["eps"])
        directions = torch._foreach_div(means, roots)  # noqa: SLF001
        torch._foreach_div_(directions, [1 - first**count for count in counts])
        return list(directions), [means, squares], 1.0

    def _count(self, chunk: Chunk) -> list[float]:
        """The steps of each parameter, this one included: on the host, as in torch."""
        for parameter in chunk.parameters:
            self.state[parameter].setdefault("step", torch.zeros(()))
        counts = [self.state[parameter]["step"] for parameter in chunk.parameters]
        torch._foreach_add_(counts, 1.0)
        return [count.item() for count in counts]
