"""BN-Lasso: an L1 penalty on the scales of BatchNorm layers (network slimming, Liu and others 2017; W 3.5.3)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from structlearn.penalties import L1, Penalty
from structlearn.penalties.layers import batch_norms
from structlearn.pruning.penalised import Penalised
from structlearn.pruning.pruner import Verdict
from structlearn.structure.wide import wide_type

if TYPE_CHECKING:
    from torch import nn

    from structlearn.pruning.judged import Judged
    from structlearn.structure import Structure


class BnLasso(Penalised):
    """A penalty `strength` sum of abs(gamma) on the scales of all BatchNorm layers; channels with a small one go.

    A unit goes when the largest |gamma| that it passes is below `threshold`: where several layers normalise one set of
    channels (the ways into a residual sum, the layers behind a concatenation), all of them have given it up. Sets that
    pass no BatchNorm keep all their units. The channel goes with its shift: what a constant channel still said to the
    next layer is lost (W's plain removal).

    W's numbers: the same phases and learning rate as ScaLP; W table 3.1 has VGG19 on CIFAR-10 at 92.28 % with 783K of
    20M parameters, but no threshold and no strength. Liu and others use strengths of 1e-4 and 1e-5.

    Args:
        structure: Of a network that has BatchNorm layers with scales.
        strength: lambda, on the mean loss of a batch.
        threshold: Units go whose largest |gamma| is below this.
        proximal: As :class:`structlearn.pruning.penalised.Penalised` says. With SGD it should be True: Liu and others
            take subgradients, but choose a share of the channels after training, where here a threshold does.
        patience: W's 50 epochs.

    Raises:
        ValueError: a number is out of its range, or there is no such layer before or after units that can be cut.
    """

    def __init__(
        self,
        structure: Structure,
        *,
        strength: float,
        threshold: float = 0.001,
        proximal: bool = False,
        patience: int = 50,
    ) -> None:
        super().__init__(structure, strength=strength, threshold=threshold, proximal=proximal, patience=patience)
        scales = self._scales()
        places = (place.tensor for coupled in structure.sets.values() for place in coupled.places)
        if not any(tensor in scales for tensor in places):
            raise ValueError(
                "BN-Lasso needs BatchNorm layers with scales (affine=True) on channels that can be cut, and this "
                "network has none; use another method, or put BatchNorm layers into the network"
            )

    def _scales(self) -> dict[str, nn.Parameter]:
        norms = batch_norms(self.structure.model)
        return {f"{norm.name}.weight" if norm.name else "weight": norm.tensor for norm in norms}

    def _build(self) -> Penalty:
        return L1(list(self._scales().values()))

    def _verdict(self, name: str, judged: Judged) -> Verdict:
        scales, coupled = self._scales(), self.structure.sets[name]
        some, kind = next(iter(scales.values())), wide_type(*scales.values())
        largest = some.new_full((coupled.size + 1,), -torch.inf, dtype=kind)  # the last takes what is another set's
        for place in coupled.places:
            if place.tensor in scales:
                units = place.units.remainder(coupled.size + 1)
                largest.scatter_reduce_(0, units, scales[place.tensor].abs().to(kind), "amax")
        largest = largest[:-1]
        return Verdict(largest, (largest < self.threshold) & (largest >= 0))
