"""What all models share: their one shape, the width factor, common layers and the initialisation."""

from __future__ import annotations

from math import isfinite
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from structlearn.checks import check_count
from structlearn.models.activations import activation_layer, gain, growth
from structlearn.models.checks import map_size
from structlearn.models.pooling import Pooling, Weldon, check_pooling

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


class Net(nn.Module):
    """A network as every method here sees it: features, then one linear output layer, then a pooling of its scores.

    Alrao copies `head`, REVE reads its input, pruning never cuts its outputs: all rely on this shape.

    Args:
        features: Everything before the output layer; its last axis has `inputs` entries, or, with a pooling, axis 1.
        inputs: Number of features that reach the output layer.
        outputs: Number of classes, symbols or regression targets.
        dropout: Rate of the dropout before the output layer; 0 adds no layer.
        pool: What makes one score a class of the scores at all positions. The output layer is then a 1 x 1 convolution.
    """

    def __init__(
        self, features: nn.Sequential, inputs: int, outputs: int, *, dropout: float = 0.0, pool: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.features = features
        if dropout:
            features.append(nn.Dropout(dropout))
        check_count("outputs", outputs)
        self.head = nn.Linear(inputs, outputs) if pool is None else nn.Conv2d(inputs, outputs, 1)
        self.pool = nn.Identity() if pool is None else pool

    def forward(self, x: Tensor) -> Tensor:
        """Class scores (logits), without softmax."""
        scores: Tensor = self.pool(self.head(self.features(x)))
        return scores


class Residual(nn.Module):
    """`activation(branch(x) + shortcut(x))` (He and others 2015)."""

    def __init__(self, branch: nn.Module, shortcut: nn.Module, activation: nn.Module) -> None:
        super().__init__()
        self.branch = branch
        self.shortcut = shortcut
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        """The sum of both ways, activated."""
        y: Tensor = self.activation(self.branch(x) + self.shortcut(x))
        return y


def scaled(units: int, width: float) -> int:
    """`units` times the factor `width`, rounded half up, at least 1."""
    if not (width > 0 and isfinite(width)):
        raise ValueError(f"width must be a factor above 0 on the published sizes, got {width!r}; use 1 for those")
    return max(1, int(check_count("a layer's width", units) * width + 0.5))


def conv(inputs: int, outputs: int, kernel: int, *, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    """A convolution with same padding (odd kernels) and without bias: a BatchNorm stands before or after."""
    return nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, groups=groups, bias=False)


def conv_norm_act(
    inputs: int,
    outputs: int,
    kernel: int,
    *,
    activation: str,
    stride: int = 1,
    groups: int = 1,
    bias: bool = False,
) -> nn.Sequential:
    """Convolution (same padding), BatchNorm, activation; gives `outputs * growth(activation)` channels.

    A bias before a BatchNorm has no effect; it is there where the published network has it.
    """
    layer = nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, groups=groups, bias=bias)
    return nn.Sequential(layer, nn.BatchNorm2d(outputs), activation_layer(activation))


def imagenet_stem(inputs: int, outputs: int, activation: str) -> list[nn.Module]:
    """The stem of ResNet, DenseNet and GoogLeNet: 7 x 7 at stride 2 and a pooling, a quarter of each side."""
    return [conv_norm_act(inputs, outputs, 7, stride=2, activation=activation), half_pool()]


def half_pool() -> nn.MaxPool2d:
    """Overlapping 3 x 3 max pooling; halves a side, rounding up, so no image is too small."""
    return nn.MaxPool2d(3, stride=2, padding=1)


def global_pool() -> list[nn.Module]:
    """Mean over all positions, then one vector an image."""
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten()]


def pooled(
    layers: Iterable[nn.Module],
    channels: int,
    outputs: int,
    *,
    shape: tuple[int, int, int],
    activation: str,
    pooling: Pooling,
    regions: int,
    dropout: float = 0.0,
) -> Net:
    """A network whose `layers` give maps of `channels`, which a pooling over all positions ends.

    Raises:
        ValueError: the maps of images of `shape` have fewer positions than `regions`.
    """
    check_pooling(pooling, regions)
    if pooling == "mean":
        return Net(initialise([*layers, *global_pool()], activation), channels, outputs, dropout=dropout)
    features, pool = initialise(layers, activation).eval(), Weldon(regions)
    if regions > 1:
        with torch.no_grad():
            pool(features(torch.zeros(1, *shape)))
    return Net(features.train(), channels, outputs, dropout=dropout, pool=pool)


def hidden_linear(
    inputs: int,
    widths: Sequence[int],
    *,
    activation: str,
    dropout: float = 0.0,
    batch_norm: bool = False,
) -> tuple[list[nn.Module], int]:
    """Hidden linear layers with activations, dropout between them; also the number of features they give."""
    layers: list[nn.Module] = []
    for units in widths:
        if layers and dropout:
            layers.append(nn.Dropout(dropout))
        layers.append(nn.Linear(inputs, units))
        if batch_norm:
            layers.append(nn.BatchNorm1d(units))
        layers.append(activation_layer(activation))
        inputs = units * growth(activation)
    return layers, inputs


def initialise(layers: Iterable[nn.Module], activation: str) -> nn.Sequential:
    """`layers` in a row, with He's initialisation for the activation at hand.

    Weights of convolutions and linear layers are normal with deviation gain / sqrt(fan_in), biases zero,
    drawn from torch's global generator. BatchNorm keeps torch's start (scale 1, shift 0). The output layer
    is not among `layers`: it keeps torch's uniform +-1/sqrt(fan_in), so that first predictions are near even.
    """
    chain = nn.Sequential(*layers)
    factor = gain(activation)
    for layer in chain.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            fan_in = layer.weight[0].numel()
            nn.init.normal_(layer.weight, std=factor / fan_in**0.5)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    return chain


def plain_convnet(
    name: str,
    input_shape: tuple[int, int, int],
    outputs: int,
    *,
    blocks: Sequence[tuple[nn.Conv2d, nn.Module]],
    hidden: Sequence[int],
    activation: str,
    dropout: float,
) -> Net:
    """Blocks of (convolution, pooling), the activation in between, flattened into hidden linear layers."""
    trunk = nn.Sequential()
    for convolution, pool in blocks:
        trunk.extend([convolution, activation_layer(activation), pool])
    height, wide = map_size(name, trunk, input_shape)
    maps = blocks[-1][0].out_channels * growth(activation)
    layers, features = hidden_linear(maps * height * wide, hidden, activation=activation, dropout=dropout)
    return Net(initialise([*trunk, nn.Flatten(), *layers], activation), features, outputs, dropout=dropout)
