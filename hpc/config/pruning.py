"""How a run changes the structure of its network: which units go, and when."""

from typing import Annotated, Literal

from pydantic import Tag

from hpc.config.training import OptimizerConfig, Sgd
from hpc.config.types import Count, Flag, Fraction, NonNegative, OneOrTwo, Positive, by_name, section


@section
class NoPruning:
    """The network keeps its structure."""

    name: Literal["none"] = "none"


@section
class Scaled:
    """What every choice with scaling layers (ScaLa) can be told.

    A fixed scaling stands before each layer, and makes the learning rate 1 right whatever the width: train with
    ``optimizer: {name: sgd, lr: 1, momentum: 0}``.
    """

    scaling: Literal["uniform", "sqrt_log", "inverse"] = "sqrt_log"
    """How the factors of a layer's inputs fall: not at all, as 1/(sqrt(k) log k), or as 1/k. The first layer's never
    fall."""
    batch_norm: Flag = True
    """Put a BatchNorm behind each layer that has none before the next; the scaling relies on it."""


@section
class Scala(Scaled):
    """ScaLa: scaling layers, of any width at learning rate 1. Nothing is pruned.

    Train with ``optimizer: {name: sgd, lr: 1, momentum: 0}``.
    """

    name: Literal["scala"] = "scala"


@section
class Cutting:
    """What every choice that prunes can be told.

    :class:`structlearn.pruning.Pruner` says what the two phases are.
    """

    patience: Count = 50
    """Epochs without improvement that end pruning, and each stage of fine-tuning. Each has a tenth of the learning
    rate of the one before, times what `schedule` says: leave that constant."""
    every_epochs: Count = 1
    """Cut after every so many epochs."""
    absorb: Flag = False
    """Add to the next biases what units that go still contribute, where that is a constant (so it is for one whose
    incoming weights are 0), as seen on validation samples."""


@section
class Scalp(Cutting, Scaled):
    """ScaLP: ScaLa, and a penalty on the weights behind the scaling, on each unit's outgoing ones together.

    Train with ``optimizer: {name: sgd, lr: 1, momentum: 0}``.
    """

    name: Literal["scalp"] = "scalp"
    penalty: Literal["l2", "l1", "group_lasso"] = "group_lasso"
    """The penalty: the sum of squares, of absolute values, or of the 2-norms of each unit's outgoing weights."""
    strength: NonNegative = 3e-3
    """The penalty's factor in the loss of a mini-batch."""
    threshold: NonNegative = 1e-3
    """A unit goes when its outgoing weights, scaled, have a norm below this: the root of their mean square, or with l1
    the mean of their absolute values."""
    proximal: Flag = False
    """Shrink weights by the penalty's proximal step after each step of the optimiser, in place of its gradient: so they
    become 0 exactly. For ``optimizer: {name: sgd}``, not for l2."""


@section
class Norm(Cutting):
    """A penalty on the weights themselves, without scaling; units whose weights have a small norm go."""

    name: Literal["norm"] = "norm"
    penalty: Literal["l2", "l1", "group_lasso", "sparse_group_lasso", "reversed_group_lasso"] = "group_lasso"
    """The penalty: the sum of squares, of absolute values, of the 2-norms of each unit's incoming weights, a mixture of
    the last two, or of the 2-norms of each unit's outgoing weights."""
    strength: NonNegative | None = 1e-3
    """The penalty's factor in the loss of a mini-batch; null: 1 over the number of training samples."""
    factors: Literal["usual", "bayesian"] = "usual"
    """The factor of each layer, beside that: usual, 1 and for norms the root of how many weights they are of; or
    bayesian, by the layer's size, so that the penalty is a prior from which weights could be drawn. See ``penalties``,
    which has the formulas."""
    threshold: NonNegative = 1e-3
    """A unit goes when its incoming weights (reversed_group_lasso: its outgoing ones) have a 2-norm of at most this."""
    proximal: Flag | None = None
    """Shrink weights by the penalty's proximal step after each step of the optimiser, in place of its gradient: so they
    become 0 exactly, where by the gradient norms hover above the threshold. For ``optimizer: {name: sgd}``, not for l2;
    null: wherever it can be."""
    mix: Fraction | None = None
    """With penalty: sparse_group_lasso, the part of the absolute values in the mixture; null: 0.5."""


@section
class BnLasso(Cutting):
    """Network slimming: an L1 penalty on the scales of BatchNorms, which the network must have, or gets by scaling."""

    name: Literal["bn_lasso"] = "bn_lasso"
    strength: NonNegative = 1e-3
    """The penalty's factor in the loss of a mini-batch."""
    threshold: NonNegative = 1e-3
    """A unit goes when its scale is closer to 0 than this."""
    proximal: Flag | None = None
    """Shrink scales by a proximal step after each step of the optimiser, in place of the gradient: so they become 0
    exactly, where by the gradient they hover above the threshold. For ``optimizer: {name: sgd}``; null: there."""
    scaling: Literal["uniform", "sqrt_log", "inverse"] | None = None
    """Put a scaling before each layer (as scala does), and a BatchNorm behind each that has none: then train with
    ``optimizer: {name: sgd, lr: 1, momentum: 0}``. null: the network stays as it is."""


@section
class ShrinkNets(Cutting):
    """Switches: each unit is multiplied by a learnt factor under an L1 penalty, and goes for good once that is off."""

    name: Literal["shrinknets"] = "shrinknets"
    strength: NonNegative = 3e-3
    """The factor of the switches' absolute values in the loss of a mini-batch."""
    weight_strength: Positive = 1e-4
    """The factor of the penalty on all other parameters; without one the switches have no minimum. Leave
    ``optimizer.weight_decay`` 0: it would be for the switches, too."""
    power: OneOrTwo = 2
    """That penalty: the sum of absolute values (1) or of squares (2)."""
    rule: Literal["threshold", "sign_change", "sign_variance"] = "sign_variance"
    """When a switch is off: once it is close to 0; once it changes its sign; once the running variance of its sign is
    above 0.5."""
    threshold: Positive | None = None
    """With rule: threshold, where a switch is off: closer to 0 than this; null: 0.001."""
    gamma: Fraction | None = None
    """With rule: sign_variance, how slowly the running averages forget; null: 0.99."""
    init: Literal["positive", "uniform", "normal"] = "positive"
    """What switches are drawn from at the start: U(0, 1], U(-1, 1) or N(0, 1)."""


PruningConfig = Annotated[
    Annotated[NoPruning, Tag("none")]
    | Annotated[Scala, Tag("scala")]
    | Annotated[Scalp, Tag("scalp")]
    | Annotated[Norm, Tag("norm")]
    | Annotated[BnLasso, Tag("bn_lasso")]
    | Annotated[ShrinkNets, Tag("shrinknets")],
    by_name("none"),
]


def proximal(pruning: Cutting, optimizer: OptimizerConfig) -> bool:
    """Does the method take proximal steps? Where nothing is said: if they can be taken, and zeros come of them."""
    if not isinstance(pruning, Scalp | Norm | BnLasso):
        return False
    if pruning.proximal is not None:
        return pruning.proximal
    return isinstance(optimizer, Sgd) and not (isinstance(pruning, Norm) and pruning.penalty == "l2")
