"""GoogLeNet (Szegedy and others 2014) with BatchNorm and without auxiliary classifiers."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from structlearn.models.activations import growth
from structlearn.models.base import (
    Net,
    conv_norm_act,
    half_pool,
    imagenet_stem,
    pooled,
    scaled,
)
from structlearn.models.checks import Stem, check_image, small_images

if TYPE_CHECKING:
    from structlearn.models.pooling import Pooling


class Sizes(NamedTuple):
    """Filters of one Inception module: the paper's table 1, column by column."""

    one: int
    reduce_three: int
    three: int
    reduce_five: int
    five: int
    pool: int


# Modules 3a-3b, 4a-4e, 5a-5b; a pooling stands between the stages.
STAGES = (
    (Sizes(64, 96, 128, 16, 32, 32), Sizes(128, 128, 192, 32, 96, 64)),
    (
        Sizes(192, 96, 208, 16, 48, 64),
        Sizes(160, 112, 224, 24, 64, 64),
        Sizes(128, 128, 256, 24, 64, 64),
        Sizes(112, 144, 288, 32, 64, 64),
        Sizes(256, 160, 320, 32, 128, 128),
    ),
    (Sizes(256, 160, 320, 32, 128, 128), Sizes(384, 192, 384, 48, 128, 128)),
)


class Inception(nn.Module):
    """Four ways side by side, concatenated: 1 x 1, 3 x 3, "5 x 5" and pooling.

    Args:
        inputs: Channels that come in.
        sizes: Filters of each convolution.
        activation: Name of the activation.
        small: The form for small images, in which the "5 x 5" is two convolutions of 3 x 3 (the same field)
            and convolutions have a bias; otherwise it is one of 3 x 3, without bias, as in torchvision.
    """

    def __init__(self, inputs: int, sizes: Sizes, *, activation: str, small: bool) -> None:
        super().__init__()
        g = growth(activation)

        def block(before: int, filters: int, kernel: int) -> nn.Sequential:
            return conv_norm_act(before, filters, kernel, activation=activation, bias=small)

        self.one = block(inputs, sizes.one, 1)
        self.three = nn.Sequential(
            block(inputs, sizes.reduce_three, 1),
            block(sizes.reduce_three * g, sizes.three, 3),
        )
        self.five = nn.Sequential(
            block(inputs, sizes.reduce_five, 1),
            block(sizes.reduce_five * g, sizes.five, 3),
        )
        if small:
            self.five.append(block(sizes.five * g, sizes.five, 3))
        self.pool = nn.Sequential(nn.MaxPool2d(3, stride=1, padding=1), block(inputs, sizes.pool, 1))

    def forward(self, x: Tensor) -> Tensor:
        """All four on the channel axis."""
        return torch.cat([self.one(x), self.three(x), self.five(x), self.pool(x)], dim=1)


def _stem(inputs: int, narrow: int, outputs: int, *, activation: str, small: bool) -> list[nn.Module]:
    """What stands before the first module: one convolution, or three of them and two poolings."""
    if small:
        return [conv_norm_act(inputs, outputs, 3, activation=activation, bias=True)]
    before = narrow * growth(activation)
    return [
        *imagenet_stem(inputs, narrow, activation),
        conv_norm_act(before, narrow, 1, activation=activation),
        conv_norm_act(before, outputs, 3, activation=activation),
        half_pool(),
    ]


def googlenet(
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
    """GoogLeNet: (batch, C, H, W) to (batch, outputs).

    For small images the network of W tables 2.1 and 2.2, 6,166,250 parameters on CIFAR-10; also nearest to
    the Inception of B 4.4.1. For ImageNet torchvision's without auxiliary classifiers, 6,624,904 parameters.

    Args:
        input_shape: (channels, height, width); any size.
        outputs: Number of classes.
        width: Factor on all filters.
        activation: Name of the activation.
        dropout: Rate of the dropout before the output layer; published for ImageNet with 0.4.
        stem: Which form; "auto" takes the one for ImageNet from sides of 96 pixels on.
        pooling: "mean" over positions, then a linear layer; or "weldon": a 1 x 1 convolution, then, of each class's
            scores at all positions, the mean of the largest plus that of the smallest (:class:`Weldon`; B 5.4.3).
        regions: How many of the largest and of the smallest scores; for "weldon".
    """
    shape = check_image("googlenet", input_shape)
    small = small_images(stem, shape)
    g, channels = growth(activation), scaled(192, width)
    layers = _stem(shape[0], scaled(64, width), channels, activation=activation, small=small)
    channels *= g
    for number, stage in enumerate(STAGES):
        if number:
            layers.append(half_pool())
        for published in stage:
            sizes = Sizes(*(scaled(filters, width) for filters in published))
            layers.append(Inception(channels, sizes, activation=activation, small=small))
            channels = g * (sizes.one + sizes.three + sizes.five + sizes.pool)
    return pooled(
        layers, channels, outputs, shape=shape, activation=activation, dropout=dropout, pooling=pooling, regions=regions
    )
