"""DenseNet (Huang and others 2017), variant BC."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from structlearn.models.activations import activation_layer, growth
from structlearn.models.base import Net, conv, imagenet_stem, pooled, scaled
from structlearn.models.checks import Stem, check_image, map_size, small_images

if TYPE_CHECKING:
    from structlearn.models.pooling import Pooling


class Dense(nn.Module):
    """A layer that adds `new` channels to those it gets: 1 x 1 to 4 * new, then 3 x 3."""

    def __init__(self, inputs: int, new: int, activation: str) -> None:
        super().__init__()
        g = growth(activation)
        self.branch = nn.Sequential(
            nn.BatchNorm2d(inputs),
            activation_layer(activation),
            conv(inputs * g, 4 * new, 1),
            nn.BatchNorm2d(4 * new),
            activation_layer(activation),
            conv(4 * new * g, new, 3),
        )

    def forward(self, x: Tensor) -> Tensor:
        """What came in and what is new, on the channel axis."""
        return torch.cat([x, self.branch(x)], dim=1)


def _transition(inputs: int, activation: str) -> list[nn.Module]:
    """Half the channels, half of each side."""
    halve = conv(inputs * growth(activation), inputs // 2, 1)
    return [nn.BatchNorm2d(inputs), activation_layer(activation), halve, nn.AvgPool2d(2)]


def densenet121(
    input_shape: tuple[int, ...],
    outputs: int,
    *,
    width: float = 1.0,
    activation: str = "relu",
    dropout: float = 0.0,
    stem: Stem = "auto",
    pooling: Pooling = "mean",
    regions: int = 1,
) -> Net:
    """DenseNet-121, growth rate 32: (batch, C, H, W) to (batch, outputs).

    7,978,856 parameters on ImageNet (W table 2.1), 6,956,298 on CIFAR-10.

    Args:
        input_shape: (channels, height, width), at least 8 x 8 pixels, or 29 x 29 in the ImageNet form.
        outputs: Number of classes.
        width: Factor on the growth rate; all sizes follow from that.
        activation: Name of the activation.
        dropout: Rate of the dropout before the output layer.
        stem: Which form; "auto": ImageNet's from sides of 96 pixels on. Small images: one 3 x 3 convolution.
        pooling: "mean" over positions, then a linear layer; or "weldon": a 1 x 1 convolution, then, of each class's
            scores at all positions, the mean of the largest plus that of the smallest (:class:`Weldon`; B 5.4.3).
        regions: How many of the largest and of the smallest scores; for "weldon".
    """
    shape = check_image("densenet121", input_shape)
    g, new = growth(activation), scaled(32, width)
    channels = new * 2
    if small_images(stem, shape):
        layers: list[nn.Module] = [conv(shape[0], channels, 3)]
    else:
        layers = imagenet_stem(shape[0], channels, activation)
        channels *= g
    for stage, depth in enumerate((6, 12, 24, 16)):
        if stage:
            layers += _transition(channels, activation)
            channels //= 2
        for _ in range(depth):
            layers.append(Dense(channels, new, activation))
            channels += new
    # Only the stem and the transitions change the size; the convolutions inside dense layers keep it.
    map_size("densenet121", nn.Sequential(*layers), shape)
    layers += [nn.BatchNorm2d(channels), activation_layer(activation)]
    return pooled(
        layers,
        channels * g,
        outputs,
        shape=shape,
        activation=activation,
        dropout=dropout,
        pooling=pooling,
        regions=regions,
    )
