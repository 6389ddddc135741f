"""Sizes that layers keep beside their weights, set right after a cut."""

from __future__ import annotations

from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd


def set_sizes(module: nn.Module, *, depthwise: bool) -> None:
    """Have a layer's attributes say what its weights are: `out_features`, `num_features`, `groups`, ...

    Args:
        module: The layer.
        depthwise: Is it a convolution that loses groups, not channels of each?
    """
    match module:
        case nn.Linear():
            module.out_features, module.in_features = module.weight.shape
        case _ConvNd():
            _set_convolution(module, depthwise=depthwise)
        case _NormBase():
            values = module.weight if module.weight is not None else module.running_mean
            if values is not None:
                module.num_features = len(values)
        case nn.GroupNorm() if module.num_groups == module.num_channels and module.weight is not None:
            module.num_groups = module.num_channels = len(module.weight)
        case nn.PReLU():
            module.num_parameters = len(module.weight)
        case nn.Embedding() | nn.EmbeddingBag():
            module.embedding_dim = module.weight.shape[1]
        case nn.RNNBase():
            _set_recurrent(module)
        case _:
            pass


def _set_recurrent(module: nn.RNNBase) -> None:
    weights = dict(module.named_parameters(recurse=False))
    rows, columns = weights["weight_ih_l0"].shape
    module.input_size = columns
    module.hidden_size = rows // {"LSTM": 4, "GRU": 3}.get(module.mode, 1)
    if module.proj_size:
        module.proj_size = len(weights["weight_hr_l0"])
    module.flatten_parameters()


def _set_convolution(module: _ConvNd, *, depthwise: bool) -> None:
    first, second = module.weight.shape[:2]
    many = module.out_channels // module.groups  # outputs of a group
    if module.transposed:
        module.in_channels, module.groups = first, first if depthwise else module.groups
        module.out_channels = second * module.groups
    else:
        module.out_channels, module.groups = first, first // many if depthwise else module.groups
        module.in_channels = second * module.groups
