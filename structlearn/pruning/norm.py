"""Pruning by the norms of unscaled weights, under the usual penalties (W 3.5.3, 4.5, 4.8.1)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal

from structlearn.checks import check_choice
from structlearn.penalties import L1, L2, GroupLasso, Penalty, SparseGroupLasso
from structlearn.penalties.factors import RULES, Rule, of_magnitudes, of_norms, of_squares
from structlearn.penalties.proximal import check_proximal
from structlearn.pruning.penalised import Penalised
from structlearn.pruning.pruner import Verdict
from structlearn.pruning.weights import groups_of, inputs_by_group, weights_of

if TYPE_CHECKING:
    from structlearn.penalties.layers import Side
    from structlearn.pruning.judged import Judged
    from structlearn.structure import Structure

NormPenalty = Literal["l2", "l1", "group_lasso", "sparse_group_lasso", "reversed_group_lasso"]
PENALTIES: Final = ("l2", "l1", "group_lasso", "sparse_group_lasso", "reversed_group_lasso")


class Norm(Penalised):
    """A penalty on the weights; a unit goes when the norm of its incoming weights has become small (W 4.8.1).

    | penalty | its value | a unit goes by |
    |---|---|---|
    | "l2" | sum f w^2 | its incoming weights |
    | "l1" | sum f abs(w) | its incoming weights |
    | "group_lasso" | sum over units of f times the norm of the incoming weights | its incoming weights |
    | "sparse_group_lasso" | `mix` times l1 plus 1 - `mix` times group_lasso | its incoming weights |
    | "reversed_group_lasso" | sum over units of f times the norm of the outgoing ones | its outgoing weights |

    The factors f are those of :mod:`structlearn.penalties.factors`: "usual" (1, and the root of how many weights are in
    the group), or those that W derives from priors. P is a unit's incoming weights in all its places together; for l2,
    l1 and outgoing weights, in each tensor by itself. Penalties are over all layers: the answer's units and the
    network's inputs are groups, too, but are never cut. Biases, normalisations and depthwise kernels are not penalised.

    Norms are 2-norms, and not averaged. A unit's weights are those of all layers that its set ties together: behind a
    residual sum a channel goes when everything that makes it has gone. In the reversed kind, weights towards units that
    go at the same moment count no more.

    A unit whose incoming weights are zero may still be the constant that its bias makes of it; it is removed with it.

    W's numbers: threshold 0.001; for the usual factors strengths from 1e-6 to 10^-2.5 in steps of 10^0.5, for the
    Bayesian ones from 10^-2.5 to 10^0.5 over the number of training samples (W 4.8.2), and the learning rate tuned for
    each, between 1e-4 and 1e-2.

    Args:
        structure: Of the network.
        penalty: See above.
        strength: lambda, on the mean loss of a batch.
        factors: f, see above; of the network as it is after each cut.
        threshold: Units go whose norm is at most this.
        proximal: As :class:`structlearn.pruning.penalised.Penalised` says. With SGD it should be True (but for "l2",
            which makes no exact zeros): by subgradients norms hover above the threshold, the further the larger the
            learning rate, and few units go, or none (``experiments/pruning_pareto`` has both).
        mix: W's alpha: how much of the sparse group Lasso is an L1 penalty; 0.5 in W. The others do not use it.
        patience: W's 50 epochs.

    Raises:
        ValueError: an unknown penalty or rule, a number out of its range, proximal steps with "l2", which make no exact
            zeros, or a network of which no weight is trained.
    """

    def __init__(
        self,
        structure: Structure,
        *,
        penalty: NormPenalty = "group_lasso",
        strength: float,
        factors: Rule = "usual",
        threshold: float = 0.001,
        proximal: bool = False,
        mix: float = 0.5,
        patience: int = 50,
    ) -> None:
        check_choice("penalty", penalty, PENALTIES)
        check_choice("rule for factors", factors, RULES)
        check_proximal(penalty, proximal=proximal)
        if not 0 <= mix <= 1:
            raise ValueError(
                f"mix is the share of the L1 penalty, from 0 to 1, got {mix!r}; use 0.5, as the source does"
            )
        super().__init__(structure, strength=strength, threshold=threshold, proximal=proximal, patience=patience)
        self.penalty_name, self.factors, self.mix = penalty, factors, float(mix)
        weights_of(structure)

    @property
    def side(self) -> Side:
        """By which of its weights a unit goes: "out" for the incoming ones, "in" for the outgoing ones."""
        return "in" if self.penalty_name == "reversed_group_lasso" else "out"

    def _build(self) -> Penalty:
        weights = weights_of(self.structure)
        tensors = [weight.tensor for weight in weights]
        if self.penalty_name == "l2":
            return L2(tensors, [of_squares(self.factors, weight.inputs) for weight in weights])
        l1 = L1(tensors, [of_magnitudes(self.factors, weight.inputs) for weight in weights])
        if self.penalty_name == "l1":
            return l1
        groups = groups_of(self.structure, weights, self.side)
        factors = of_norms(self.factors, inputs_by_group(groups, weights, self.side), groups.sizes)
        group_lasso = GroupLasso(tensors, groups, factors)
        return SparseGroupLasso(l1, group_lasso, self.mix) if self.penalty_name == "sparse_group_lasso" else group_lasso

    def _verdict(self, name: str, judged: Judged) -> Verdict:
        norms = judged.strengths(name, self.side, lambda _, tensor: tensor.square()).sums.sqrt()
        return Verdict(norms, norms <= self.threshold)
