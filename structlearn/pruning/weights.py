"""What is penalised: the weights of a network, and the groups that they lie in."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from structlearn.structure.wide import line, wide

if TYPE_CHECKING:
    from collections.abc import Sequence

    from structlearn.structure import Structure

Side = Literal["in", "out"]
"""Of a unit's weights: "out" are its incoming ones, where its outputs are made; "in" its outgoing ones, where others
take it in. These are the roles of places in :mod:`structlearn.structure`."""

COLUMNS: Final = (nn.Embedding, nn.EmbeddingBag)


class Weight(NamedTuple):
    """One tensor of weights between inputs and outputs."""

    name: str
    tensor: nn.Parameter
    axes: dict[Side, int]
    """Where its inputs ("in") and its outputs ("out") are."""


class Groups:
    """A partition of weights into groups: each entry of one axis of each weight, with all behind it, is in one of them.

    Args:
        axes: For each weight, that axis.
        index: For each weight, int64 [length of that axis]: the group of each entry.
        count: How many groups there are; those of sets without such weights are empty.
        sizes: [groups], float64: how many numbers are in each.
    """

    def __init__(self, axes: Sequence[int], index: Sequence[Tensor], count: int, sizes: Tensor) -> None:
        self.axes, self.index, self.count, self.sizes = list(axes), list(index), count, sizes
        self._all = torch.cat(self.index)

    def sums(self, tensors: Sequence[Tensor]) -> Tensor:
        """[groups]: the sum over each group, of tensors shaped as the weights are; float32 or wider."""
        lines = torch.cat([line(wide(tensor), axis) for tensor, axis in zip(tensors, self.axes, strict=True)])
        return lines.new_zeros(self.count).index_add(0, self._all, lines)

    def norms(self, tensors: Sequence[Tensor]) -> Tensor:
        """[groups]: the 2-norm of each group; differentiable, with the gradient 0 where it is 0."""
        sums = self.sums([wide(tensor).square() for tensor in tensors])
        return torch.where(sums > 0, sums, 1.0).sqrt() * (sums > 0)

    def spread(self, values: Tensor, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Each group's value, for each of the tensors in a shape that broadcasts to its own."""
        parts = values[self._all].split([len(each) for each in self.index])
        return [
            part.view([-1 if each == axis else 1 for each in range(tensor.dim())])
            for part, axis, tensor in zip(parts, self.axes, tensors, strict=True)
        ]


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
            if parameter.dim() > 1 and (axes := _axes(module, key)):
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
        Weight(name, named[name], axes) for name, axes in found.items() if name in named and named[name].requires_grad
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
    return Groups(
        [weight.axes[side] for weight in weights], [each.to(device) for each in index], count, sizes.to(device)
    )


def _axes(module: nn.Module, key: str) -> dict[Side, int] | None:
    """Of a parameter that belongs to one of torch's layers, by its name."""
    leaf = key.rpartition(".")[2]
    if isinstance(module, nn.RNNBase):
        return {"in": 1, "out": 0} if leaf.startswith("weight") else None
    if leaf != "weight":
        return None
    if isinstance(module, COLUMNS):
        return {"in": 0, "out": 1}
    if isinstance(module, _ConvNd):
        if module.groups == module.in_channels > 1:
            return None
        return {"in": 0, "out": 1} if isinstance(module, _ConvTransposeNd) else {"in": 1, "out": 0}
    return {"in": 1, "out": 0} if isinstance(module, nn.Linear) else None
