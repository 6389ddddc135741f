"""Batch normalisations merged into the layers before them, after training."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_weights, fuse_linear_bn_weights

from structlearn.flow import graph_of

if TYPE_CHECKING:
    from collections.abc import Mapping

CONVOLUTIONS: Final = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


@torch.no_grad()
def merge_batch_norms(model: nn.Module, example: Tensor) -> nn.Module:
    """Merge each BatchNorm into the linear layer or convolution whose answer is all that it is given, in place.

    In evaluation a BatchNorm is a scale and a shift of each channel, which the rows and the bias of the layer before it
    can be. It becomes an nn.Identity, so names stay; the layer gets a bias where it had none. The others stay: one that
    comes first, behind an activation, a sum or a concatenation, one that has no running statistics, one whose layer
    answers to others, too; and all of them where the forward pass depends on values, so that its graph is not known.

    Args:
        model: In evaluation. It computes what it did, up to rounding; it is of no use for further training.
        example: A batch, as the network is called with.
    """
    modules = dict(model.named_modules())
    graph = graph_of(model)
    if graph is None:
        return model
    calls = Counter(str(node.target) for node in graph.nodes if node.op == "call_module")
    users = Counter(parameter for module in modules.values() for parameter in module.parameters(recurse=False))
    flat = _takes_a_matrix(model, modules, example)
    for node in graph.nodes:
        if node.op != "call_module" or not node.args or getattr(node.args[0], "op", "") != "call_module":
            continue
        before: Any = node.args[0]
        name = str(node.target)
        layer, norm = modules[str(before.target)], modules[name]
        alone = calls[name] == calls[str(before.target)] == 1 == len(before.users)
        own = all(users[parameter] == 1 for each in (layer, norm) for parameter in each.parameters())
        if alone and own and _fit(layer, norm) and (not isinstance(layer, nn.Linear) or name in flat):
            _merge(layer, norm)
            parent, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(parent), leaf, nn.Identity())
    return model


def _fit(layer: nn.Module, norm: nn.Module) -> bool:
    statistics = isinstance(norm, _BatchNorm) and norm.running_mean is not None
    return statistics and type(layer) in (nn.Linear, *CONVOLUTIONS)


def _takes_a_matrix(model: nn.Module, modules: Mapping[str, nn.Module], example: Tensor) -> set[str]:
    """The BatchNorms that are given [samples, channels]: behind a linear layer others have channels elsewhere."""
    found: set[str] = set()

    def look(name: str, given: tuple[Any, ...]) -> None:
        if given[0].dim() == 2:
            found.add(name)

    hooks = [
        module.register_forward_pre_hook(lambda _, given, name=name: look(name, given))
        for name, module in modules.items()
        if isinstance(module, _BatchNorm)
    ]
    model(example)
    for hook in hooks:
        hook.remove()
    return found


def _merge(layer: Any, norm: Any) -> None:
    merged = fuse_linear_bn_weights if isinstance(layer, nn.Linear) else fuse_conv_bn_weights
    scale = torch.ones_like(norm.running_mean) if norm.weight is None else norm.weight
    shift = torch.zeros_like(norm.running_mean) if norm.bias is None else norm.bias
    layer.weight, layer.bias = merged(
        layer.weight, layer.bias, norm.running_mean, norm.running_var, norm.eps, scale, shift
    )
