"""Which variance a layer's pre-activations should have, by the activation that follows."""

from __future__ import annotations

import copy
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from torch import Tensor, fx, nn
from torch.nn.functional import leaky_relu

from structlearn.models.activations import gain_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

ELEMENTWISE: Final = (
    nn.ReLU, nn.RReLU, nn.Hardtanh, nn.ReLU6, nn.Sigmoid, nn.Hardsigmoid, nn.Tanh, nn.SiLU, nn.Mish, nn.Hardswish,
    nn.ELU, nn.CELU, nn.SELU, nn.GELU, nn.LeakyReLU, nn.LogSigmoid, nn.Softplus, nn.PReLU, nn.Softsign,
)  # fmt: skip
"""The activations of one value. Their functions and methods bear the same names (`relu`, `leaky_relu`, `relu_`)."""

_NAMES: Final = {kind.__name__.lower() for kind in ELEMENTWISE} - {"prelu"}  # whose slopes are no numbers in the graph


def wanted_variance(nodes: Iterable[fx.Node], modules: Mapping[str, nn.Module]) -> float | None:
    """s^2 of a layer: 1 / E[phi(Z)^2] of the first activation phi among what comes after it; None if there is none.

    Args:
        nodes: What comes after the layer, the nearest first.
        modules: The network's modules by name.
    """
    activation = next((found for node in nodes if (found := _activation(node, modules)) is not None), None)
    return None if activation is None else gain_of(activation) ** 2


def _activation(node: fx.Node, modules: Mapping[str, nn.Module]) -> Callable[[Tensor], Tensor] | None:
    """The function that a node applies to each value, if it is an activation."""
    if node.op == "call_module":
        module = modules[str(node.target)]
        if not isinstance(module, ELEMENTWISE):
            return None
        if isinstance(module, nn.PReLU):  # its slopes are parameters, one for each channel
            return partial(leaky_relu, negative_slope=float(module.weight.detach().mean()))
        return copy.deepcopy(module).eval()  # an RReLU in training draws
    if node.op not in {"call_function", "call_method"}:
        return None
    target: Any = node.target
    name = getattr(target, "__name__", target)
    if name.replace("_", "") not in _NAMES:
        return None
    # Its other arguments (a slope, say) are numbers.
    rest = [argument for argument in node.args[1:] if not isinstance(argument, fx.Node)]
    options = {key: value for key, value in node.kwargs.items() if key not in {"inplace", "input", "training"}}
    return lambda z: getattr(z, name)(*rest) if node.op == "call_method" else target(z, *rest, **options)
