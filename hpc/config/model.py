"""Which network a run trains: the section ``model``. The builders are in ``structlearn.models``."""

from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal, get_args

from pydantic import Field, JsonValue, Tag, model_validator

from hpc.config.types import Count, Flag, Fraction, Positive, Text, by_name, section

Activation = Literal[
    "relu", "relu6", "leaky_relu", "elu", "selu", "silu", "gelu", "tanh", "sigmoid", "identity", "maxmin"
]  # fmt: skip
Stem = Literal["auto", "cifar", "imagenet"]
Pooling = Literal["mean", "weldon"]
Widths = tuple[Count, ...]


@section
class Network:
    """What every network of the zoo can be told."""

    width: Positive = 1.0
    """Factor on the width of every hidden layer."""
    activation: Activation = "relu"
    """The non-linearity."""
    dropout: Fraction = 0.0
    """Probability of dropping: before the last layer and between hidden linear layers."""


@section
class Mlp(Network):
    """Fully connected layers."""

    name: Literal["mlp"] = "mlp"
    widths: Widths = (256, 256)
    """Width of each layer. When the last one equals the number of outputs it is the output layer; otherwise
    an output layer is added."""
    batch_norm: Flag = False
    """Batch normalisation before each non-linearity."""


@section
class Cnn(Network):
    """The small convolutional network of B ch. 2 and 3."""

    name: Literal["cnn"] = "cnn"
    channels: Annotated[Widths, Field(min_length=1)] = (32, 32, 64)
    """Channels of each convolution."""
    hidden: Widths = (64,)
    """Width of each hidden linear layer."""


@section
class SmallImages(Network):
    """Networks for small images, without further options."""

    name: Literal["cvnn", "lenet"]


@section
class AlexNet(Network):
    """AlexNet, and B's small version of it."""

    name: Literal["alexnet"] = "alexnet"
    stem: Stem = "auto"
    """B's small form (cifar) or the published one (imagenet); auto: by the size of the images."""
    kernel: Count = 3
    """Side of the filters (small form)."""
    pool: Count = 3
    """Side of the pooling windows (small form)."""
    hidden: Widths | None = None
    """Width of each hidden linear layer; null: that of the form."""


@section
class Vgg(Network):
    """VGG with batch normalisation."""

    name: Literal["vgg11", "vgg16", "vgg19"]
    stem: Stem = "auto"
    """One linear layer for small images (cifar), or the published head (imagenet); auto: by the image size."""
    hidden: Widths | None = None
    """Width of each hidden linear layer; null: that of the form."""


@section
class Pooled(Network):
    """What networks can be told that end in a pooling over all positions of a map."""

    pooling: Pooling = "mean"
    """mean over the positions, then a linear layer; or weldon: a linear layer at each position, then of each class's
    scores the mean of the largest plus that of the smallest."""
    regions: Count = 1
    """How many of the largest scores, and as many of the smallest (pooling: weldon)."""


@section
class WideResNet(Pooled):
    """The wide residual network, for small images."""

    name: Literal["wideresnet28_10"] = "wideresnet28_10"


@section
class Convolutional(Pooled):
    """Networks that have first layers for small images and others for large ones."""

    name: Literal["googlenet", "mobilenet_v1", "mobilenet_v2", "resnet18", "resnet50", "densenet121"]
    stem: Stem = "auto"
    """First layers for small images (cifar) or large ones (imagenet); auto: by the size of the images."""


@section
class Lstm(Network):
    """A character model: embedding, LSTM layers, a linear layer."""

    name: Literal["lstm"] = "lstm"
    activation: Literal["tanh"] = "tanh"
    """The cell's own non-linearity."""
    dropout: Fraction = 0.2
    """Probability of dropping between layers."""
    hidden: Count = 100
    """Cells in a layer."""
    embedding: Count = 100
    """Length of a character's embedding."""
    layers: Count = 2
    """LSTM layers."""


@section
class Custom:
    """A function of the user's that returns a module; keys beside ``name`` are passed to it."""

    name: Annotated[Text, Field(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$")]
    """`package.module:function`."""
    options: dict[str, JsonValue] = Field(default_factory=dict)
    """Keyword arguments of the function."""

    @model_validator(mode="before")
    @classmethod
    def _gather(cls, given: Any) -> Any:
        """Every key but ``name`` and ``options`` is an option of the user's function."""
        values = given.kwargs if hasattr(given, "kwargs") else given
        if not isinstance(values, dict):
            return given
        options = dict(values.get("options") or {})
        options |= {key: value for key, value in values.items() if key not in {"name", "options"}}
        return {"name": values.get("name"), "options": options}


_FAMILIES = {
    SmallImages: "small images",
    Vgg: "vgg",
    Convolutional: "convolutional",
}


class _Families(dict[str, str]):
    """Names of networks to the tags of their sections; anything with a colon is the user's own."""

    def get(self, name: str, default: str | None = None) -> str:  # type: ignore[override]
        return "custom" if ":" in name else super().get(name, default or name)


ModelConfig = Annotated[
    Annotated[Mlp, Tag("mlp")]
    | Annotated[Cnn, Tag("cnn")]
    | Annotated[SmallImages, Tag("small images")]
    | Annotated[AlexNet, Tag("alexnet")]
    | Annotated[Vgg, Tag("vgg")]
    | Annotated[WideResNet, Tag("wideresnet28_10")]
    | Annotated[Convolutional, Tag("convolutional")]
    | Annotated[Lstm, Tag("lstm")]
    | Annotated[Custom, Tag("custom")],
    by_name(
        "mlp",
        _Families(
            {name: tag for kind, tag in _FAMILIES.items() for name in get_args(kind.__dataclass_fields__["name"].type)}
        ),
    ),
]


# --- what a network asks of images ---------------------------------------------------------------------

IMAGENET_SIDE: Final = 96
"""The shorter side of an image from which ``stem: auto`` takes the form for large images."""

LEAST_SIDES: Final[Mapping[str, tuple[int, int]]] = {
    "cvnn": (16, 16),
    "lenet": (12, 12),
    "alexnet": (1, 63),
    **dict.fromkeys(("vgg11", "vgg16", "vgg19"), (32, 32)),
    "densenet121": (8, 29),
}
"""Shorter side of the smallest image that a network's poolings do not use up: in the form for small images, and
in that for large ones. Networks that are not here take any size. The networks find out the same from their layers."""


def small_form(model: AlexNet | Vgg | Convolutional, side: int) -> bool:
    """Is it the form for small images that images with this shorter side get?"""
    return side < IMAGENET_SIDE if model.stem == "auto" else model.stem == "cifar"


def least_side(model: ModelConfig, side: int) -> int:
    """The shorter side of the smallest image that a network takes, in the form that images of ``side`` get."""
    small = not isinstance(model, AlexNet | Vgg | Convolutional) or small_form(model, side)
    if isinstance(model, AlexNet) and small and model.pool % 2 == 0:
        return 8  # three poolings that round down; those of odd sides round up
    return LEAST_SIDES.get(model.name, (1, 1))[0 if small else 1]
