"""ScaLP: scaled layers, a penalty on what is trained of them, and units that are sorted and cut (W 3.4)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal

import torch

from structlearn.checks import check_choice
from structlearn.penalties import L1, L2, GroupLasso, Penalty
from structlearn.penalties.proximal import check_proximal
from structlearn.pruning.penalised import Penalised
from structlearn.pruning.pruner import Verdict
from structlearn.pruning.sigmas import scaled_layers
from structlearn.pruning.weights import groups_of, weights_of
from structlearn.structure.wide import wide

if TYPE_CHECKING:
    from torch import Tensor

    from structlearn.pruning.judged import Judged
    from structlearn.structure import Structure

ScaledPenalty = Literal["l2", "l1", "group_lasso"]
PENALTIES: Final = ("l2", "l1", "group_lasso")


class ScaLP(Penalised):
    """Pruning with scaled layers (W 3.4): units far back in the scaling's sequence are harder to use, and go.

    In a training loop, beside what :class:`structlearn.pruning.Pruner` says::

        model = structlearn.scala.adopt(model, scaling="sqrt_log")
        structure = Structure(model, images[:2])
        pruner = ScaLP(structure, penalty="group_lasso", strength=1e-6)
        optimizer = torch.optim.SGD(model.parameters(), lr=1.0)

    The penalty is on w~, what is trained of a scaled layer; its effective weights are w = sigma w~, so units with a
    small sigma are penalised more. It is over all layers, the first and the last one too (W proposition 3):

    | penalty | its value |
    |---|---|
    | "l2" | sum w~^2 |
    | "l1" | sum of abs(w~) |
    | "group_lasso" | sum over units k of sqrt(sum over the outgoing w~ of k of w~^2), without a factor for its size |

    Biases, normalisations and depthwise kernels are not penalised. A group is over all layers that a unit goes into;
    the network's inputs are groups, too, but are never cut. Layers without a scaling (an LSTM's, say) have sigma = 1.

    After an epoch, from the last set of units to the first: units are sorted by m, the 2-norm of their outgoing w (for
    "l1" the 1-norm), the largest first; those whose average mbar is below `threshold` go: mbar^2 = m^2 / # (for "l1"
    mbar = m / #), # their outgoing weights. Weights towards units that go at the same moment count no more. Then the
    scalings are made anew and the function stays (:func:`structlearn.pruning.sigmas.renew`). This order has the least
    penalty (W propositions 4 and 5) where units go into one layer; where they go into several it is that of their use
    in all of them. In a chain of layers this is W's algorithm 3; in residual sums and cells, weights from a set into
    itself, or into one that comes before it, count in full.

    W's numbers: learning rate 1; VGG19 on CIFAR-10 with the group Lasso: strength 1.38e-5, 1.38e-6 (the best), 1.38e-7;
    2.95M to 0.4M of 20M parameters are left (W tables 3.1 and 3.2).

    Args:
        structure: Of a network with scaled layers; made after :func:`structlearn.scala.adopt`.
        penalty: "l2", "l1" or "group_lasso".
        strength: lambda, on the mean loss of a batch.
        threshold: W's epsilon, which W does not give; 0.001 is that of W 4.8.1.
        proximal: As :class:`structlearn.pruning.penalised.Penalised` says.
        patience: W's 50 epochs.

    Raises:
        ValueError: an unknown penalty, a number out of its range, proximal steps with "l2", which make no exact zeros,
            or a network without scaled layers or of which no weight is trained.
    """

    sorts = True

    def __init__(
        self,
        structure: Structure,
        *,
        penalty: ScaledPenalty = "group_lasso",
        strength: float,
        threshold: float = 0.001,
        proximal: bool = False,
        patience: int = 50,
    ) -> None:
        check_choice("penalty of ScaLP", penalty, PENALTIES)
        check_proximal(penalty, proximal=proximal)
        super().__init__(structure, strength=strength, threshold=threshold, proximal=proximal, patience=patience)
        self.penalty_name = penalty
        self._layers = {f"{name}.weight": layer for name, layer in scaled_layers(structure.model).items()}
        if not self._layers:
            raise ValueError(
                "ScaLP needs layers behind a scaling, and this network has none; call structlearn.scala.adopt(model) "
                "before Structure(model, example)"
            )
        weights_of(structure)

    def _build(self) -> Penalty:
        weights = weights_of(self.structure)
        tensors = [weight.tensor for weight in weights]
        if self.penalty_name == "group_lasso":
            return GroupLasso(tensors, groups_of(self.structure, weights, "in"))
        return L1(tensors) if self.penalty_name == "l1" else L2(tensors)

    def _verdict(self, name: str, judged: Judged) -> Verdict:
        sums, counts = judged.strengths(name, "in", self._magnitude)
        used = counts > 0
        means = torch.where(used, sums / counts, torch.inf)
        if self.penalty_name == "l1":
            return Verdict(sums, means < self.threshold)
        return Verdict(sums.sqrt(), means.sqrt() < self.threshold)

    def _magnitude(self, name: str, tensor: Tensor) -> Tensor:
        effective = wide(self._layers[name].effective()) if name in self._layers else tensor
        return effective.abs() if self.penalty_name == "l1" else effective.square()
