"""New scalings for layers whose inputs have been cut or permuted (W 3.4.2, step 3)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from structlearn.scala import Scaled, rescale

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer

    from structlearn.structure import Cut, Structure


def renew(structure: Structure, cut: Cut, optimizer: Optimizer | None = None) -> None:
    """Give the scaled layers that a cut has changed the sigmas of their inputs as they are now; the function stays.

    A unit's place in the sequence is that in its set, so all its entries have one sigma: all positions of a flattened
    channel, both halves behind MaxMin. Where several sets are concatenated each begins at the sequence's start, and the
    rule for the sum of squares is kept by the whole input: no set is favoured, and the units of one do not change their
    places when another is cut. Inputs that are never cut follow each other in the order that they have.

    Args:
        structure: After the cut.
        cut: What it was. Its `factors` are filled in: what each layer's weights were multiplied with.
        optimizer: Its state is mended as :func:`structlearn.scala.rescale` says.
    """
    changed = set(cut.names)
    layers = scaled_layers(structure.model)
    ranks = _ranks(structure, {name for name in layers if f"{name}.scale" in changed})
    for name, places in ranks.items():
        layer = layers[name]
        before = layer.scale.clone()
        rescale(layer, layer.sigma(places), optimizer)
        cut.factors[f"{name}.weight"] = layer.spread(before / layer.scale)
        cut.factors[f"{name}.scale"] = layer.scale / before


def scaled_layers(model: nn.Module) -> dict[str, Scaled]:
    """The layers of a network that are behind a scaling, by name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, Scaled)}


def _ranks(structure: Structure, names: set[str]) -> dict[str, Tensor]:
    """For each of these layers: the place of each input in its set; int64, on the host."""
    found = {name: torch.full((len(structure.model.get_buffer(f"{name}.scale")),), -1) for name in sorted(names)}
    for coupled in structure.sets.values():
        for place in coupled.places:
            layer, _, leaf = place.tensor.rpartition(".")
            if leaf == "scale" and layer in names:
                units = place.units.cpu()
                found[layer] = torch.where(units >= 0, units, found[layer])
    for ranks in found.values():
        never = ranks < 0
        ranks[never] = torch.arange(int(never.sum()))
    return found
