"""Which units the channels of a value come from, followed through a network's graph."""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor, fx, nn

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

_CAT: Final = (torch.cat, torch.concat, torch.concatenate)


class _Tracer(fx.Tracer):
    """Layers are nodes of the graph, and not only torch's own: what has parameters and no parts is a layer."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        layer = next(m.children(), None) is None and next(m.parameters(), None) is not None
        return layer or super().is_leaf_module(m, module_qualified_name)


def graph_of(model: nn.Module) -> fx.Graph | None:
    """The network's graph by torch.fx; None where its forward pass depends on values."""
    try:
        return _Tracer().trace(model)
    except Exception:  # noqa: BLE001  whatever a forward pass does with a proxy in place of a value
        return None


def chain_of(model: nn.Module) -> fx.Graph:
    """A stand-in for the graph of a network that has none: its leaf modules one after the other, as registered."""
    graph = fx.Graph()
    node = graph.placeholder("x")
    for name, module in model.named_modules():
        if next(module.children(), None) is None:
            node = graph.call_module(name, (node,))
    graph.output(node)
    return graph


def reached(starts: Iterable[fx.Node], stop: Callable[[fx.Node], bool]) -> list[fx.Node]:
    """The nodes that values from some nodes reach, the nearest first; those where `stop` says so pass nothing on."""
    first = list(starts)
    queue = list(first)
    for node in queue:  # it grows meanwhile
        if node in first or not stop(node):
            queue += [user for user in node.users if user not in queue]
    return queue[len(first) :]


def followed(model: nn.Module, outputs: Mapping[str, Tensor | None]) -> dict[str, Tensor]:
    """For each leaf module by name: the units that the channels of its input are, where that can be known.

    Values pass through whatever keeps channels in place: activations, pooling, normalisation. A concatenation along
    the channels has the units of all parts; a sum those of its first term (the branch in a ResNet; the shortcut in a
    wide one, which is written the other way round). What changes the channels in other ways is found out by whoever
    compares their number. Where the whole has no graph its parts are followed, each by itself.

    Args:
        model: The network.
        outputs: For each module by name, the units of its output channels; None where it passes on what it is given.
    """
    found: dict[str, Tensor] = {}
    graph = graph_of(model)
    if graph is None:
        for part, child in model.named_children():
            below = f"{part}."
            within = {name.removeprefix(below): each for name, each in outputs.items() if name.startswith(below)}
            found |= {below + name: each for name, each in followed(child, within).items()}
        return found
    origin: dict[fx.Node, Tensor | None] = {}
    for node in graph.nodes:
        given = [origin.get(other) for other in _tensors(node)]
        passed = next((units for units in given if units is not None), None)
        if node.op == "call_module":
            name = str(node.target)
            if given and given[0] is not None:
                found[name] = given[0]
            own = outputs.get(name)
            passed = own if own is not None else (given[0] if given else None)
        elif node.op == "call_function" and node.target in _CAT:
            passed = torch.cat([units for units in given if units is not None]) if _all(given) else None
        elif node.op == "call_function" and node.target is operator.getitem:
            passed = given[0] if given else None
        origin[node] = passed
    return found


def last_layer(model: nn.Module, kinds: tuple[type[nn.Module], ...]) -> str | None:
    """The name of the layer of one of these kinds that the answer comes from with only other things in between.

    Followed back from the output; where there is no graph, the last one that was registered.
    """
    modules = dict(model.named_modules())
    graph = graph_of(model)
    if graph is not None:
        (node,) = [node for node in graph.nodes if node.op == "output"]
        while inputs := _tensors(node):
            node = inputs[0]
            if node.op == "call_module" and isinstance(modules[str(node.target)], kinds):
                return str(node.target)
        return None
    return next((name for name, module in reversed(modules.items()) if isinstance(module, kinds)), None)


def _tensors(node: fx.Node) -> list[fx.Node]:
    """The nodes among a node's arguments, in order: also those in lists."""
    found: list[fx.Node] = []

    def visit(argument: Any) -> Any:
        found.append(argument)
        return argument

    fx.map_arg(node.args, visit)
    fx.map_arg(node.kwargs, visit)
    return found


def _all(given: list[Tensor | None]) -> bool:
    return bool(given) and all(units is not None for units in given)
