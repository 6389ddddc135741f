"""What a run adds to its loss for the weights of its network."""

from typing import Annotated, Literal

from pydantic import Field, Tag

from hpc.config.types import Flag, Fraction, NonNegative, Text, by_name, section

Factors = Literal["bayesian", "usual"] | Annotated[dict[Text, NonNegative], Field(min_length=1)]


@section
class LayerPenalty:
    """What every penalty can be told. :mod:`structlearn.penalties` has them."""

    strength: NonNegative | None = None
    """The factor of the whole in the loss of a mini-batch; null: 1 over the number of training samples (of a text: of
    characters), as for a prior. What trains best may be 10 to 100 times less (``experiments/penalty_factors``)."""
    factors: Factors = "bayesian"
    """The factor of each layer: bayesian, by its size, so that the penalty is a prior from which weights could be
    drawn; usual, as they are without such a reason; or ``{LAYER: factor, ...}``, and layers that are not named are not
    penalised. In the formulas below P is the number of a unit's incoming weights; 1 behind a scaling (scala) and of
    embeddings. They follow cuts."""


@section
class KinkedPenalty(LayerPenalty):
    """What every penalty can be told that makes weights exactly 0."""

    proximal: Flag = False
    """Shrink weights by the penalty's proximal step after each step of the optimiser, in place of its gradient: so they
    become 0 exactly, and do not hover around it. For ``optimizer: {name: sgd}``."""


@section
class L2Penalty(LayerPenalty):
    """The sum of squares. Factors: bayesian P / 2; usual 1."""

    name: Literal["l2"]


@section
class L1Penalty(KinkedPenalty):
    """The sum of absolute values. Factors: bayesian the root of 2 P; usual 1."""

    name: Literal["l1"]


@section
class GroupLassoPenalty(KinkedPenalty):
    """The sum over units of the 2-norms of their incoming weights.

    Factors: bayesian the root of P (P + 1); usual the root of P.
    """

    name: Literal["group_lasso"]


@section
class ReversedGroupLassoPenalty(KinkedPenalty):
    """The sum over a layer's inputs of the 2-norms of the weights that go out of them.

    Factors: bayesian the root of P (n + 1), where n is the number of those weights; usual the root of n.
    """

    name: Literal["reversed_group_lasso"]


@section
class SparseGroupLassoPenalty(KinkedPenalty):
    """A mixture of l1 and group_lasso, each with its own factors."""

    name: Literal["sparse_group_lasso"]
    mix: Fraction = 0.5
    """The part of l1 in it."""


@section
class BnLassoPenalty(KinkedPenalty):
    """The sum of absolute values of the scales of BatchNorms. Factors: bayesian the root of 2; usual 1."""

    name: Literal["bn_lasso"]


PenaltyConfig = Annotated[
    Annotated[L2Penalty, Tag("l2")]
    | Annotated[L1Penalty, Tag("l1")]
    | Annotated[GroupLassoPenalty, Tag("group_lasso")]
    | Annotated[ReversedGroupLassoPenalty, Tag("reversed_group_lasso")]
    | Annotated[SparseGroupLassoPenalty, Tag("sparse_group_lasso")]
    | Annotated[BnLassoPenalty, Tag("bn_lasso")],
    by_name("none"),
]
