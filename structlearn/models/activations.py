"""The activations that a model's `activation` option names.

A new one is one line in `ACTIVATIONS`; every model then takes it, also one that gives back more channels
than it gets (MaxMin, CReLU): the models size the next layer by `growth`, and `gain` measures it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

import torch
from torch import Tensor, nn

from structlearn.checks import check_choice

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


class Activation(NamedTuple):
    """How to make one activation layer, and how many channels it gives back for each it gets."""

    make: Callable[[], nn.Module]
    growth: int = 1


class MaxMin(nn.Module):
    """Both signs of each channel: `concat(relu(x), relu(-x))` (B ch. 3), twice the channels.

    CReLU (Shang and others 2016) is the same function.

    Args:
        dim: The axis of the channels.
    """

    def __init__(self, dim: int = 1) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, x: Tensor) -> Tensor:
        """(batch, C, ...) to (batch, 2 C, ...): channel c comes back as c and, of its negative part, c + C."""
        return torch.cat([x.relu(), (-x).relu()], dim=self.dim)

    def extra_repr(self) -> str:
        """The axis, in what a network prints."""
        return f"dim={self.dim}"


# None works in place: regularisers and pruning criteria read what goes in after the layer has run.
ACTIVATIONS: Final[Mapping[str, Activation]] = {
    "relu": Activation(nn.ReLU),
    "relu6": Activation(nn.ReLU6),
    "leaky_relu": Activation(nn.LeakyReLU),
    "elu": Activation(nn.ELU),
    "selu": Activation(nn.SELU),
    "silu": Activation(nn.SiLU),
    "gelu": Activation(nn.GELU),
    "tanh": Activation(nn.Tanh),
    "sigmoid": Activation(nn.Sigmoid),
    "identity": Activation(nn.Identity),
    "maxmin": Activation(MaxMin, growth=2),
}


def activation_layer(name: str) -> nn.Module:
    """A new layer of the activation called `name`; never shared, so that each can be hooked on its own."""
    return _entry(name).make()


def growth(name: str) -> int:
    """Channels that come out of the activation for each that goes in: 1, or 2 for MaxMin."""
    return _entry(name).growth


def gain(name: str) -> float:
    """The factor on the weights' deviation that keeps the second moment from layer to layer: `gain_of` that activation.

    For ReLU its square is 2.
    """
    return gain_of(activation_layer(name))


def gain_of(activation: Callable[[Tensor], Tensor]) -> float:
    """As `gain`, of any activation: (values, 1) to (values, growth), each row by itself.

    He's argument (W example 1.2.2) for any activation phi: with weights of variance g^2 / fan_in, the
    pre-activations keep variance 1 if g^2 E[phi(Z)^2] = 1 for standard normal Z.
    """
    # The device is named because models are also built on the meta device, where no number can be read.
    z = torch.linspace(-8.0, 8.0, 4001, dtype=torch.float64, device="cpu").unsqueeze(1)
    weight = torch.softmax(-z.square() / 2, dim=0)
    with torch.no_grad():
        values = activation(z)
        second_moment = (weight * values.square()).sum() / values.shape[1]
    return float(second_moment.rsqrt())


def _entry(name: str) -> Activation:
    check_choice("activation", name, ACTIVATIONS)
    return ACTIVATIONS[name]
