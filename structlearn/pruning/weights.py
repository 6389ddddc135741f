"""What is penalised: the weights of a network, and the groups that they lie in, by its structure."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from structlearn.penalties import Entries, Groups
from structlearn.penalties.layers import Side, Weight, axes_of, inputs_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from structlearn.structure import Structure


def weights_of(structure: Structure) -> list[Weight]:
    """All tensors of weights that are trained, those between units that are never cut among them.

    These are the weights of linear maps: of linear layers, convolutions, recurrent layers and embeddings (which are
    linear maps of symbols), and whatever else has an axis of inputs or outputs that can be cut. What acts on each
    channel by itself is none of them: biases, normalisations, depthwise kernels; W penalises weights alone.

    Raises:
        ValueError: there are none: all are frozen.
    """
    model = structure.model
    found: dict[str, dict[Side, int]] = {}
    for prefix, module in model.named_modules():
        for key, parameter in module.named_parameters(prefix, recurse=False):
            if parameter.dim() > 1 and (axes := axes_of(module, key)):
                found[key] = axes
    for coupled in structure.sets.values():
        for place in coupled.places:
            if place.role != "along" and model.get_parameter(place.tensor).dim() > 1:
                axes = found.setdefault(place.tensor, {"in": 1, "out": 0})
                other: Side = "out" if place.role == "in" else "in"
                if axes[place.role] != place.axis:
                    axes[place.role], axes[other] = place.axis, int(place.axis == 0)
    named = dict(model.named_parameters())  # a shared weight once, under its first name
    weights = [
        Weight(
            name, named[name], axes, inputs_of(model.get_submodule(name.rpartition(".")[0]), named[name], axes["out"])
        )
        for name, axes in found.items()
        if name in named and named[name].requires_grad
    ]
    if not weights:
        raise ValueError(
            f"no weight of this network is trained (requires_grad is False for all {len(found)}), so there is nothing "
            f"to penalise; let some be trained"
        )
    return weights


def groups_of(structure: Structure, weights: Sequence[Weight], side: Side) -> Groups:
    """The weights by units: the incoming ones of each unit are a group ("out"), or the outgoing ones ("in").

    A unit's group holds all its weights, in all tensors that its set ties together: both ways into a residual sum, all
    layers that a concatenation feeds, all gates of a cell, all places of a flattened channel. Inputs and outputs that
    are never cut (those of the network, above all) are a group each, layer by layer.
    """
    index = [torch.full((weight.tensor.shape[weight.axes[side]],), -1) for weight in weights]
    numbers = {weight.name: number for number, weight in enumerate(weights)}
    count = 0
    for coupled in structure.sets.values():
        for place in coupled.places:
            number = numbers.get(place.tensor)
            if number is not None and place.role == side and place.axis == weights[number].axes[side]:
                units = place.units.cpu()
                index[number] = torch.where(units >= 0, units + count, index[number])
        count += coupled.size
    for each in index:
        free = each < 0
        each[free] = torch.arange(count, count + int(free.sum()))
        count += int(free.sum())
    each_size = [weight.tensor.numel() // len(own) for weight, own in zip(weights, index, strict=True)]
    lengths = torch.tensor([len(own) for own in index])
    sizes = torch.zeros(count, dtype=torch.float64).index_add(
        0, torch.cat(index), torch.tensor(each_size, dtype=torch.float64).repeat_interleave(lengths)
    )
    device = weights[0].tensor.device
    entries = [Entries((weight.axes[side],)) for weight in weights]
    return Groups(entries, [each.to(device) for each in index], count, sizes.to(device))


def inputs_by_group(groups: Groups, weights: Sequence[Weight], side: Side) -> Tensor:
    """[groups], float64: P of each group of :func:`groups_of` (:mod:`structlearn.penalties.factors`).

    Of incoming weights it is the sum over all places of them, so that all that a unit adds up has together the second
    moment 1: over both ways into a residual sum, over all gates of a cell. Outgoing weights lie in other units; where
    these have different P it is the harmonic mean, weighted by how many weights there are, so that the group has the
    second moment that its weights have together by their own P.
    """
    index = [each.cpu() for each in groups.index]
    lengths = torch.tensor([len(each) for each in index])
    inputs = torch.tensor([weight.inputs for weight in weights], dtype=torch.float64)
    if side == "in":
        sizes = torch.tensor([weight.tensor.numel() for weight in weights], dtype=torch.float64) / lengths
        inputs = sizes / inputs
    found = torch.zeros(groups.count, dtype=torch.float64)
    found.index_add_(0, torch.cat(index), inputs.repeat_interleave(lengths))
    found = found.to(groups.sizes.device)
    return found if side == "out" else torch.where(found > 0, groups.sizes / found, 0.0)
