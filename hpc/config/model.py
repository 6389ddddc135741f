"""Which network a run trains: the section ``model``. The builders are in ``structlearn.models``."""

from typing import Annotated, Any, Literal

from pydantic import Field, Tag, model_validator

from hpc.config.types import Count, Flag, Fraction, Positive, Text, by_name, section

Activation = Literal["relu", "leaky_relu", "elu", "gelu", "silu", "tanh", "sigmoid", "identity"]


@section
class Network:
    """What every network of the zoo can be told."""

    width: Positive = 1.0
    """Factor on the width of every hidden layer."""
    activation: Activation = "relu"
    """The non-linearity."""


@section
class Mlp(Network):
    """Fully connected layers."""

    name: Literal["mlp"] = "mlp"
    widths: tuple[Count, ...] = (256, 256)
    """Width of each layer. When the last one equals the number of outputs it is the output layer; otherwise
    an output layer is added."""
    batch_norm: Flag = False
    """Batch normalisation before each non-linearity."""
    dropout: Fraction = 0.0
    """Probability of dropping a hidden unit."""


@section
class SmallConvolutional(Network):
    """The convolutional networks for small images."""

    name: Literal["cvnn", "cnn", "lenet", "alexnet", "wideresnet28_10"]


@section
class Convolutional(Network):
    """The convolutional networks that have a stem for small images and one for large ones."""

    name: Literal[
        "vgg11",
        "vgg16",
        "vgg19",
        "googlenet",
        "mobilenet_v1",
        "mobilenet_v2",
        "resnet18",
        "resnet50",
        "densenet121",
    ]
    stem: Literal["auto", "cifar", "imagenet"] = "auto"
    """First layers for small images (cifar) or large ones (imagenet); auto: by the size of the images."""


@section
class Lstm(Network):
    """A character model: embedding, LSTM layers, a linear layer."""

    name: Literal["lstm"] = "lstm"
    hidden: Count = 100
    """Cells in a layer."""
    embedding: Count = 100
    """Length of a character's embedding."""
    layers: Count = 2
    """LSTM layers."""
    dropout: Fraction = 0.0
    """Probability of dropping between layers."""


@section
class Custom:
    """A function of the user's that returns a module; keys beside ``name`` are passed to it."""

    name: Annotated[Text, Field(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_][\w.]*$")]
    """`package.module:function`."""
    options: dict[str, Any] = Field(default_factory=dict)
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


SMALL = ("cvnn", "cnn", "lenet", "alexnet", "wideresnet28_10")
LARGE = (
    "vgg11", "vgg16", "vgg19", "googlenet", "mobilenet_v1", "mobilenet_v2", "resnet18", "resnet50", "densenet121",
)


class _Families(dict[str, str]):
    """Names of networks to tags; anything with a colon is the user's own."""

    def get(self, name: str, default: str | None = None) -> str:  # type: ignore[override]
        return "custom" if ":" in name else super().get(name, default or name)


ModelConfig = Annotated[
    Annotated[Mlp, Tag("mlp")]
    | Annotated[SmallConvolutional, Tag("small")]
    | Annotated[Convolutional, Tag("large")]
    | Annotated[Lstm, Tag("lstm")]
    | Annotated[Custom, Tag("custom")],
    by_name("mlp", _Families(dict.fromkeys(SMALL, "small") | dict.fromkeys(LARGE, "large"))),
]
