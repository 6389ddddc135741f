"""Residual networks (He and others 2015); the wide ones are in `wideresnet`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from structlearn.models.activations import activation_layer, growth
from structlearn.models.base import (
    Net,
    Residual,
    conv,
    conv_norm_act,
    imagenet_stem,
    pooled,
    scaled,
)
from structlearn.models.checks import Stem, check_image, small_images

if TYPE_CHECKING:
    from structlearn.models.pooling import Pooling


def resnet18(
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
    """ResNet of 8 blocks of two 3 x 3 convolutions: (batch, C, H, W) to (batch, outputs).

    11,173,962 parameters on CIFAR-10, 11,689,512 on ImageNet. Options as for `resnet50`.
    """
    return _resnet(
        "resnet18",
        (2, 2, 2, 2),
        input_shape,
        outputs,
        expansion=1,
        width=width,
        activation=activation,
        dropout=dropout,
        stem=stem,
        pooling=pooling,
        regions=regions,
    )


def resnet50(
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
    """ResNet of 16 blocks that narrow, convolve and widen: (batch, C, H, W) to (batch, outputs).

    25,557,032 parameters on ImageNet (W table 2.1), 23,520,842 on CIFAR-10. A block's stride is at its 3 x 3
    convolution, as in torchvision.

    Args:
        input_shape: (channels, height, width); any size.
        outputs: Number of classes.
        width: Factor on all filters.
        activation: Name of the activation.
        dropout: Rate of the dropout before the output layer.
        stem: Which form; "auto" takes the one for ImageNet from sides of 96 pixels on. For small images
            the stem is one 3 x 3 convolution without pooling.
        pooling: "mean" over positions, then a linear layer; or "weldon": a 1 x 1 convolution, then, of each class's
            scores at all positions, the mean of the largest plus that of the smallest (:class:`Weldon`; B 5.4.3).
        regions: How many of the largest and of the smallest scores; for "weldon".
    """
    return _resnet(
        "resnet50",
        (3, 4, 6, 3),
        input_shape,
        outputs,
        expansion=4,
        width=width,
        activation=activation,
        dropout=dropout,
        stem=stem,
        pooling=pooling,
        regions=regions,
    )


def _resnet(
    name: str,
    depths: tuple[int, ...],
    input_shape: tuple[int, ...],
    outputs: int,
    *,
    expansion: int,
    width: float,
    activation: str,
    dropout: float,
    stem: Stem,
    pooling: Pooling,
    regions: int,
) -> Net:
    """A residual network; blocks have two convolutions if `expansion` is 1, three otherwise."""
    shape = check_image(name, input_shape)
    filters = scaled(64, width)
    if small_images(stem, shape):
        layers: list[nn.Module] = [conv_norm_act(shape[0], filters, 3, activation=activation)]
    else:
        layers = imagenet_stem(shape[0], filters, activation)
    channels = filters * growth(activation)
    for stage, depth in enumerate(depths):
        filters = scaled(64 * 2**stage, width)
        for number in range(depth):
            stride = 2 if stage and not number else 1
            layers.append(_block(channels, filters, expansion, stride, activation))
            channels = filters * expansion * growth(activation)
    return pooled(
        layers, channels, outputs, shape=shape, activation=activation, dropout=dropout, pooling=pooling, regions=regions
    )


def _block(inputs: int, filters: int, expansion: int, stride: int, activation: str) -> Residual:
    """One residual block; the shortcut is a projection where size or channels change."""
    outputs, between = filters * expansion, filters * growth(activation)
    if expansion == 1:
        branch = nn.Sequential(conv_norm_act(inputs, filters, 3, stride=stride, activation=activation))
        last = 3
    else:
        branch = nn.Sequential(
            conv_norm_act(inputs, filters, 1, activation=activation),
            conv_norm_act(between, filters, 3, stride=stride, activation=activation),
        )
        last = 1
    branch.extend([conv(between, outputs, last), nn.BatchNorm2d(outputs)])
    shortcut: nn.Module = nn.Identity()
    if stride > 1 or inputs != outputs:
        shortcut = nn.Sequential(conv(inputs, outputs, 1, stride=stride), nn.BatchNorm2d(outputs))
    return Residual(branch, shortcut, activation_layer(activation))
