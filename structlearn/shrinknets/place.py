"""Where the switches of a network go."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from structlearn.checks import check_choice
from structlearn.shrinknets.attach import attach
from structlearn.shrinknets.fold import LINEAR
from structlearn.shrinknets.switch import INITS, Switch
from structlearn.structure import Structure
from structlearn.structure.modes import evaluating
from structlearn.structure.tracker import tensors

NORMS: Final = (_NormBase, nn.GroupNorm)


def adopt(model: nn.Module, example: Tensor | tuple[Any, ...], *, init: str = "positive") -> nn.Module:
    """Put switches into a network, in place; its modules and their parameters keep their names.

    They go behind the BatchNorm, before the activation; behind a linear layer or convolution that has none. In detail:
    behind each of these layers whose answer reaches the next layer (or a recurrent one) without another normalisation
    on the way, for that would cancel the switch's scale: behind a depthwise convolution's BatchNorm, and not also
    behind the one before; in a DenseNet behind those that its layers begin with. Units without switches, which are
    never killed: the network's answer and whatever else cannot be cut; a sum's terms (a residual network keeps the
    width of its shortcuts); cells of recurrent networks; units that reach some layer by a way without room for a
    switch.

    Switches start at random (:class:`Switch`), so the network's function changes.

    Args:
        model: Any network.
        example: A batch, or a tuple of arguments, as the network is called with; on its device.
        init: "positive" (U(0, 1]), "uniform" (U(-1, 1)) or "normal" (N(0, 1)).

    Raises:
        ValueError: there is no place for a switch, or the network has switches.
    """
    check_choice("init of switches", init, INITS)
    if any(isinstance(module, Switch) for module in model.modules()):
        raise ValueError("this network has switches already; adopt one that has none")
    modules = dict(model.named_modules())
    for name in (found := places(model, example)):
        layer = modules[name]
        assert isinstance(layer.weight, Tensor)
        switch = Switch(len(layer.weight), axis=-1 if isinstance(layer, nn.Linear) else 1, init=init)
        attach(layer, switch.to(layer.weight).train(layer.training))
    if not found:
        raise ValueError(
            "there is no place for a switch in this network: it needs a hidden linear layer or convolution whose units "
            "are in no sum with others"
        )
    return model


def places(model: nn.Module, example: Tensor | tuple[Any, ...]) -> list[str]:
    """The names of the layers that get a switch behind them, in the order of the network."""
    structure = Structure(model, example)
    modules = dict(model.named_modules())
    units = _units(structure, modules)
    open_to, points = _eligible(structure, modules), {}
    for name in _reaching(model, example, units.points, units.takers):
        points[name] = units.points[name]
    while blocked := {each for name, sets in points.items() if not sets <= open_to for each in sets & open_to}:
        open_to -= blocked
    return [name for name, sets in points.items() if sets and sets <= open_to]


class _Units(NamedTuple):
    """Layers by name."""

    points: dict[str, set[str]]
    """Those that a switch may stand behind, and the sets whose units they give; "" where some are in none."""
    takers: set[str]
    """Those that use units: behind them begins another layer's business."""


def _units(structure: Structure, modules: dict[str, nn.Module]) -> _Units:
    """Who gives which units, who takes them."""
    given: dict[str, set[str]] = {}
    known: dict[str, int] = {}
    takers = set()
    for name, coupled in structure.sets.items():
        for place in coupled.places:
            owner, _, key = place.tensor.rpartition(".")
            if place.role == "in":
                takers.add(owner)
            elif key == "weight" and place.axis == 0 and _gives(modules[owner], place.role):
                given.setdefault(owner, set()).add(name)
                known[owner] = known.get(owner, 0) + int((place.units >= 0).sum())
    points = {}
    for name, module in modules.items():
        if isinstance(module, (*LINEAR, *NORMS)) and isinstance(module.weight, Tensor) and not _depthwise(module):
            whole = known.get(name, 0) == len(module.weight)
            points[name] = given[name] if whole else {*given.get(name, ()), ""}
    return _Units(points, takers)


def _gives(module: nn.Module, role: str) -> bool:
    return isinstance(module, NORMS) if role == "along" else isinstance(module, LINEAR)


def _depthwise(module: nn.Module) -> bool:
    """A convolution that makes each channel of one channel: it is on the way of that channel's unit."""
    return isinstance(module, LINEAR) and 1 < int(getattr(module, "groups", 1)) == module.in_channels


def _eligible(structure: Structure, modules: dict[str, nn.Module]) -> set[str]:
    """The sets that one linear layer or convolution makes, and only layers use."""
    found = set()
    for name, coupled in structure.sets.items():
        makers = {place.tensor.rpartition(".")[0] for place in coupled.places if place.role == "out"}
        takers = {place.tensor.rpartition(".")[0] for place in coupled.places if place.role == "in"}
        alone = len(makers) == 1 and all(isinstance(modules[maker], LINEAR) for maker in makers)
        if alone and not any(next(modules[taker].children(), None) for taker in takers):
            found.add(name)
    return found


def _reaching(
    model: nn.Module, example: Tensor | tuple[Any, ...], points: dict[str, set[str]], takers: set[str]
) -> list[str]:
    """Those points whose answer reaches a taker, or the network's end, with no other point on the way.

    The example goes through the network; behind each point its way begins anew for autograd, which then knows what
    comes from where.
    """
    modules = dict(model.named_modules())
    begun: list[tuple[str, Tensor]] = []
    arrived: list[Tensor] = []

    def begin(name: str) -> Any:
        def hook(_module: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
            leaf = output.detach().requires_grad_()
            begun.append((name, leaf))
            return leaf.clone()  # what follows may work in place

        return hook

    def arrive(_module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        arrived.extend(
            each.clone() for each in (*inputs, *named.values()) if isinstance(each, Tensor) and each.requires_grad
        )

    with ExitStack() as stack:
        for name in points:
            stack.callback(modules[name].register_forward_hook(begin(name)).remove)
        for name in takers:
            stack.callback(modules[name].register_forward_pre_hook(arrive, with_kwargs=True).remove)
        stack.enter_context(evaluating(model))
        stack.enter_context(torch.enable_grad())
        answer = model(*example) if isinstance(example, tuple) else model(example)
    ends = [*arrived, *(each for each in tensors(answer) if each.requires_grad)]
    gradients = torch.autograd.grad([each.sum() for each in ends], [leaf for _, leaf in begun], allow_unused=True)
    return list(
        dict.fromkeys(name for (name, _), gradient in zip(begun, gradients, strict=True) if gradient is not None)
    )
