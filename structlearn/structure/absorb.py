"""What removed units would still have said, where that is a constant, added to the next biases before the cut."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from structlearn.structure.modes import evaluating

if TYPE_CHECKING:
    from collections.abc import Callable

    from structlearn.structure.plan import Plan
    from structlearn.structure.structure import Structure

CONVOLUTIONS: Final = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TOLERANCE: Final = 1e-6
"""An input is constant whose values are this close together, relative to 1 + the largest of them."""


@dataclass
class Absorbed:
    """What has become of the entries that go.

    Attributes:
        into: For each bias or running mean that was changed: how many inputs it has absorbed.
        lost: For each weight with entries that go while their inputs are not zero, and that could not be absorbed: how
            many. They are not constant, or the layer has neither a bias nor a BatchNorm behind it.
    """

    into: dict[str, int] = field(default_factory=dict)
    lost: dict[str, int] = field(default_factory=dict)


@torch.no_grad()
def absorb(structure: Structure, plan: Plan, example: Tensor | tuple[Any, ...]) -> Absorbed:
    """Add to the next biases what the units that a plan removes contribute, where their value is constant.

    A unit whose incoming weights are zero still is the constant that its bias and activation make of it; one behind a
    dead switch is what the activation makes of 0. Call this right before `structure.apply(plan)`: the network then
    computes afterwards what it did before. Exact for linear and recurrent layers, and for convolutions wherever their
    window lies within the map: at a padded border the padding's zeros are no constant channel's. A convolution without
    bias gives it to the running mean of the BatchNorm right behind it (which in training takes the batch's own).

    Args:
        structure: Of the network.
        plan: What is to be cut.
        example: A batch, or a tuple of arguments, as the network is called with; on its device. Inputs are constant
            that are so in it: give one that is large enough.

    Raises:
        ValueError: the plan is none for this network as it is now.
    """
    structure.check(plan)
    modules = dict(structure.model.named_modules())
    leaving = _leaving(structure, plan)
    seen = _observe(structure.model, {name: modules[name] for name in leaving}, example)
    done = Absorbed()
    for name, goes in leaving.items():
        layer, weight = modules[name], f"{name}.{_weight(modules[name])}"
        if name not in seen.low:
            done.lost[weight] = int(goes.sum())
            continue
        low, high = seen.low[name], seen.high[name]
        constant = high - low <= TOLERANCE * (1 + high.abs())
        value = (low + high) / 2
        told = goes & ~(constant & (value == 0))
        given = torch.where(goes & constant, value, 0.0)
        bias, norm = getattr(layer, _bias(layer), None), seen.norms.get(name)
        if bias is not None:
            bias += _contribution(layer, given, switched=False)
            into = f"{name}.{_bias(layer)}"
        elif norm is not None:
            running = modules[norm].running_mean
            assert isinstance(running, Tensor)
            running -= _contribution(layer, given, switched=True)
            into = f"{norm}.running_mean"
        else:
            constant = torch.zeros_like(constant)
        if count := int((told & constant).sum()):
            done.into[into] = done.into.get(into, 0) + count
        if count := int((told & ~constant).sum()):
            done.lost[weight] = count
    return done


def _leaving(structure: Structure, plan: Plan) -> dict[str, Tensor]:
    """For each layer that uses units which go: [its inputs], bool."""
    modules = dict(structure.model.named_modules())
    found: dict[str, Tensor] = {}
    for name, keep in plan.keep.items():
        coupled = structure.sets[name]
        for place in coupled.places:
            owner, _, key = place.tensor.rpartition(".")
            if place.role != "in" or key != _weight(modules[owner]):
                continue
            gone = torch.ones(coupled.size + 1, dtype=torch.bool, device=place.units.device)
            gone[list(keep)] = False
            gone[-1] = False
            goes = gone[place.units.remainder(coupled.size + 1)].repeat(int(getattr(modules[owner], "groups", 1)))
            found[owner] = found[owner] | goes if owner in found else goes
    return {name: goes for name, goes in found.items() if goes.any()}


@dataclass
class _Seen:
    """Of each layer, by name: the extremes of each input, [inputs]; and the BatchNorm that its answer goes to."""

    low: dict[str, Tensor] = field(default_factory=dict)
    high: dict[str, Tensor] = field(default_factory=dict)
    norms: dict[str, str] = field(default_factory=dict)
    _answers: list[tuple[str, Tensor]] = field(default_factory=list)

    def look(self, name: str, layer: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any], output: Any) -> None:
        """A layer has been called."""
        axis = -1 - len(layer.kernel_size) if isinstance(layer, CONVOLUTIONS) else -1  # with or without a batch
        flat = _given(inputs, named).movedim(axis, -1).flatten(0, -2)
        low, high = flat.amin(0), flat.amax(0)
        self.low[name] = torch.minimum(self.low.get(name, low), low)
        self.high[name] = torch.maximum(self.high.get(name, high), high)
        self._answers.append((name, output))

    def meet(self, norm: str, _layer: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        """A BatchNorm is about to be called."""
        given = _given(inputs, named)
        self.norms.update({name: norm for name, answer in self._answers if answer is given})


def _given(inputs: tuple[Any, ...], named: dict[str, Any]) -> Tensor:
    """What a layer of torch's is called with, by position or by name."""
    given: Tensor = inputs[0] if inputs else named["input"]
    return given


def _observe(model: nn.Module, layers: dict[str, nn.Module], example: Tensor | tuple[Any, ...]) -> _Seen:
    """Send the example through the network, in evaluation."""
    seen = _Seen()
    with ExitStack() as stack:
        for name, layer in layers.items():
            stack.callback(layer.register_forward_hook(partial(seen.look, name), with_kwargs=True).remove)
        for name, module in model.named_modules():
            if isinstance(module, _BatchNorm) and module.running_mean is not None:
                hook = partial(seen.meet, name)
                stack.callback(module.register_forward_pre_hook(hook, with_kwargs=True).remove)
        stack.enter_context(evaluating(model))
        model(*example) if isinstance(example, tuple) else model(example)
    return seen


def _weight(layer: nn.Module) -> str:
    """The parameter whose columns are a layer's inputs; nothing for a layer of which that is not known."""
    if isinstance(layer, nn.RNNBase):
        return "weight_ih_l0" if layer.num_layers == 1 and not layer.bidirectional else ""
    return "weight" if isinstance(layer, (nn.Linear, *CONVOLUTIONS)) else ""


def _bias(layer: nn.Module) -> str:
    return "bias_ih_l0" if isinstance(layer, nn.RNNBase) else "bias"


def _contribution(layer: nn.Module, given: Tensor, *, switched: bool) -> Tensor:
    """[outputs]: what a layer makes of constant inputs, less what it makes of none, away from borders.

    The layer itself is asked, so a scaling in it counts. `switched`: with what hooks make of its answer.
    """
    if isinstance(layer, nn.RNNBase):
        weight = layer.weight_ih_l0
        assert isinstance(weight, Tensor)
        return weight @ given
    call: Callable[[Tensor], Tensor] = layer if switched else layer.forward
    if not isinstance(layer, CONVOLUTIONS):
        both = call(torch.stack([given, torch.zeros_like(given)]))
        return both[0] - both[1]
    sides, at = [], []
    for axis, kernel in enumerate(layer.kernel_size):
        span = layer.dilation[axis] * (kernel - 1) + 1
        same = {"same": (span - 1) // 2, "valid": 0}
        pad = same[layer.padding] if isinstance(layer.padding, str) else layer.padding[axis]
        first = -(-pad // layer.stride[axis])  # the first window that begins within the map
        at.append(first)
        sides.append(max(first * layer.stride[axis] - pad + span, pad + 1))  # reflected padding asks for more than pad
    maps = given.view(1, -1, *[1] * len(sides)).expand(1, -1, *sides)
    answers = call(torch.cat([maps, torch.zeros_like(maps)]))
    for place in at:
        answers = answers.select(2, place)
    return answers[0] - answers[1]
