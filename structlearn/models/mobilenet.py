"""MobileNet, first and second version: depthwise convolutions.

The width factor is applied as it stands; the counts are not rounded to multiples of 8 as on phones.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from structlearn.models.activations import growth
from structlearn.models.base import Net, Residual, conv, conv_norm_act, pooled, scaled
from structlearn.models.checks import Stem, check_image, small_images

if TYPE_CHECKING:
    from structlearn.models.pooling import Pooling

# Version 1: filters and stride of each block (Howard and others 2017, table 1).
V1_BLOCKS = (
    (64, 1),
    (128, 2),
    (128, 1),
    (256, 2),
    (256, 1),
    (512, 2),
    *((512, 1),) * 5,
    (1024, 2),
    (1024, 1),
)

# Version 2: expansion, filters, repeats, stride for ImageNet and for small images
# (Sandler and others 2018, table 2).
V2_STAGES = (
    (1, 16, 1, 1, 1),
    (6, 24, 2, 2, 1),
    (6, 32, 3, 2, 2),
    (6, 64, 4, 2, 2),
    (6, 96, 3, 1, 1),
    (6, 160, 3, 2, 2),
    (6, 320, 1, 1, 1),
)


def mobilenet_v1(
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
    """MobileNet (Howard and others 2017): (batch, C, H, W) to (batch, outputs).

    3,217,226 parameters on CIFAR-10, 4,231,976 on ImageNet; the forms differ in the stride of the first
    convolution only.

    Args:
        input_shape: (channels, height, width); any size.
        outputs: Number of classes.
        width: Factor on all filters.
        activation: Name of the activation.
        dropout: Rate of the dropout before the output layer.
        stem: Which form; "auto" takes the one for ImageNet from sides of 96 pixels on.
        pooling: "mean" over positions, then a linear layer; or "weldon": a 1 x 1 convolution, then, of each class's
            scores at all positions, the mean of the largest plus that of the smallest (:class:`Weldon`; B 5.4.3).
        regions: How many of the largest and of the smallest scores; for "weldon".
    """
    shape = check_image("mobilenet_v1", input_shape)
    g = growth(activation)
    filters = scaled(32, width)
    first = 1 if small_images(stem, shape) else 2
    layers = [conv_norm_act(shape[0], filters, 3, stride=first, activation=activation)]
    channels = filters * g
    for published, stride in V1_BLOCKS:
        filters = scaled(published, width)
        layers += [
            conv_norm_act(channels, channels, 3, stride=stride, groups=channels, activation=activation),
            conv_norm_act(channels * g, filters, 1, activation=activation),
        ]
        channels = filters * g
    return pooled(
        layers, channels, outputs, shape=shape, activation=activation, dropout=dropout, pooling=pooling, regions=regions
    )


def mobilenet_v2(
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
    """MobileNetV2 (Sandler and others 2018): (batch, C, H, W) to (batch, outputs).

    For small images the network that W tables 2.1 and 2.2 call MobileNet, 2,296,922 parameters on CIFAR-10.
    For ImageNet torchvision's, 3,504,872. The paper's activation is "relu6".

    Args:
        input_shape: (channels, height, width); any size.
        outputs: Number of classes.
        width: Factor on all filters.
        activation: Name of the activation.
        dropout: Rate of the dropout before the output layer; published for ImageNet with 0.2.
        stem: Which form; "auto" takes the one for ImageNet from sides of 96 pixels on.
        pooling: "mean" over positions, then a linear layer; or "weldon": a 1 x 1 convolution, then, of each class's
            scores at all positions, the mean of the largest plus that of the smallest (:class:`Weldon`; B 5.4.3).
        regions: How many of the largest and of the smallest scores; for "weldon".
    """
    shape = check_image("mobilenet_v2", input_shape)
    small = small_images(stem, shape)
    filters = scaled(32, width)
    layers: list[nn.Module] = [conv_norm_act(shape[0], filters, 3, stride=1 if small else 2, activation=activation)]
    channels = filters * growth(activation)
    for expansion, published, repeats, large_stride, small_stride in V2_STAGES:
        filters = scaled(published, width)
        for number in range(repeats):
            stride = 1 if number else small_stride if small else large_stride
            layers.append(_inverted(channels, filters, expansion, stride, activation=activation, small=small))
            channels = filters
    last = scaled(1280, width)
    layers.append(conv_norm_act(channels, last, 1, activation=activation))
    return pooled(
        layers,
        last * growth(activation),
        outputs,
        shape=shape,
        activation=activation,
        dropout=dropout,
        pooling=pooling,
        regions=regions,
    )


def _inverted(inputs: int, outputs: int, expansion: int, stride: int, *, activation: str, small: bool) -> nn.Module:
    """Inverted residual: widen, depthwise, narrow without activation.

    The form for small images projects the shortcut when the channels change, and has the widening layer
    in the first block too, where the factor is 1; the one for ImageNet has neither.
    """
    g = growth(activation)
    branch, wide = nn.Sequential(), inputs
    if small or expansion > 1:
        branch.append(conv_norm_act(inputs, inputs * expansion, 1, activation=activation))
        wide = inputs * expansion * g
    branch.extend(
        [
            conv_norm_act(wide, wide, 3, stride=stride, groups=wide, activation=activation),
            conv(wide * g, outputs, 1),
            nn.BatchNorm2d(outputs),
        ]
    )
    if stride == 1 and inputs == outputs:
        return Residual(branch, nn.Identity(), nn.Identity())
    if stride == 1 and small:
        projection = nn.Sequential(conv(inputs, outputs, 1), nn.BatchNorm2d(outputs))
        return Residual(branch, projection, nn.Identity())
    return branch
