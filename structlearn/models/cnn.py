"""Small convolutional networks without BatchNorm: convolutions and poolings, then linear layers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from structlearn.models.activations import growth
from structlearn.models.base import Net, half_pool, plain_convnet, scaled
from structlearn.models.checks import check_image

if TYPE_CHECKING:
    from collections.abc import Sequence


def cnn(
    input_shape: tuple[int, ...],
    outputs: int,
    *,
    width: float = 1.0,
    activation: str = "relu",
    dropout: float = 0.0,
    channels: Sequence[int] = (32, 32, 64),
    hidden: Sequence[int] = (64,),
) -> Net:
    """B's small CNN: 5 x 5 convolutions, each with a 3 x 3 max pooling at stride 2, then linear layers.

    (batch, C, H, W) to (batch, outputs). The default is the network of B 3.4.2 (MatConvNet's CIFAR-10
    example with max pooling), 145,578 parameters on CIFAR-10. B 2.5 describes the same shape without
    sizes, citing Wan and others 2013, and says "200K": `hidden=[128]` gives 211,818. B's network for MNIST
    (B 3.4.1) is `channels=[64, 64, 64], hidden=[]`, without its contrast normalisation.

    Args:
        input_shape: (channels, height, width); any size.
        outputs: Number of classes.
        width: Factor on `channels` and `hidden`.
        activation: Name of the activation.
        dropout: Rate of the dropout before each linear layer but the first hidden one.
        channels: Filters of each convolution.
        hidden: Units of each hidden linear layer.
    """
    shape = check_image("cnn", input_shape)
    if not channels:
        raise ValueError("cnn got no channels; give the filters of at least one convolution, such as [32, 32, 64]")
    blocks, before = [], shape[0]
    for filters in channels:
        blocks.append((nn.Conv2d(before, scaled(filters, width), 5, padding=2), half_pool()))
        before = scaled(filters, width) * growth(activation)
    units = [scaled(size, width) for size in hidden]
    return plain_convnet("cnn", shape, outputs, blocks=blocks, hidden=units, activation=activation, dropout=dropout)


def cvnn(
    input_shape: tuple[int, ...],
    outputs: int,
    *,
    width: float = 1.0,
    activation: str = "relu",
    dropout: float = 0.0,
) -> Net:
    """W's CVNN (W 4.6): 100 and 200 filters of 5 x 5, each with 2 x 2 max pooling, then 1000 and 200 units.

    (batch, C, H, W) to (batch, outputs). W gives no padding: none is used (torch's default). The two linear
    layers are taken as hidden ones, since CIFAR-10 has 10 classes: 5,711,010 parameters.

    Args:
        input_shape: (channels, height, width), at least 16 x 16 pixels.
        outputs: Number of classes.
        width: Factor on filters and hidden units.
        activation: Name of the activation.
        dropout: Rate of the dropout before each linear layer but the first.
    """
    shape = check_image("cvnn", input_shape)
    first, second = scaled(100, width), scaled(200, width)
    blocks = [
        (nn.Conv2d(shape[0], first, 5), nn.MaxPool2d(2)),
        (nn.Conv2d(first * growth(activation), second, 5), nn.MaxPool2d(2)),
    ]
    units = [scaled(size, width) for size in (1000, 200)]
    return plain_convnet("cvnn", shape, outputs, blocks=blocks, hidden=units, activation=activation, dropout=dropout)


def lenet(
    input_shape: tuple[int, ...],
    outputs: int,
    *,
    width: float = 1.0,
    activation: str = "relu",
    dropout: float = 0.0,
) -> Net:
    """LeNet-5 (LeCun and others 1998) in its modern form: 6 and 16 filters of 5 x 5, then 120 and 84 units.

    (batch, C, H, W) to (batch, outputs). Max pooling and full connections between the maps; give
    `activation="tanh"` for the original's. As there, small images get a frame of two pixels (MNIST's 28
    become 32): 61,706 parameters on MNIST.

    Args:
        input_shape: (channels, height, width), at least 12 x 12 pixels.
        outputs: Number of classes.
        width: Factor on filters and hidden units.
        activation: Name of the activation.
        dropout: Rate of the dropout before each linear layer but the first.
    """
    shape = check_image("lenet", input_shape)
    first, second = scaled(6, width), scaled(16, width)
    frame = 2 if min(shape[1:]) < 32 else 0
    blocks = [
        (nn.Conv2d(shape[0], first, 5, padding=frame), nn.MaxPool2d(2)),
        (nn.Conv2d(first * growth(activation), second, 5), nn.MaxPool2d(2)),
    ]
    units = [scaled(size, width) for size in (120, 84)]
    return plain_convnet("lenet", shape, outputs, blocks=blocks, hidden=units, activation=activation, dropout=dropout)
