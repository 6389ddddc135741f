"""What a run puts into its network, or between it and the data, so that it generalises."""

from typing import Annotated, Literal

from pydantic import Field, Tag

from hpc.config.types import Count, Fraction, NonNegative, OneOrTwo, Positive, Text, by_name, section

Layers = Annotated[tuple[Text, ...], Field(min_length=1)] | None


@section
class Shade:
    """SHADE: units say no more than whether they have found their pattern. For networks that rectify (ReLU, MaxMin)."""

    name: Literal["shade"] = "shade"
    strength: NonNegative = 1e-3
    """The term's factor in the loss of a mini-batch: the sum over units of their variance, given that the pattern was
    found or not. Choose it on validation samples."""


@section
class Reve:
    """REVE: what the output layer sees of its inputs says as little as it can beside the class. For classification."""

    name: Literal["reve"] = "reve"
    strength: NonNegative = 1e-4
    """The term's factor in the loss of a mini-batch. Choose it on validation samples."""
    variance: Positive = 1e-2
    """Of the noise on the output layer's input, in this term."""
    samples: Count = 12
    """How often the noise is drawn for each example."""
    refresh: Count = 1
    """Batches between two decompositions of the output layer's weights."""
    on: Literal["z", "y"] = "z"
    """The part of the input that the output layer sees, or all of the input."""
    modes: OneOrTwo = 2
    """Each coordinate's density: a mixture of two Gaussians, or one."""


@section
class Dropout:
    """Each input of a linear layer is 0 with a probability, for each example anew. Not those that the network is given.

    What is left is scaled up, so that its expectation stays; evaluation leaves nothing out.
    """

    name: Literal["dropout"] = "dropout"
    rate: Fraction = 0.5
    """The probability."""
    layers: Layers = None
    """Names of the layers whose inputs are dropped; null: all linear layers but those that see the network's input."""


@section
class DropConnect:
    """Each weight of a linear layer is 0 with a probability, for each batch anew.

    What is left is scaled up, so that its expectation stays; evaluation leaves nothing out.
    """

    name: Literal["dropconnect"] = "dropconnect"
    rate: Fraction = 0.5
    """The probability."""
    layers: Layers = None
    """Names of the layers, linear or convolutions; null: all linear layers."""


@section
class InputNoise:
    """Gaussian noise on what the network is given in training."""

    name: Literal["input_noise"] = "input_noise"
    deviation: Positive = 0.1
    """The noise's, where inputs have deviation 1."""


@section
class WeightNoise:
    """Gaussian noise on weights in training, drawn for each batch."""

    name: Literal["weight_noise"] = "weight_noise"
    deviation: Positive = 0.05
    """The noise's, as a share of the root mean square of each layer's weights."""
    layers: Layers = None
    """Names of the layers, linear or convolutions; null: all of them."""


@section
class LabelNoise:
    """Targets that are wrong on purpose in training, drawn for each batch."""

    name: Literal["label_noise"] = "label_noise"
    rate: Fraction | None = None
    """Of a classification: the probability that a label is replaced by one of the other classes; null: 0.1."""
    deviation: Positive | None = None
    """Of a regression: that of Gaussian noise on its targets, in their own units; null: 0.1."""


@section
class Variational:
    """Variational inference: each weight is a Gaussian, whose mean and deviation are learnt.

    Weights are drawn for each batch, and their divergence from a prior is a part of the loss. Predictions are means
    over draws; an export holds the means of the weights.
    """

    name: Literal["variational"] = "variational"
    strength: NonNegative | None = None
    """The factor of the divergence in the loss of a mini-batch; null: 1 over the number of training samples (of a text:
    of characters), which is variational inference of a classification (of a regression: for a likelihood of variance
    1/2)."""
    prior: Literal["gaussian", "laplace"] = "gaussian"
    """The prior of each weight, with mean 0."""
    prior_deviation: Positive | None = None
    """Its standard deviation; null: the root of 1 over the number of a unit's incoming weights, so that weights could
    be drawn from it (with scaling layers 1)."""
    deviation: Positive = 0.1
    """The weights' deviation at the start, in units of the prior's."""
    samples: Count = 10
    """How many draws a prediction is the mean of: of probabilities, in a regression of answers."""
    layers: Layers = None
    """Names of the layers, linear or convolutions; null: all of them."""


RegularizerConfig = Annotated[
    Annotated[Shade, Tag("shade")]
    | Annotated[Reve, Tag("reve")]
    | Annotated[Dropout, Tag("dropout")]
    | Annotated[DropConnect, Tag("dropconnect")]
    | Annotated[InputNoise, Tag("input_noise")]
    | Annotated[WeightNoise, Tag("weight_noise")]
    | Annotated[LabelNoise, Tag("label_noise")]
    | Annotated[Variational, Tag("variational")],
    by_name(""),
]
