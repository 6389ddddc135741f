"""Weights drawn anew, for a training from the start."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING, Final

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd

from structlearn.flow import last_layer
from structlearn.models.activations import MaxMin, gain_of

if TYPE_CHECKING:
    from structlearn.structure import Structure

ANSWER: Final = "they are the network's answer"


@torch.no_grad()
def draw(model: nn.Module, structure: Structure) -> None:
    """Draw all layers of a network anew, as our own networks start, from torch's global generator.

    Linear layers and convolutions are normal with deviation gain / sqrt(fan_in), their biases zero; the gain is that of
    MaxMin, which is ReLU's: half of the second moment goes to each of its two parts, and there are twice as many.
    Output layers and all other layers of torch's start as torch has them. Parameters without a layer stay as they are.
    """
    ends = {name for name, why in structure.fixed.items() if why == ANSWER}
    ends.add(last_layer(model, (nn.Linear, _ConvNd)) or "")
    factor = gain_of(MaxMin())
    for name, module in model.named_modules():
        own = {key for key, _ in module.named_parameters(recurse=False)}
        if isinstance(module, nn.Linear | _ConvNd) and "weight" in own and name not in ends:
            fan_in = module.weight[0].numel()
            if isinstance(module, _ConvNd) and module.transposed:
                fan_in = module.in_channels // module.groups * prod(module.kernel_size)
            nn.init.normal_(module.weight, std=factor / fan_in**0.5)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif own and (again := getattr(module, "reset_parameters", getattr(module, "_reset_parameters", None))):
            again()
