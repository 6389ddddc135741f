"""Any network with scaled layers in the place of its plain ones, and back."""

from __future__ import annotations

import copy
from collections import Counter
from typing import TYPE_CHECKING, Final

import torch
from torch import Tensor, fx, nn

from structlearn.checks import check_choice
from structlearn.flow import chain_of, followed, graph_of, reached
from structlearn.scala.layers import SCALED, Scaled
from structlearn.scala.sequences import SEQUENCES
from structlearn.scala.sequences import scaling as factors
from structlearn.scala.variance import wanted_variance
from structlearn.units import NORMS

if TYPE_CHECKING:
    from collections.abc import Mapping

BATCH_NORMS: Final[Mapping[type[nn.Module], type[nn.Module]]] = {
    nn.Linear: nn.BatchNorm1d,
    nn.Conv1d: nn.BatchNorm1d,
    nn.Conv2d: nn.BatchNorm2d,
    nn.Conv3d: nn.BatchNorm3d,
}


def adopt(
    model: nn.Module,
    *,
    scaling: str = "sqrt_log",
    keep_function: bool = False,
    batch_norm: bool = False,
    s2: float | None = None,
    tau_b2: float = 0.0,
) -> nn.Module:
    """Put every linear layer and convolution behind a scaling of its inputs, so that learning rate 1 suits any width.

    The layers are changed in place and stay the same objects, with the same parameters: an optimiser made before still
    holds them. The order in which their inputs take the places of the sequence is that of the units they come from
    (`ranks` of :func:`structlearn.scala.scaling`).

    Layers that see the network's own inputs are always scaled uniformly (W 3.4.3, case l = 0). Each layer's s^2 comes
    from the activation that its values reach first: 2 for ReLU, 1 where there is none before the next layer, for others
    1 / E[phi(Z)^2] (W has the first two; this is how our models are initialised). The output layer has s^2 = 1 whatever
    follows it. Where the forward pass depends on values, so that it has no graph, a layer is taken to be followed by
    what is registered after it; there each needs an activation that is a module, or `s2`.

    W (3.3.4) normalises the inputs of all layers: the data to mean 0 and variance 1, and activations by a BatchNorm
    before or after each layer. `batch_norm` gives these to a network that has none.

    Transposed convolutions, recurrent layers, attention and embeddings stay as they are, and so do layers that are not
    exactly torch's (subclasses, parametrised ones) and those inside a TransformerEncoderLayer, which reads their
    weights itself.

    Args:
        model: Any network.
        scaling: The sequence, as :func:`structlearn.scala.scaling` says.
        keep_function: Keep what the network computes, to rounding: w~ = w / sigma. Else weights are drawn anew from
            N(0, 1), with torch's global generator, and biases are 0 (or have variance `tau_b2`).
        batch_norm: Put a BatchNorm right after each layer whose values reach another layer without one on the way.
            Layer and BatchNorm are then an `nn.Sequential` in the layer's place. Linear layers must then see
            (batch, features).
        s2: s^2 of all layers but the output layer, in place of what their activations ask for.
        tau_b2: Variance of the biases at the start. It is a part of s^2. Layers without a bias have 0.

    Returns:
        The model.

    Raises:
        ValueError: nothing can be scaled; a layer shares its weight with another; `batch_norm` with `keep_function`; it
            is not known which activation follows a layer, and `s2` is not given. Then nothing has changed.
    """
    check_choice("scaling", scaling, SEQUENCES)
    if batch_norm and keep_function:
        raise ValueError("a new BatchNorm changes the function: give batch_norm or keep_function, not both")
    layers = _convertible(model)
    graph = _Graph(model)
    inputs = followed(model, {name: _places(module) for name, module in model.named_modules()})
    rules = {name: (graph.sequence(name, scaling), graph.variance(name, s2)) for name in layers}
    for sequence, variance in rules.values():
        factors(sequence, 1, s2=variance, tau_b2=tau_b2)  # what it complains of, before anything is changed
    for name, layer in layers.items():
        _convert(layer, *rules[name], tau_b2, inputs.get(name), keep_function=keep_function)
    if batch_norm:
        for name in [name for name in layers if graph.is_unnormalised(name)]:
            _normalise(model, name)
    return model


def unscaled(model: nn.Module) -> nn.Module:
    """A copy of the network with plain layers that compute the same, to rounding."""
    plain = copy.deepcopy(model)
    for layer in plain.modules():
        if isinstance(layer, Scaled):
            fold(layer)
    return plain


@torch.no_grad()
def fold(layer: Scaled) -> nn.Module:
    """Make a scaled layer plain, in place: the weight is what it stood for, the parameters stay the same objects."""
    layer.weight.mul_(layer.spread(layer.scale))
    del layer.scale
    for name in ("scaling", "s2", "tau_b2"):
        delattr(layer, name)
    layer.__class__ = layer.plain  # type: ignore[assignment]
    return layer


class _Graph:
    """What stands around each layer, by the flow of values; by the order of registration where that is not known."""

    def __init__(self, model: nn.Module) -> None:
        self.modules = dict(model.named_modules())
        found = graph_of(model)
        graphs = [graph for graph in (found, chain_of(model)) if graph is not None]
        self._known = {str(node.target) for node in found.nodes if node.op == "call_module"} if found else set()
        self._calls: dict[str, list[fx.Node]] = {}
        self._first: set[str] = set()
        for graph in graphs:
            calls: dict[str, list[fx.Node]] = {}
            for node in graph.nodes:
                if node.op == "call_module":
                    calls.setdefault(str(node.target), []).append(node)
            new = calls.keys() - self._calls.keys()
            inputs = [node for node in graph.nodes if node.op == "placeholder"]
            self._first |= new & {str(node.target) for node in reached(inputs, self.is_layer) if self.is_layer(node)}
            self._calls |= {name: calls[name] for name in new}

    def is_layer(self, node: fx.Node) -> bool:
        """Does it hold weights that make new values of the old ones?"""
        module = self.modules[str(node.target)] if node.op == "call_module" else None
        return module is not None and not isinstance(module, NORMS) and any(p.dim() > 1 for p in module.parameters())

    def sequence(self, name: str, hidden: str) -> str:
        """The sequence of a layer's factors: uniform where it sees the network's inputs, else as given."""
        return "uniform" if name in self._first else hidden

    def variance(self, name: str, hidden: float | None) -> float:
        """s^2 of a layer: 1 where its values reach the answer with no other layer in between.

        Else as given, or else what the next activation asks for; 1 where there is none.

        Raises:
            ValueError: none is given, and the flow of values, which alone shows activations that are functions, is not
                known.
        """
        nodes = reached(self._calls[name], self.is_layer)
        if any(node.op == "output" for node in nodes):
            return 1.0
        if hidden is not None:
            return hidden
        found = wanted_variance(nodes, self.modules)
        if found is None and name not in self._known:
            raise ValueError(
                f"it is not known which activation follows the layer {name}: the forward pass has no graph there (it "
                f"depends on values, or is torch's own), and none is registered right behind the layer; give s2 (2 for "
                f"ReLU, 1 for none), or make the activation a module and register it after the layer"
            )
        return 1.0 if found is None else found

    def is_unnormalised(self, name: str) -> bool:
        """Do its values reach another layer with no normalisation in between?"""
        nodes = reached(self._calls[name], lambda node: self.is_layer(node) or self._is_norm(node))
        return any(self.is_layer(node) for node in nodes)

    def _is_norm(self, node: fx.Node) -> bool:
        norm = node.op == "call_module" and isinstance(self.modules[str(node.target)], NORMS)
        return norm and not isinstance(self.modules[str(node.target)], nn.PReLU)


def _convertible(model: nn.Module) -> dict[str, nn.Module]:
    """The layers that have a scaled form, by name."""
    modules = dict(model.named_modules())
    encoders = [name for name, module in modules.items() if isinstance(module, nn.TransformerEncoderLayer)]
    read = tuple(f"{name}." if name else "" for name in encoders)
    layers = {
        name: module
        for name, module in modules.items()
        if type(module) in SCALED and not name.startswith(read) and "weight" in dict(module.named_parameters())
    }
    if not layers:
        raise ValueError(
            "the network has no layer that can be scaled; there must be an nn.Linear, nn.Conv1d, nn.Conv2d or "
            "nn.Conv3d (layers that are scaled already do not count)"
        )
    users = Counter(parameter for module in modules.values() for parameter in module.parameters(recurse=False))
    for name, layer in layers.items():
        if users[layer.weight] > 1:
            raise ValueError(
                f"the layer {name} shares its weight with another one, but each would need its own scaling; give it a "
                f"weight of its own"
            )
    return layers


def _places(module: nn.Module) -> Tensor | None:
    """The place of each output channel among a layer's units; None where it passes on what it is given."""
    if isinstance(module, nn.RNNBase):
        return torch.arange(module.proj_size or module.hidden_size).repeat(1 + module.bidirectional)
    names = ("out_features", "out_channels", "embedding_dim", "embed_dim")
    count = next((getattr(module, name) for name in names if hasattr(module, name)), None)
    return None if count is None else torch.arange(count)


@torch.no_grad()
def _convert(
    layer: nn.Module, sequence: str, s2: float, tau_b2: float, ranks: Tensor | None, *, keep_function: bool
) -> None:
    """Make a layer a scaled one, in place."""
    layer.__class__ = SCALED[type(layer)]
    assert isinstance(layer, Scaled)
    layer.scaling, layer.s2, layer.tau_b2 = sequence, s2, tau_b2 if layer.bias is not None else 0.0
    inputs = layer.weight.shape[1] * getattr(layer, "groups", 1)
    if ranks is not None and len(ranks) and inputs % len(ranks) == 0:
        ranks = ranks.repeat_interleave(
            inputs // len(ranks)
        )  # a flattened map: all positions of its first channel first
    else:
        ranks = None
    layer.register_buffer("scale", layer.sigma(ranks).to(layer.weight))
    if keep_function:
        layer.weight.div_(layer.spread(layer.scale))
    else:
        layer.reset_parameters()


def _normalise(model: nn.Module, name: str) -> None:
    """Put a BatchNorm behind a layer."""
    layer = model.get_submodule(name)
    assert isinstance(layer, Scaled)
    norm = BATCH_NORMS[layer.plain](len(layer.weight)).to(layer.weight)
    parent, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(parent), leaf, nn.Sequential(layer, norm.train(layer.training)))
