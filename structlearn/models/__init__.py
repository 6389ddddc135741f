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
from typing import TYPE_CHECKING, Any, Final, Protocol

from structlearn.checks import check_choice
from structlearn.models.activations import ACTIVATIONS
from structlearn.models.alexnet import alexnet
from structlearn.models.base import Net
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

__all__ = ["ACTIVATIONS", "MODELS", "Builder", "Net", "build"]


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
