"""Wide residual networks (Zagoruyko and Komodakis 2016)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn

from structlearn.models.activations import activation_layer, growth
from structlearn.models.base import Net, conv, pooled, scaled
from structlearn.models.checks import check_image

if TYPE_CHECKING:
    from structlearn.models.pooling import Pooling


class PreActivated(nn.Module):
    """A block that normalises and activates first: `branch(y) + shortcut`, with `y = before(x)`.

    The shortcut is `x` itself, or a projection of `y` where size or channels change.
    """

    def __init__(self, inputs: int, outputs: int, stride: int, *, activation: str, dropout: float) -> None:
        super().__init__()
        g = growth(activation)
        self.before = nn.Sequential(nn.BatchNorm2d(inputs), activation_layer(activation))
        self.branch = nn.Sequential(
            conv(inputs * g, outputs, 3, stride=stride),
            nn.BatchNorm2d(outputs),
            activation_layer(activation),
        )
        if dropout:
            self.branch.append(nn.Dropout(dropout))
        self.branch.append(conv(outputs * g, outputs, 3))
        same = stride == 1 and inputs == outputs
        self.projection = None if same else conv(inputs * g, outputs, 1, stride=stride)

    def forward(self, x: Tensor) -> Tensor:
        """The sum of both ways."""
        y = self.before(x)
        shortcut: Tensor = x if self.projection is None else self.projection(y)
        both: Tensor = shortcut + self.branch(y)
        return both


def wideresnet28_10(
    input_shape: tuple[int, ...],
    outputs: int,
    *,
    width: float = 1.0,
    activation: str = "relu",
    dropout: float = 0.0,
    pooling: Pooling = "mean",
    regions: int = 1,
) -> Net:
    """WRN-28-10, three groups of four blocks with 160, 320 and 640 filters.

    (batch, C, H, W) to (batch, outputs). 36,479,194 parameters on CIFAR-10. The ResNet
    of B 4.4.1 (k=10, N=4) and of B 5.4 (depth 28, k=10), which are the same. Made for small
    images; it has no ImageNet form.

    Args:
        input_shape: (channels, height, width); any size.
        outputs: Number of classes.
        width: Factor on all filters, on top of the published 10.
        activation: Name of the activation.
        dropout: Rate of the dropout between a block's two convolutions (the paper's place; it uses 0.3).
        pooling: "mean" over positions, then a linear layer; or "weldon": a 1 x 1 convolution, then, of each class's
            scores at all positions, the mean of the largest plus that of the smallest (:class:`Weldon`; B 5.4.3).
        regions: How many of the largest and of the smallest scores; for "weldon".
    """
    shape = check_image("wideresnet28_10", input_shape)
    layers: list[nn.Module] = [conv(shape[0], scaled(16, width), 3)]
    channels = scaled(16, width)
    for group, published in enumerate((160, 320, 640)):
        filters = scaled(published, width)
        for number in range(4):
            stride = 2 if group and not number else 1
            layers.append(PreActivated(channels, filters, stride, activation=activation, dropout=dropout))
            channels = filters
    layers += [nn.BatchNorm2d(channels), activation_layer(activation)]
    channels *= growth(activation)
    return pooled(layers, channels, outputs, shape=shape, activation=activation, pooling=pooling, regions=regions)
