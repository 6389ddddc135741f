"""Switches multiplied into the nearest linear map, after training (S 3.6)."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Final

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from structlearn.flow import graph_of
from structlearn.shrinknets.attach import attached, detach
from structlearn.shrinknets.switch import Switch

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import fx

LINEAR: Final = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
_POOLS: Final = (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d, nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d,
                 nn.AdaptiveAvgPool3d)  # fmt: skip
_DROPOUTS: Final = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)


@torch.no_grad()
def fold(model: nn.Module) -> nn.Module:
    """The network without switches, in place; it computes what it did, up to rounding.

    A switch goes back into the BatchNorm, linear layer or convolution whose answer it scales; one that has none of
    these before it goes forward into the input columns of all layers behind it. It never crosses a non-linearity: with
    `theta > 0` a ReLU would allow it, but S says never. A dead channel becomes zeros; to have it cut, fold after the
    last cut.

    Raises:
        ValueError: a switch has no linear map beside it, or its weights serve elsewhere, too. Nothing is changed.
    """
    behind = [(name, layer) for name, layer in model.named_modules() if attached(layer) is not None]
    alone = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, Switch) and not any(module is attached(layer) for _, layer in behind)
    }
    found = _neighbours(model, alone) if alone else {}
    shared = _shared(model)
    for name, layer in behind:
        _check(name, layer, shared)
    for name, layers in found.items():
        for layer, _ in layers:
            _check(name, layer, shared)
    for _, layer in behind:
        switch = attached(layer)
        assert switch is not None
        scale_outputs(layer, switch.factor)
        detach(layer)
    for name, layers in found.items():
        for layer, forward in layers:
            (scale_inputs if forward else scale_outputs)(layer, alone[name].factor)
        parent, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(parent), leaf, nn.Identity())
    return model


def scale_outputs(layer: nn.Module, factor: Tensor) -> None:
    """Multiply what a linear layer, convolution or BatchNorm gives: its rows (or gamma) and bias, by [outputs]."""
    assert isinstance(layer.weight, Tensor)
    layer.weight.mul_(factor.view(-1, *[1] * (layer.weight.dim() - 1)))
    if isinstance(layer.bias, Tensor):
        layer.bias.mul_(factor)


def scale_inputs(layer: nn.Module, factor: Tensor) -> None:
    """Multiply what a linear layer or convolution is given: its columns, by [channels].

    A linear layer may have several columns in a row for each channel, of the positions of a flattened map.
    """
    assert isinstance(layer.weight, Tensor)
    if isinstance(layer, nn.Linear):
        layer.weight.mul_(factor.repeat_interleave(layer.in_features // len(factor)))
        return
    groups = int(getattr(layer, "groups", 1))
    columns = factor.view(groups, 1, -1, *[1] * (layer.weight.dim() - 2))
    layer.weight.mul_(columns.expand(-1, len(layer.weight) // groups, *[-1] * (columns.dim() - 2)).flatten(0, 1))


def _neighbours(model: nn.Module, switches: dict[str, Switch]) -> dict[str, list[tuple[nn.Module, bool]]]:
    """For each switch by name the layers that it goes into, and for each: is it forward, into the inputs?"""
    graph = graph_of(model)
    if graph is None:
        raise ValueError(
            f"the switches {', '.join(switches)} stand by themselves in a network that has no graph (its forward pass "
            f"depends on values), so that their neighbours cannot be known; place switches with shrinknets.adopt"
        )
    modules = dict(model.named_modules())
    calls = Counter(str(node.target) for node in graph.nodes if node.op == "call_module")
    found: dict[str, list[tuple[nn.Module, bool]]] = {}
    for node in graph.nodes:
        if node.op != "call_module" or (name := str(node.target)) not in switches:
            continue
        before = node.args[0]
        layer = modules.get(str(before.target)) if before.op == "call_module" else None
        if isinstance(layer, (*LINEAR, _BatchNorm)) and len(before.users) == 1:
            if switches[name].axis != (axis := -1 if isinstance(layer, nn.Linear) else 1):
                raise ValueError(
                    f"the switch {name} has axis={switches[name].axis}, but stands behind {before.target}, a "
                    f"{type(layer).__name__}: give it axis={axis}"
                )
            targets, found[name] = [before], [(layer, False)]
        else:
            targets = list(_behind(node, modules, switches[name]))
            found[name] = [(modules[str(target.target)], True) for target in targets]
        if calls[name] > 1 or any(calls[str(target.target)] > 1 for target in targets):
            raise ValueError(f"the switch {name} or a layer beside it is used more than once; it cannot be folded")
    if missing := switches.keys() - found.keys():
        raise ValueError(f"the switches {', '.join(sorted(missing))} are not used by the network; remove them")
    return found


def _behind(node: fx.Node, modules: dict[str, nn.Module], switch: Switch, *, flat: bool = False) -> Iterator[fx.Node]:
    """The layers that a value goes to, through nothing but linear maps that keep channels apart.

    Behind a flattening (`flat`) each channel of axis 1 is several features in a row.
    """
    for user in node.users:
        module = modules.get(str(user.target)) if user.op == "call_module" else None
        if isinstance(module, LINEAR) and _fits(module, switch, flat=flat):
            yield user
        elif isinstance(module, (nn.Identity, *_DROPOUTS)) or (switch.axis == 1 and isinstance(module, _POOLS)):
            yield from _behind(user, modules, switch, flat=flat)
        elif switch.axis == 1 and _flattens(user, module):
            yield from _behind(user, modules, switch, flat=True)
        else:
            raise ValueError(
                f"a switch is followed by {user.name} ({type(module).__name__ if module else user.target}) and has no "
                f"linear layer, convolution or BatchNorm of its own before it; it cannot cross a non-linearity: place "
                f"it before the activation"
            )
    if not node.users:
        raise ValueError(f"nothing follows {node.name}; a switch needs a linear layer or convolution beside it")


def _flattens(node: fx.Node, module: nn.Module | None) -> bool:
    """Are all axes from the channels' on made one?"""
    if isinstance(module, nn.Flatten):
        return module.start_dim == 1 and module.end_dim == -1
    return node.target in {torch.flatten, "flatten"} and node.args[1:] == (1,) and not node.kwargs


def _fits(layer: nn.Module, switch: Switch, *, flat: bool) -> bool:
    """Are the switch's channels the layer's inputs, each with as many columns?"""
    channels = len(switch.theta)
    if isinstance(layer, nn.Linear):
        return layer.in_features % channels == 0 if flat else switch.axis == -1 and layer.in_features == channels
    return not flat and switch.axis == 1 and int(layer.in_channels) == channels  # type: ignore[arg-type]


def _shared(model: nn.Module) -> set[int]:
    """Parameters that more than one module has, by identity."""
    count = Counter(id(parameter) for module in model.modules() for parameter in module.parameters(recurse=False))
    return {each for each, times in count.items() if times > 1}


def _check(name: str, layer: nn.Module, shared: set[int]) -> None:
    """A layer whose weights are its own, and that has some."""
    own = [parameter for parameter in (layer.weight, layer.bias) if parameter is not None]
    if layer.weight is None:
        raise ValueError(f"{name}: this {type(layer).__name__} has no weights to fold a switch into (affine=False)")
    if any(id(parameter) in shared for parameter in own):
        raise ValueError(f"{name}: its weights serve another layer, too, so no switch can be folded into them")
