"""Dropout before layers of any network (M; Srivastava and others 2014)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx, nn

from structlearn.alrao import Alrao, Heads
from structlearn.checks import check_share
from structlearn.flow import chain_of, graph_of
from structlearn.regularizers.regularizer import Regularizer, unhook

if TYPE_CHECKING:
    from collections.abc import Iterable


class Dropout(Regularizer):
    """Entries of what comes into some layers are 0 with a chance, and else divided by what is left of 1.

    So their expectation is the entry, and evaluation goes without (M multiplies weights by the chance to stay at test
    time instead: the same network).

    Args:
        model: The network.
        rate: The chance that an entry drops out.
        layers: Names of layers, of any kind that takes floating-point numbers; by default all linear ones (Alrao's
            heads among them) but those that see the network's own input, which is data.

    Raises:
        ValueError: the rate is not in [0, 1), there is no such layer, or the network has this already.
    """

    def __init__(self, model: nn.Module, rate: float, *, layers: Iterable[str] | None = None) -> None:
        super().__init__(model)
        self.rate = check_share("rate", rate, zero=True)
        self.layers = _named(model, layers) if layers is not None else behind_others(model)
        if not self.layers:
            raise ValueError(
                "dropout acts before linear layers that another layer feeds, and this network has none; name layers of "
                "it, or leave dropout out"
            )
        drop = _Drop(self.rate)
        for name in self.layers:
            layer = model.get_submodule(name)
            if any(isinstance(getattr(hook, "__self__", None), _Drop) for hook in layer._forward_pre_hooks.values()):  # noqa: SLF001
                raise ValueError(f"there is dropout before {name} already; attach it once, with all layers")
        for name in self.layers:
            model.get_submodule(name).register_forward_pre_hook(drop.before)

    def remove(self) -> None:
        """Take the hooks away."""
        for name in self.layers:
            unhook(self.model.get_submodule(name), _Drop)


class _Drop:
    def __init__(self, rate: float) -> None:
        self._rate = rate

    def before(self, layer: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...] | None:
        """The layer is called."""
        if not layer.training:
            return None
        if not (inputs and isinstance(inputs[0], Tensor) and inputs[0].is_floating_point()):
            got = inputs[0].dtype if inputs and isinstance(inputs[0], Tensor) else "no tensor"
            raise ValueError(
                f"dropout before a layer of the kind {type(layer).__name__} got {got}; it is for floating-point "
                f"numbers: name the layer behind instead"
            )
        return torch.nn.functional.dropout(inputs[0], self._rate), *inputs[1:]


def _named(model: nn.Module, layers: Iterable[str]) -> list[str]:
    known, found = dict(model.named_modules()), [layers] if isinstance(layers, str) else list(layers)
    if len(set(found)) < len(found) or not found:
        raise ValueError(f"dropout: layers names {found or 'no layer'}; name each once, or leave it out for all")
    for name in found:
        if not name or name not in known:
            raise ValueError(
                f"dropout before {name!r}: this network has no such layer; its linear ones are "
                f"{', '.join(_linear(model)) or 'none'}"
            )
    return found


def _linear(model: nn.Module) -> list[str]:
    return [name for name, layer in model.named_modules() if isinstance(layer, nn.Linear | Heads)]


def behind_others(model: nn.Module) -> list[str]:
    """The linear layers that see what other layers with weights have made, by name.

    By the network's graph; where it has none, as if layers came one after the other as registered.
    """
    alrao = isinstance(model, Alrao)
    inner = model.model if isinstance(model, Alrao) else model
    graph = graph_of(inner) or chain_of(inner)
    modules, raw, fed = dict(inner.named_modules()), set[fx.Node](), set[str]()
    linear = _linear(inner)
    for node in graph.nodes:
        before = node.all_input_nodes
        data = node.op == "placeholder" or (bool(before) and all(each in raw for each in before))
        if node.op == "call_module":
            name = str(node.target)
            if name in linear and not data:
                fed.add(name)
            data = data and next(modules[name].parameters(), None) is None
        if data:
            raw.add(node)
    return [f"model.{name}" if alrao else name for name in linear if name in fed]
