"""The networks of the theses and of their fields, by name.

`build("vgg19", (3, 32, 32), 10, width=0.5)` gives a network; `MODELS` maps each name to its builder.

Every network is a `Net`: `features`, then the linear layer `head`, then `pool`. Layers are modules, all of torch's
but for MaxMin and WELDON's pooling, so that `torch.fx` can trace it. Options that all builders take:

- `width`: factor on all hidden sizes (channels, units, cells), rounded, at least 1.
- `activation`: a name in `activations.ACTIVATIONS`.
- `dropout`: rate before the output layer (`wideresnet28_10`: inside the blocks).

`pooling="weldon"` puts WELDON's way from maps to classes in the place of the mean over positions.

`stem` picks the published form where there are two: "cifar" for small images, "imagenet", or "auto": the
latter if the image's shorter side has at least 96 pixels.

Weights come from torch's global generator (see `base.initialise`): seed it for the same network again.
"""

from __future__ import annotations

from inspect import Parameter, signature
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol

import torch

from structlearn.checks import check_choice, check_count
from structlearn.models.activations import ACTIVATIONS
from structlearn.models.alexnet import alexnet
from structlearn.models.base import Net, scaled
from structlearn.models.cnn import cnn, cvnn, lenet
from structlearn.models.densenet import densenet121
from structlearn.models.googlenet import googlenet
from structlearn.models.lstm import lstm
from structlearn.models.mlp import mlp
from structlearn.models.mobilenet import mobilenet_v1, mobilenet_v2
from structlearn.models.resnet import resnet18, resnet50
from structlearn.models.vgg import vgg11, vgg16, vgg19
from structlearn.models.wideresnet import wideresnet28_10

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["ACTIVATIONS", "MODELS", "Builder", "Fit", "Net", "build", "width_for"]

CLOSE: Final = 1e-5
"""Factors on sizes are looked for until two that are this close are on either side of what is asked for."""


class Builder(Protocol):
    """A function that makes a network for inputs of one shape; it may have further keyword options."""

    def __call__(
        self,
        input_shape: tuple[int, ...],
        outputs: int,
        *,
        width: float = ...,
        activation: str = ...,
        dropout: float = ...,
    ) -> Net:
        """A new network, its weights drawn."""


MODELS: Final[Mapping[str, Builder]] = {
    "mlp": mlp,
    "cvnn": cvnn,
    "cnn": cnn,
    "lenet": lenet,
    "alexnet": alexnet,
    "vgg11": vgg11,
    "vgg16": vgg16,
    "vgg19": vgg19,
    "googlenet": googlenet,
    "mobilenet_v1": mobilenet_v1,
    "mobilenet_v2": mobilenet_v2,
    "resnet18": resnet18,
    "resnet50": resnet50,
    "wideresnet28_10": wideresnet28_10,
    "densenet121": densenet121,
    "lstm": lstm,
}


def build(name: str, input_shape: tuple[int, ...], outputs: int, **options: Any) -> Net:
    """The network called `name`.

    Args:
        name: A key of `MODELS`.
        input_shape: Shape of one example: (channels, height, width), (features,) or, for text, (time,).
        outputs: Number of classes or targets; for text the size of the vocabulary.
        **options: The builder's keyword options.

    Raises:
        ValueError: an unknown name or option, or a shape or size that the network cannot take.
    """
    check_choice("model", name, MODELS)
    builder = MODELS[name]
    allowed = [p.name for p in signature(builder).parameters.values() if p.kind is Parameter.KEYWORD_ONLY]
    for option in options:
        check_choice(f"option of {name}", option, allowed)
    return builder(input_shape, outputs, **options)


class Fit(NamedTuple):
    """An option's value, and how many parameters the network then has."""

    value: Any
    parameters: int


def width_for(
    name: str, input_shape: tuple[int, ...], outputs: int, *, parameters: int, vary: str = "width", **options: Any
) -> Fit:
    """The width at which a network has as nearly so many parameters as one factor on its sizes can bring.

    So networks with different activations, or from different families, are compared at one size::

        width, count = width_for("vgg11", (3, 32, 32), 10, parameters=600_000, activation="maxmin")

    Args:
        name: A key of `MODELS`.
        input_shape: As for :func:`build`.
        outputs: As for :func:`build`.
        parameters: How many.
        vary: The option that is multiplied with the factor: `width` for all sizes, or one that holds some of them, such
            as `channels` of the cnn, so that its hidden linear layers stay as they are.
        **options: The builder's other options; also what `vary` starts from, if not from its default.

    Raises:
        ValueError: as :func:`build`; `vary` holds no sizes; the smallest network has more parameters.
    """
    check_choice("model", name, MODELS)
    check_count("parameters", parameters)
    defaults = {each.name: each.default for each in signature(MODELS[name]).parameters.values()}
    check_choice(f"option of {name} to vary", vary, defaults)
    start = options.pop(vary, defaults[vary])

    def tried(factor: float) -> Fit:
        value = start * factor if isinstance(start, float | int) else tuple(scaled(size, factor) for size in start)
        with torch.device("meta"):
            model = build(name, input_shape, outputs, **options, **{vary: value})
        return Fit(value, sum(each.numel() for each in model.parameters()))

    if not isinstance(start, float | int | tuple | list) or not start:
        raise ValueError(
            f"vary={vary!r} of {name} is {start!r}, which is no size that a factor can change; use 'width'"
        )
    low, high = 1e-6, 1.0
    if tried(low).parameters > parameters:
        raise ValueError(
            f"{name} cannot have {parameters} parameters: with {vary} at its smallest it has {tried(low).parameters}; "
            f"ask for more, or make other sizes smaller"
        )
    while tried(high).parameters < parameters:
        low, high = high, 2 * high
    while high - low > CLOSE * high:
        middle = (low + high) / 2
        low, high = (middle, high) if tried(middle).parameters < parameters else (low, middle)
    return min(tried(low), tried(high), key=lambda fit: abs(fit.parameters - parameters))
