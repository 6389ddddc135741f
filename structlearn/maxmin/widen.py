"""Layers that take more channels than they did."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from structlearn.structure.attributes import set_sizes


def inputs_of(layer: nn.Module) -> tuple[int, int] | None:
    """(how many channels a layer takes, on which axis of its input); None for layers that cannot be widened."""
    own = {key for key, _ in layer.named_parameters(recurse=False)}
    match layer:
        case nn.Linear() if "weight" in own:
            return layer.in_features, -1
        case _ConvNd() if "weight" in own and (layer.groups == 1 or _depthwise(layer)):
            return layer.in_channels, -1 - len(layer.kernel_size)
        case _NormBase():
            return layer.num_features, 1
        case nn.PReLU() if layer.num_parameters > 1:
            return layer.num_parameters, 1
    return None


@torch.no_grad()
def widen(layer: nn.Module, new: Tensor) -> list[str]:
    """Have a layer take further channels, so that its answer stays as it is.

    Weights of new channels are 0. In layers that keep channels apart these get what the layer starts with: BatchNorms
    scale 1, depthwise convolutions random filters (of their new outputs, too, nobody takes anything).

    Args:
        layer: One that `inputs_of` knows.
        new: [channels that come in now], bool: which of them the layer does not know.

    Returns:
        The names of the parameters and buffers that have grown.
    """
    apart = isinstance(layer, _ConvNd) and layer.groups > 1
    match layer:
        case _ConvNd() if apart:
            many = layer.out_channels // layer.groups
            rows = new if layer.transposed else new.repeat_interleave(many)
            filters = torch.randn_like(_grown(layer.weight, rows, 0, 0.0))
            changes = {"weight": (rows, 0, filters * (2 / layer.weight[0, 0].numel()) ** 0.5)}
            if layer.bias is not None:
                changes["bias"] = (new.repeat_interleave(many), 0, 0.0)
        case _ConvNd():
            changes = {"weight": (new, 0 if layer.transposed else 1, 0.0)}
        case nn.Linear():
            changes = {"weight": (new, 1, 0.0)}
        case nn.PReLU():
            changes = {"weight": (new, 0, layer.init)}
        case _:
            start = {"weight": 1.0, "bias": 0.0, "running_mean": 0.0, "running_var": 1.0}
            changes = {key: (new, 0, value) for key, value in start.items() if getattr(layer, key) is not None}
    for key, (which, axis, value) in changes.items():
        before = getattr(layer, key)
        grown = _grown(before, which, axis, value)
        setattr(layer, key, nn.Parameter(grown, before.requires_grad) if isinstance(before, nn.Parameter) else grown)
    set_sizes(layer, depthwise=apart)
    if isinstance(layer, _NormBase):
        layer.num_features = len(new)  # where it has neither weights nor statistics
    return list(changes)


def _depthwise(layer: _ConvNd) -> bool:
    return layer.groups == layer.in_channels


def _grown(before: Tensor, new: Tensor, axis: int, value: float | Tensor) -> Tensor:
    """A tensor with further entries along an axis, which have this value; in the same memory format."""
    shape = list(before.shape)
    shape[axis] = len(new)
    last = {4: torch.channels_last, 5: torch.channels_last_3d}.get(before.dim(), torch.contiguous_format)
    keeps = not before.is_contiguous() and before.is_contiguous(memory_format=last)
    grown = before.new_zeros(shape) + value
    grown.index_copy_(axis, (~new).nonzero().flatten().to(before.device), before.detach())
    return grown.contiguous(memory_format=last if keeps else torch.contiguous_format)
