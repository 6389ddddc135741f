"""Linear layers and convolutions behind a fixed scaling of their inputs."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING, Any, ClassVar, Final

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from structlearn.scala.sequences import scaling as factors

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


class Scaled(nn.Module):
    """What scaled layers share: `y = W~ (S x) + b` with S = diag(scale), which is not trained (W 3.3.2 and 3.3.3).

    The layer's `weight` is W~: it starts as N(0, 1) and is what the optimiser sees. The function's own weight is
    W = W~ S (:meth:`effective`). One step of SGD on W~ moves W by sigma_k^2 times the gradient with respect to it, and
    as the squares of sigma have a bounded sum the learning rate 1 suits any width.

    Whichever is smaller is multiplied by S, the input or the weight; both are the same function. (A grouped convolution
    that is not depthwise multiplies its input.)

    Attributes:
        scale: sigma, [in_features] or [in_channels]; a buffer.
        scaling: Name of the sequence, as :func:`structlearn.scala.scaling` takes it.
        s2: Variance that the pre-activations are to have.
        tau_b2: Variance of the biases at the start.
    """

    plain: ClassVar[type[nn.Module]]
    """The layer without scaling."""
    weight: Tensor
    scale: Tensor
    scaling: str
    s2: float
    tau_b2: float

    def __init__(
        self, *sizes: Any, scaling: str = "sqrt_log", s2: float = 2.0, tau_b2: float = 0.0, **options: Any
    ) -> None:
        self.scaling, self.s2, self.tau_b2 = scaling, s2, tau_b2  # torch's __init__ calls reset_parameters
        super().__init__(*sizes, **options)
        self.register_buffer("scale", self.sigma().to(self.weight))

    def reset_parameters(self) -> None:
        """Draw the weights from N(0, 1) and the biases from N(0, tau_b2)."""
        nn.init.normal_(self.weight)
        if isinstance(bias := self.bias, Tensor):  # else None
            nn.init.normal_(bias, std=self.tau_b2**0.5) if self.tau_b2 else nn.init.zeros_(bias)

    def sigma(self, ranks: Tensor | None = None) -> Tensor:
        """The factors by this layer's own rule for the inputs it has now, float64 (:func:`structlearn.scala.scaling`).

        Args:
            ranks: As there; by default the inputs are units of one layer, in order.
        """
        groups = getattr(self, "groups", 1)
        inputs = self.weight.shape[1] * groups
        area = prod(self.weight.shape[2:])
        return factors(
            self.scaling,
            inputs if ranks is None else ranks,
            kernel_area=area,
            s2=self.s2,
            tau_b2=self.tau_b2,
            groups=groups,
        )

    def effective(self) -> Tensor:
        """W = W~ S, the weight of a plain layer that does the same."""
        return self.weight * self.spread(self.scale)

    def spread(self, values: Tensor) -> Tensor:
        """A value for each input, [in_channels], in a shape that broadcasts to the weight's.

        A filter of a grouped convolution has weights for its own group's inputs only.
        """
        groups = getattr(self, "groups", 1)
        if groups > 1:
            rows = values.view(groups, 1, -1).expand(-1, len(self.weight) // groups, -1)
            values = rows.reshape(len(self.weight), -1)
        return values.view(-1, self.weight.shape[1], *[1] * (self.weight.dim() - 2))

    def extra_repr(self) -> str:
        """Sizes and scaling."""
        return f"{super().extra_repr()}, scaling={self.scaling}, s2={self.s2:g}"

    def _halves(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The input and the weight, the smaller of them scaled."""
        # With several channels a group, the weight's columns are no inputs, and Structure could not follow the factors.
        grouped = self.weight.shape[1] not in {1, len(self.scale)}
        if self.weight.numel() <= x.numel() and not grouped:
            return x, self.effective()
        return x * self.scale.view(-1, *[1] * (self.weight.dim() - 2)), self.weight


class ScaledLinear(Scaled, nn.Linear):
    """A linear layer behind a scaling: torch's arguments, then `scaling`, `s2`, `tau_b2` by name."""

    plain = nn.Linear

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  torch's name
        """(..., in_features) to (..., out_features)."""
        return linear(*self._halves(input), self.bias)


class _Convolution(Scaled):
    """Any convolution of torch's."""

    _conv_forward: Callable[..., Tensor]

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  torch's name
        """(batch, in_channels, *places) to (batch, out_channels, *places), or both without a batch."""
        return self._conv_forward(*self._halves(input), self.bias)


class ScaledConv1d(_Convolution, nn.Conv1d):
    """A convolution over one dimension behind a scaling; arguments as for :class:`ScaledLinear`."""

    plain = nn.Conv1d


class ScaledConv2d(_Convolution, nn.Conv2d):
    """A convolution over two dimensions behind a scaling; arguments as for :class:`ScaledLinear`."""

    plain = nn.Conv2d


class ScaledConv3d(_Convolution, nn.Conv3d):
    """A convolution over three dimensions behind a scaling; arguments as for :class:`ScaledLinear`."""

    plain = nn.Conv3d


SCALED: Final[Mapping[type[nn.Module], type[Scaled]]] = {
    kind.plain: kind for kind in (ScaledLinear, ScaledConv1d, ScaledConv2d, ScaledConv3d)
}
"""The scaled form of each layer that has one."""


@torch.no_grad()
def rescale(layer: Scaled, sigma: Tensor, optimizer: torch.optim.Optimizer | None = None) -> None:
    """Give a layer other factors, and weights that keep its function (W 3.4.2, step 3): w~ <- w~ sigma / sigma'.

    Gradients with respect to w~ are those with respect to w times sigma, so what was gathered from gradients follows:
    the gradient itself and momentum times sigma' / sigma, means of squares times its square. Else the next step would
    still be one of the old scaling. What is made of steps stays (they are steps of w~, which an optimiser that divides
    gradients by their size makes alike under any scaling), and an average of w~ goes with w~. (W says nothing of it,
    and has no momentum.)

    Args:
        layer: The layer; changed in place, the same parameters.
        sigma: The new factors, [in_features] or [in_channels], all above 0.
        optimizer: Where the state to be mended is.

    Raises:
        ValueError: not one factor above 0 for each input; the optimiser keeps something that is not known here. Then
            nothing has changed.
    """
    if sigma.shape != layer.scale.shape or not bool((sigma > 0).all()):
        raise ValueError(
            f"rescaling needs one factor above 0 for each of {len(layer.scale)} inputs, got the shape "
            f"{tuple(sigma.shape)}{'' if sigma.numel() and bool((sigma > 0).all()) else ' with some not above 0'}"
        )
    if optimizer is not None:
        check_state(layer, optimizer)
    change = layer.spread(sigma.to(layer.scale) / layer.scale)
    layer.weight.div_(change)
    if layer.weight.grad is not None:
        layer.weight.grad.mul_(change)
    state = optimizer.state.get(layer.weight, {}) if optimizer is not None else {}
    for name, value in state.items():
        # RMSProp's momentum is of gradients over their size, which no scaling changes.
        if name in _POWERS and value is not None and not (name == "momentum_buffer" and "square_avg" in state):
            value.mul_(change ** _POWERS[name])
    layer.scale.copy_(sigma)


_POWERS: Final = {
    "momentum_buffer": 1,  # SGD, Alrao's SGD
    "exp_avg": 1,  # Adam and its kin, and Alrao's
    "exp_avg_sq": 2,
    "max_exp_avg_sq": 2,
    "exp_inf": 1,  # Adamax: the largest |gradient|
    "sum": 2,  # Adagrad
    "square_avg": 2,  # RMSProp, Adadelta
    "grad_avg": 1,
    "acc_delta": 0,  # Adadelta: squares of steps
    "prev": 1,  # Rprop: the last gradient
    "step_size": 0,
    "ax": -1,  # ASGD: an average of w~
}
"""Optimisers' states, and which power of a gradient each is made of; -1: of weights."""


def check_state(layer: Scaled, optimizer: torch.optim.Optimizer) -> None:
    """Does :func:`rescale` know what an optimiser keeps of a layer's weight?

    Raises:
        ValueError: it does not.
    """
    for name, value in optimizer.state.get(layer.weight, {}).items():
        if isinstance(value, Tensor) and value.numel() > 1 and name not in _POWERS:
            raise ValueError(
                f"{type(optimizer).__name__} keeps {name!r} for each weight of a scaled layer, and it is not known how "
                f"that follows a new scaling; known are {', '.join(_POWERS)}: take an optimiser that keeps only these"
            )
