"""A switch behind a layer, without another name for any of the layer's parameters."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from structlearn.shrinknets.switch import Switch

if TYPE_CHECKING:
    from torch import Tensor, nn

NAME: Final = "switch"
"""The switch is the layer's part of this name: `features.0` has `features.0.switch.theta`."""


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
    passed: Tensor = layer.get_submodule(NAME)(output)
    return passed
