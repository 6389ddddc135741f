"""The linear maps of a network, and the scales of its BatchNorms: what penalties are of."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal, NamedTuple

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from structlearn.alrao.heads import Heads
from structlearn.penalties.groups import Entries, Groups
from structlearn.scala import Scaled

if TYPE_CHECKING:
    from collections.abc import Sequence

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
    inputs: int
    """P, as :mod:`structlearn.penalties.factors` says."""


def axes_of(module: nn.Module, key: str) -> dict[Side, int] | None:
    """Of a parameter that belongs to one of torch's layers, by its name; None where it is no linear map."""
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


def inputs_of(module: nn.Module, tensor: nn.Parameter, out: int) -> int:
    """P of a tensor whose outputs are along an axis: how many weights a unit adds up; see factors.py for the ones."""
    if isinstance(module, (*COLUMNS, Scaled)):
        return 1
    if isinstance(module, Heads):
        return tensor.shape[2]
    parts = module.groups if isinstance(module, _ConvTransposeNd) else 1
    return tensor.numel() // (tensor.shape[out] * parts)


class Layer(NamedTuple):
    """Weights that are penalised with one factor."""

    name: str
    """Of the module."""
    tensor: nn.Parameter
    entries: dict[Side, Entries]
    """Whose weights are one unit's incoming ones ("out"), or one input's outgoing ones ("in"); none of scales."""
    inputs: int
    """P."""


def linear_maps(model: nn.Module) -> list[Layer]:
    """The weights of all linear maps of a network that are trained, each tensor once, under its first name.

    These are linear layers, convolutions, also transposed and grouped ones, recurrent layers, embeddings, their scaled
    forms (ScaLa) and Alrao's heads. Biases, normalisations and depthwise kernels are none of them, nor is what a module
    of one's own multiplies with, or attention (but for its output projection): of those torch does not say what is an
    input. Each tensor of a recurrent layer is a map by itself, with the gates of its cells as units; so is each head,
    and each group of a convolution's channels.
    """
    found: dict[int, Layer] = {}
    for name, module in model.named_modules():
        for key, parameter in module.named_parameters(recurse=False):
            if not parameter.requires_grad or id(parameter) in found or parameter.dim() < 2:
                continue
            if isinstance(module, Heads):
                own: dict[Side, Entries] = {"out": Entries((0, 1)), "in": Entries((0, 2))}
                if key == "weight":
                    found[id(parameter)] = Layer(name, parameter, own, inputs_of(module, parameter, 1))
            elif axes := axes_of(module, key):
                parts = module.groups if isinstance(module, _ConvNd) else 1
                own = {side: Entries((axis,) if parts == 1 else (0, axis + 1), parts) for side, axis in axes.items()}
                found[id(parameter)] = Layer(name, parameter, own, inputs_of(module, parameter, axes["out"]))
    return list(found.values())


def batch_norms(model: nn.Module) -> list[Layer]:
    """The scales of all BatchNorms of a network that are trained."""
    return [
        Layer(name, module.weight, {}, 1)
        for name, module in model.named_modules()
        if isinstance(module, _BatchNorm) and module.weight is not None and module.weight.requires_grad
    ]


def grouped(layers: Sequence[Layer], side: Side) -> Groups:
    """The weights of each layer by its units ("out") or by its inputs ("in"); nothing is shared between layers."""
    entries = [layer.entries[side] for layer in layers]
    counts = [_count(layer, side) for layer in layers]
    sizes = [layer.tensor.numel() // max(1, count) for layer, count in zip(layers, counts, strict=True)]
    device = layers[0].tensor.device
    index = torch.arange(sum(counts), device=device).split(counts)
    return Groups(entries, index, sum(counts), per_group(layers, side, sizes))


def per_group(layers: Sequence[Layer], side: Side, values: Sequence[float]) -> torch.Tensor:
    """[groups], float64: of each group of :func:`grouped` the value that its layer has."""
    counts = torch.tensor([_count(layer, side) for layer in layers])
    return torch.tensor(values, dtype=torch.float64).repeat_interleave(counts).to(layers[0].tensor.device)


def _count(layer: Layer, side: Side) -> int:
    """How many groups a layer has."""
    entries = layer.entries[side]
    whole = layer.tensor if entries.parts == 1 else layer.tensor.unflatten(0, (entries.parts, -1))
    count = 1
    for axis in entries.axes:
        count *= whole.shape[axis]
    return count
