"""AlexNet (Krizhevsky and others 2012): B's small relative, and the one for ImageNet."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from structlearn.checks import check_count
from structlearn.models.activations import activation_layer, growth
from structlearn.models.base import Net, hidden_linear, initialise, plain_convnet, scaled
from structlearn.models.checks import Stem, check_image, map_size, small_images

if TYPE_CHECKING:
    from collections.abc import Sequence

# ImageNet form: filters, kernel, stride, padding, and whether a pooling follows (Krizhevsky 2014, one tower).
IMAGENET_LAYERS = (
    (64, 11, 4, 2, True),
    (192, 5, 1, 2, True),
    (384, 3, 1, 1, False),
    (256, 3, 1, 1, False),
    (256, 3, 1, 1, True),
)


def alexnet(
    input_shape: tuple[int, ...],
    outputs: int,
    *,
    width: float = 1.0,
    activation: str = "relu",
    dropout: float = 0.0,
    stem: Stem = "auto",
    kernel: int = 3,
    pool: int = 3,
    hidden: Sequence[int] | None = None,
) -> Net:
    """B's AlexNet-like network, or AlexNet itself for ImageNet.

    (batch, C, H, W) to (batch, outputs). Small images (B 4.4.1): three convolutions of 64 filters, each with
    a max pooling at stride 2, then 1000 units. B 4.4.1 has 3 x 3 filters and 3 x 3 poolings (the default);
    B 5.4, which means to recall it, has 5 x 5 and 2 x 2: `kernel=5, pool=2`. Sizes are kept by padding;
    B does not say. ImageNet: the network that W 2.5.1 trained, torchvision's, 61,100,840 parameters.

    Args:
        input_shape: (channels, height, width); ImageNet form at least 63 x 63 pixels.
        outputs: Number of classes.
        width: Factor on filters and hidden units.
        activation: Name of the activation.
        dropout: Rate of the dropout before each linear layer but the first; published for ImageNet with 0.5.
        stem: Which form; "auto" takes the one for ImageNet from sides of 96 pixels on.
        kernel: Side of the small form's filters, odd.
        pool: Side of the small form's poolings.
        hidden: Units of each hidden linear layer; None: (1000,), or (4096, 4096) for ImageNet.
    """
    shape = check_image("alexnet", input_shape)
    small = small_images(stem, shape)
    form, published = (_small, [1000]) if small else (_imagenet, [4096, 4096])
    units = [scaled(size, width) for size in (published if hidden is None else hidden)]
    sides = (kernel, pool)
    return form(shape, outputs, width=width, hidden=units, activation=activation, dropout=dropout, sides=sides)


def _small(
    shape: tuple[int, int, int],
    outputs: int,
    *,
    width: float,
    hidden: Sequence[int],
    activation: str,
    dropout: float,
    sides: tuple[int, int],
) -> Net:
    kernel, pool = sides
    if check_count("alexnet: kernel", kernel) % 2 == 0:
        raise ValueError(f"alexnet: kernel must be odd, so that padding keeps the size, got {kernel}; use 3 or 5")
    check_count("alexnet: pool", pool)
    filters = scaled(64, width)
    blocks, before = [], shape[0]
    for _ in range(3):
        pooling = nn.MaxPool2d(pool, stride=2, padding=(pool - 1) // 2)
        blocks.append((nn.Conv2d(before, filters, kernel, padding=kernel // 2), pooling))
        before = filters * growth(activation)
    return plain_convnet(
        "alexnet", shape, outputs, blocks=blocks, hidden=hidden, activation=activation, dropout=dropout
    )


def _imagenet(
    shape: tuple[int, int, int],
    outputs: int,
    *,
    width: float,
    hidden: Sequence[int],
    activation: str,
    dropout: float,
    sides: tuple[int, int],
) -> Net:
    if sides != (3, 3):
        raise ValueError(
            f"alexnet: kernel and pool, here {sides}, belong to the form for small images, but "
            "ImageNet's was asked for or the image is that large; leave them out, or give stem='cifar'"
        )
    trunk, channels = nn.Sequential(), shape[0]
    for filters, side, stride, padding, pooled in IMAGENET_LAYERS:
        units = scaled(filters, width)
        trunk.extend([nn.Conv2d(channels, units, side, stride, padding), activation_layer(activation)])
        if pooled:
            trunk.append(nn.MaxPool2d(3, stride=2))
        channels = units * growth(activation)
    map_size("alexnet", trunk, shape)
    layers, features = hidden_linear(channels * 36, hidden, activation=activation, dropout=dropout)
    chain = [*trunk, nn.AdaptiveAvgPool2d(6), nn.Flatten(), *layers]
    return Net(initialise(chain, activation), features, outputs, dropout=dropout)
