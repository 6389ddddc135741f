"""Multi-layer perceptrons."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING

from torch import nn

from structlearn.checks import check_count
from structlearn.models.base import Net, hidden_linear, initialise, scaled

if TYPE_CHECKING:
    from collections.abc import Sequence


def mlp(
    input_shape: tuple[int, ...],
    outputs: int,
    *,
    width: float = 1.0,
    activation: str = "relu",
    dropout: float = 0.0,
    widths: Sequence[int] = (256, 256),
    batch_norm: bool = False,
) -> Net:
    """Linear layers in a row: (batch, *input_shape), images flattened, to (batch, outputs).

    W's sFC on MNIST (W 3.5.4) is `widths=[1000, 1000, 10]` with 10 outputs; B's MLP (B 4.4.1, from Zhang
    and others 2017) is `widths=[512, 512]`; the Q-networks of W 2.5.2 have two hidden layers as well.

    Args:
        input_shape: Shape of one example, any number of axes.
        outputs: Number of classes or targets.
        width: Factor on the hidden widths.
        activation: Name of the activation after each hidden layer.
        dropout: Rate of the dropout after each hidden layer.
        widths: Outputs of each layer. **If the last one equals `outputs` it is the output layer; otherwise an
            output layer is added.** So a last hidden layer that happens to have as many units as there
            are outputs must be followed by `outputs` once more. No widths, or `[outputs]`: a linear model.
        batch_norm: Put a BatchNorm between each hidden layer and its activation.
    """
    shape = tuple(input_shape)
    if not shape:
        raise ValueError("mlp got the empty input shape (); give at least one axis, such as (54,) or (1, 28, 28)")
    inputs = prod(check_count(f"mlp: each axis of the input shape {shape}", size) for size in shape)
    hidden = list(widths)[:-1] if widths and widths[-1] == outputs else list(widths)
    units = [scaled(size, width) for size in hidden]
    layers, features = hidden_linear(inputs, units, activation=activation, dropout=dropout, batch_norm=batch_norm)
    return Net(initialise([nn.Flatten(), *layers], activation), features, outputs, dropout=dropout)
