"""VGG (Simonyan and Zisserman 2014) with BatchNorm."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from structlearn.models.activations import growth
from structlearn.models.base import Net, conv_norm_act, global_pool, hidden_linear, initialise, scaled
from structlearn.models.checks import Stem, check_image, map_size, small_images

if TYPE_CHECKING:
    from collections.abc import Sequence

CHANNELS = (64, 128, 256, 512, 512)
"""Filters in each of the five stages; a 2 x 2 pooling ends each."""


def vgg11(
    input_shape: tuple[int, ...],
    outputs: int,
    *,
    width: float = 1.0,
    activation: str = "relu",
    dropout: float = 0.0,
    stem: Stem = "auto",
    hidden: Sequence[int] | None = None,
) -> Net:
    """VGG with 8 convolutions; options as for `vgg19`."""
    return _vgg(
        "vgg11",
        (1, 1, 2, 2, 2),
        input_shape,
        outputs,
        width=width,
        activation=activation,
        dropout=dropout,
        stem=stem,
        hidden=hidden,
    )


def vgg16(
    input_shape: tuple[int, ...],
    outputs: int,
    *,
    width: float = 1.0,
    activation: str = "relu",
    dropout: float = 0.0,
    stem: Stem = "auto",
    hidden: Sequence[int] | None = None,
) -> Net:
    """VGG with 13 convolutions; options as for `vgg19`.

    S 4.1.1 starts CIFAR-10 from twice these widths and 5000 units: `width=2, hidden=[2500]`, or two such
    layers (S draws sizes for two linear layers, but describes one between convolutions and output).
    """
    return _vgg(
        "vgg16",
        (2, 2, 3, 3, 3),
        input_shape,
        outputs,
        width=width,
        activation=activation,
        dropout=dropout,
        stem=stem,
        hidden=hidden,
    )


def vgg19(
    input_shape: tuple[int, ...],
    outputs: int,
    *,
    width: float = 1.0,
    activation: str = "relu",
    dropout: float = 0.0,
    stem: Stem = "auto",
    hidden: Sequence[int] | None = None,
) -> Net:
    """VGG with 16 convolutions: (batch, C, H, W) to (batch, outputs).

    For small images the mean over positions goes straight to the one linear layer: 20,040,522 parameters on
    CIFAR-10, the network of W tables 2.1, 2.2 and 3.1. For ImageNet a grid of 7 x 7 positions goes through
    two hidden layers, as published (with BatchNorm: 143,678,248 parameters). The convolutions are the same.

    Args:
        input_shape: (channels, height, width), at least 32 x 32 pixels.
        outputs: Number of classes.
        width: Factor on filters and hidden units.
        activation: Name of the activation.
        dropout: Rate of the dropout before the output layer and between hidden ones; published for
            ImageNet with 0.5.
        stem: Which form; "auto" takes the one for ImageNet from sides of 96 pixels on.
        hidden: Units of each hidden linear layer; None: none, or (4096, 4096) for ImageNet.
    """
    return _vgg(
        "vgg19",
        (2, 2, 4, 4, 4),
        input_shape,
        outputs,
        width=width,
        activation=activation,
        dropout=dropout,
        stem=stem,
        hidden=hidden,
    )


def _vgg(
    name: str,
    depths: tuple[int, ...],
    input_shape: tuple[int, ...],
    outputs: int,
    *,
    width: float,
    activation: str,
    dropout: float,
    stem: Stem,
    hidden: Sequence[int] | None,
) -> Net:
    shape = check_image(name, input_shape)
    small = small_images(stem, shape)
    trunk, channels = nn.Sequential(), shape[0]
    for depth, filters in zip(depths, CHANNELS, strict=True):
        units = scaled(filters, width)
        for _ in range(depth):
            trunk.append(conv_norm_act(channels, units, 3, activation=activation, bias=True))
            channels = units * growth(activation)
        trunk.append(nn.MaxPool2d(2))
    map_size(name, trunk, shape)
    if hidden is None:
        hidden = () if small else (4096, 4096)
    layers, features = hidden_linear(
        channels if small else channels * 49,
        [scaled(size, width) for size in hidden],
        activation=activation,
        dropout=dropout,
    )
    pool = global_pool() if small else [nn.AdaptiveAvgPool2d(7), nn.Flatten()]
    return Net(initialise([*trunk, *pool, *layers], activation), features, outputs, dropout=dropout)
