"""The switch layer: a learned factor on every channel, and a mark on those that are dead (S 3.2)."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Final

import torch
from torch import Tensor, nn

from structlearn.checks import check_choice, check_count

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

ALIVE: Final = 0.999
"""From this on an entry of `alive` counts as living: a mean over ranks is below it as soon as one of them has a share
of more than 1/1000 and has killed the channel."""

INITS: Final[Mapping[str, Callable[[int], Tensor]]] = {
    "positive": lambda channels: 1 - torch.rand(channels),
    "uniform": lambda channels: torch.rand(channels) * 2 - 1,
    "normal": torch.randn,
}
"""U(0, 1], U(-1, 1) and N(0, 1), drawn from torch's global generator."""


class Switch(nn.Module):
    """`y = theta * x`, one theta a channel; the channels that are dead give 0 (S eq. 1).

    A channel is killed by a rule of :mod:`structlearn.shrinknets.killing`, and never comes back. S calls channels with
    `theta <= 0` off, but its equation 1, its penalty and proposition A.4 take both signs alike (negating a theta and
    the weights behind it changes nothing): so does this layer. Started from U(0, 1], as is the default, and with a rule
    that kills at the sign's change, a channel is off once `theta <= 0`, as S says.

    What the killing rules remember of each channel is in buffers: they are saved, mixed between ranks and cut with it.

    Args:
        channels: How many.
        axis: Where they are in x: 1 (after a convolution or a BatchNorm), or -1 (after a linear layer). With 1 there
            must be a batch; a switch that :func:`structlearn.shrinknets.adopt` has put behind a layer takes what the
            layer takes.
        init: "positive": U(0, 1]; "uniform": U(-1, 1), as in some of the authors' experiments; "normal": N(0, 1), as
            S 3.3 says.
    """

    follows: ClassVar = True
    """Its channels are others' units (:mod:`structlearn.units`): each theta has the learning rate of its unit."""
    beside: ClassVar = {"theta": ("alive", "mean", "variance")}
    """Buffers that are cut as this parameter is, whether or not the forward pass uses them."""

    alive: Tensor
    """[channels]: 1, or 0 for dead. Float, so that ranks that mix their weights mix it, too: what one of them has
    killed is then dead for all (below `ALIVE`)."""
    mean: Tensor
    """[channels]: of the sign; at first that of theta_0."""
    variance: Tensor
    """[channels]: of the sign, around the mean; at first 0."""
    held: Tensor
    """A scalar: 1 where the last living channel was held by force, else 0."""

    def __init__(self, channels: int, *, axis: int = 1, init: str = "positive") -> None:
        super().__init__()
        check_count("channels", channels)
        check_choice("init of switches", init, INITS)
        if axis not in {1, -1}:
            raise ValueError(f"axis must be 1 (behind a convolution) or -1 (behind a linear layer), got {axis!r}")
        self.axis = axis
        self.theta = nn.Parameter(INITS[init](channels))
        self.register_buffer("alive", torch.ones(channels))
        self.register_buffer("mean", self.theta.detach().sign())
        self.register_buffer("variance", torch.zeros(channels))
        self.register_buffer("held", torch.zeros(()))

    @property
    def living(self) -> Tensor:
        """[channels], bool."""
        return self.alive > ALIVE

    @property
    def factor(self) -> Tensor:
        """[channels]: what each channel is multiplied with; 0 where it is dead."""
        return self.theta * self.living

    def forward(self, x: Tensor) -> Tensor:
        """Shape and axis as the class says."""
        if x.dim() < (1 if self.axis == -1 else 2) or x.shape[self.axis] != len(self.theta):
            raise ValueError(
                f"a switch of {len(self.theta)} channels on axis {self.axis} got the shape {tuple(x.shape)}; it needs "
                f"(..., {len(self.theta)})"
                if self.axis == -1
                else f"a switch of {len(self.theta)} channels on axis 1 got the shape {tuple(x.shape)}; it needs "
                f"(batch, {len(self.theta)}, ...)"
            )
        return x * (self.factor if self.axis == -1 else self.factor.view(-1, *[1] * (x.dim() - 2)))

    def extra_repr(self) -> str:
        """Sizes."""
        return f"{len(self.theta)}, axis={self.axis}"
