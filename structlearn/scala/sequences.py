"""How much of each input a layer sees: the sequences of ScaLa, and the rule for their sum."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import torch
from torch import Tensor

from structlearn.checks import check_choice, check_count, check_positive

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

SEQUENCES: Final[Mapping[str, Callable[[Tensor], Tensor]]] = {
    "uniform": torch.ones_like,
    "sqrt_log": lambda k: 1 / ((k + 1).sqrt() * (k + 1).log()),
    "inverse": lambda k: 1 / k,
}
"""Each sequence up to its factor, of k = 1, 2, ... (W eq. 3.9).

W prints sigma_k^2 ~ 1/k for the last one, whose sum has no limit; W's corollary 2 and section 3.4.3 say sigma_k ~ 1/k.
"""


def scaling(
    name: str, ranks: int | Tensor, *, kernel_area: int = 1, s2: float = 2.0, tau_b2: float = 0.0, groups: int = 1
) -> Tensor:
    """The factors sigma of a layer's inputs: float64, all above 0, one for each input.

    They follow the sequence, times the one factor that makes the pre-activations of normalised inputs have variance
    s^2 where weights are drawn from N(0, 1) (W eqs. 3.4 and 3.5)::

        kernel_area * sum(sigma ** 2) + tau_b2 == s2

    so the factor is sqrt(s2 - tau_b2) / (c ||sigma||). (W 3.4.3 prints s^2 for s.)

    Args:
        name: "uniform", "sqrt_log" (sigma_k ~ 1 / (sqrt(k + 1) log(k + 1))) or "inverse" (sigma_k ~ 1 / k), k from 1.
        ranks: The number of inputs; or for each input, int64, its place in the sequence, from 0: inputs that share a
            unit (the positions of a flattened map) share its place, and units of several layers, concatenated, each
            have the place that they have in their own. W has neither; this way what is cut is whole units, and no part
            of a concatenation is favoured.
        kernel_area: Places of the kernel, c^2 in two dimensions; 1 for a linear layer.
        s2: Wanted variance of the pre-activations: 2 before a ReLU, 1 where nothing follows.
        tau_b2: Variance of the biases at the start.
        groups: Of a grouped convolution. A filter sees the inputs of its group only, so each group meets the rule.

    Raises:
        ValueError: an unknown sequence; s2 not above tau_b2; inputs that the groups do not divide.
    """
    check_choice("scaling", name, SEQUENCES)
    if check_positive("s2", s2) <= check_positive("tau_b2", tau_b2, zero=True):
        raise ValueError(f"tau_b2 is a part of s2 and must be below it, got s2={s2}, tau_b2={tau_b2}")
    if not isinstance(ranks, Tensor):
        ranks = torch.arange(check_count("the number of inputs", ranks))
    if ranks.dim() != 1 or not len(ranks) or len(ranks) % groups:
        raise ValueError(
            f"ranks must be one place for each input, as many for each of the {groups} group(s), got the shape "
            f"{tuple(ranks.shape)}"
        )
    # float64: a sum over ten thousand inputs keeps the rule to rounding.
    sigma = SEQUENCES[name](ranks.double() + 1).view(groups, -1)
    norm = sigma.square().sum(1, keepdim=True).sqrt()
    wanted = ((s2 - tau_b2) / kernel_area) ** 0.5
    found: Tensor = (sigma * (wanted / norm)).flatten()
    return found
