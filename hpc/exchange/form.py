"""Names for numbers that lie side by side: what a flat tensor, or a message, holds of a network."""

from collections.abc import Mapping, Sequence
from typing import Final

import torch
from torch import nn
from torch.optim import Optimizer

from hpc.exchange.contents import averages_of, named_float_buffers

Key = tuple[str, int]
"""A tensor of a network by its name, and 0; or a running average of it: 1, 2, ... as the optimiser has them."""

OWN: Final = 0


def keyed(model: nn.Module, optimizer: Optimizer | None = None) -> dict[Key, torch.Tensor]:
    """Weights and float buffers, each followed by its running averages, by their keys."""
    found: dict[Key, torch.Tensor] = {}
    for name, parameter in model.named_parameters():
        found[name, OWN] = parameter.detach()
        averages = [] if optimizer is None else averages_of(optimizer, parameter)
        found |= {(name, place): average for place, average in enumerate(averages, 1)}
    return found | {(name, OWN): buffer for name, buffer in named_float_buffers(model).items()}


class Form:
    """The shapes and strides of tensors whose numbers lie side by side, each in the order of its memory.

    Args:
        tensors: by their keys, in the order in which they lie. One that fills no memory of its own has no place.
    """

    def __init__(self, tensors: Mapping[Key, torch.Tensor]) -> None:
        self._shapes = {key: (value.shape, value.stride()) for key, value in tensors.items()}

    def named(self, flat: torch.Tensor) -> dict[Key, torch.Tensor]:
        """Views of flat numbers as the tensors that they are; there may be more of them at the end."""
        found, at = {}, flat.storage_offset()
        for key, (shape, stride) in self._shapes.items():
            found[key] = flat.as_strided(shape, stride, at)
            at += shape.numel()
        return found

    @property
    def size(self) -> int:
        """How many numbers they are."""
        return sum(shape.numel() for shape, _ in self._shapes.values())


def flat_of(tensors: Mapping[Key, torch.Tensor], form: Form, like: torch.Tensor) -> torch.Tensor:
    """The numbers of tensors side by side as a form says, in a new tensor of another one's type, on its device."""
    flat = like.new_empty(form.size)
    for key, place in form.named(flat).items():
        place.copy_(tensors[key])
    return flat


def in_slices(keys: Sequence[Key], ends: Sequence[int]) -> list[list[Key]]:
    """The keys of each slice, as :func:`hpc.exchange.slices.slices_of` lays it out: tensors first, then their averages.

    Args:
        keys: as :func:`keyed` gives them.
        ends: for each slice, the number of tensors (not averages) before its end.
    """
    own = [name for name, which in keys if which == OWN]
    parts = []
    for first, last in zip([0, *ends], ends, strict=False):
        names = own[first:last]
        parts.append(
            [(name, OWN) for name in names] + [key for name in names for key in keys if key[0] == name and key[1]]
        )
    return parts
