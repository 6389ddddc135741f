"""A switch behind a layer, without another name for any of the layer's parameters."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from torch import nn

from structlearn.shrinknets.switch import Switch

if TYPE_CHECKING:
    from torch import Tensor

NAME: Final = "switch"
"""The switch is the layer's part of this name: `features.0` has `features.0.switch.theta`."""

_UNBATCHED: Final = (
    (nn.Conv1d, nn.InstanceNorm1d),
    (nn.Conv2d, nn.InstanceNorm2d),
    (nn.Conv3d, nn.InstanceNorm3d),
)
"""Layers that take one sample without an axis for the batch, too, one row for 2, 3 and 4 axes."""


def attach(layer: nn.Module, switch: Switch) -> None:
    """Let a layer's answer pass through a switch: the layer's part by the name `NAME`, called by a hook.

    So the network keeps its modules and the names of its parameters; a wrapper would rename them.
    """
    layer.add_module(NAME, switch)
    layer.register_forward_hook(_through)


def attached(layer: nn.Module) -> Switch | None:
    """The layer's switch; None where it has none."""
    part = getattr(layer, NAME, None)
    return part if isinstance(part, Switch) and _through in layer._forward_hooks.values() else None


def detach(layer: nn.Module) -> None:
    """Take the layer's switch away."""
    delattr(layer, NAME)
    for number, hook in list(layer._forward_hooks.items()):
        if hook is _through:
            del layer._forward_hooks[number]


def _through(layer: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
    """The hook; a function, so that it is copied and pickled with the layer."""
    switch = layer.get_submodule(NAME)
    single = any(isinstance(layer, kinds) and output.dim() == axes for axes, kinds in enumerate(_UNBATCHED, 2))
    passed: Tensor = switch(output.unsqueeze(0)).squeeze(0) if single else switch(output)
    return passed
