"""What a unit is: the one table that rates, norms and pruning share.

A unit is an output of a layer that can be there or not: an output row of a linear layer, a filter of a convolution, a
cell of an LSTM (W 2.4.3), a column of an embedding. All its incoming parameters belong to it, its bias included, and
the scale and shift of the normalisation that follows it.

| layer | its units | coupled with them |
|---|---|---|
| Linear, Bilinear | rows of the weight | bias |
| Conv1d/2d/3d | filters (axis 0) | bias |
| ConvTranspose1d/2d/3d | output channels (axis 1, group by group) | bias |
| Embedding, EmbeddingBag | columns | |
| LSTM, GRU, RNN | cells, of each layer and direction; rows of projections | all gate rows, and their biases |
| MultiheadAttention | rows of the input projections | their biases |
| BatchNorm, InstanceNorm, GroupNorm, LayerNorm, PReLU | those of what they normalise (:mod:`structlearn.flow`) | |
| what says of itself that it `follows` units (a switch) | those of the layer it is part of, or is given | |
| anything else with parameters | axis 0 of each tensor | |
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import prod
from typing import TYPE_CHECKING, Final

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from structlearn.flow import followed

if TYPE_CHECKING:
    from collections.abc import Mapping

ROWS: Final = (nn.Linear, nn.Bilinear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED: Final = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
COLUMNS: Final = (nn.Embedding, nn.EmbeddingBag)
NORMS: Final = (_NormBase, nn.GroupNorm, nn.LayerNorm, nn.PReLU)


@dataclass
class Units:
    """All units of a network, numbered through.

    Attributes:
        layers: The numbers of each layer's units, by the layer's name.
        index: For each parameter, by name: which unit each of its entries belongs to, int64, in a shape that
            broadcasts to the parameter's. A linear layer's weight (n, m) has an index (n, 1).
    """

    layers: dict[str, range] = field(default_factory=dict)
    index: dict[str, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return max((numbers.stop for numbers in self.layers.values()), default=0)

    def add(self, layer: str, count: int) -> Tensor:
        """Number `count` new units of a layer; their numbers."""
        start = len(self)
        self.layers[layer] = range(start, start + count)
        return torch.arange(start, start + count)


def units(model: nn.Module) -> Units:
    """The table of a network: every parameter (shared ones once) and the units its entries belong to."""
    table = Units()
    first = {parameter: name for name, parameter in reversed(list(model.named_parameters(remove_duplicate=False)))}
    norms: dict[str, nn.Module] = {}
    before: dict[str, Tensor | None] = {}
    last: Tensor | None = None
    for name, module in model.named_modules():
        own = {
            key: parameter
            for key, parameter in module.named_parameters(recurse=False)
            if first[parameter] == _join(name, key)
        }
        if not own:
            continue
        if isinstance(module, NORMS) or getattr(module, "follows", False):
            norms[name], before[name] = module, last
            continue
        _number(table, name, module, own)
        last = _outputs(table, name, module)
    if norms:
        origins = followed(model, {name: _outputs(table, name, module) for name, module in model.named_modules()})
        for name, module in norms.items():
            _couple(table, name, module, (_of_whole(table, name, model), origins.get(name), before[name]))
    return table


def _number(table: Units, name: str, module: nn.Module, own: Mapping[str, nn.Parameter]) -> None:
    """Number a layer's units and say which of its parameters belong to them."""
    shape = {key: parameter.dim() for key, parameter in own.items()}
    if isinstance(module, nn.RNNBase):
        _number_recurrent(table, name, module, own)
    elif isinstance(module, COLUMNS):
        table.index[_join(name, "weight")] = table.add(name, module.embedding_dim).view(1, -1)
    elif isinstance(module, nn.MultiheadAttention):
        _number_attention(table, name, module, own)
    elif isinstance(module, TRANSPOSED) and "weight" in own:
        numbers = table.add(name, module.out_channels)
        grouped = numbers.view(module.groups, 1, -1).expand(-1, module.in_channels // module.groups, -1)
        rows = numbers.view(1, -1) if module.groups == 1 else grouped.flatten(0, 1)
        table.index[_join(name, "weight")] = rows[(..., *[None] * (shape["weight"] - 2))]
        if "bias" in own:
            table.index[_join(name, "bias")] = numbers
    elif isinstance(module, ROWS) and "weight" in own:
        numbers = table.add(name, len(own["weight"]))
        for key, parameter in own.items():
            table.index[_join(name, key)] = _along(numbers, parameter)
    else:  # one unit for each entry of axis 0, shared by a weight and a bias of one size
        by_size: dict[int, Tensor] = {}
        for key, parameter in own.items():
            count = len(parameter) if parameter.dim() else 1
            if count not in by_size:
                by_size[count] = table.add(_join(name, key) if by_size or not name else name, count)
            table.index[_join(name, key)] = _along(by_size[count], parameter)


def _number_recurrent(table: Units, name: str, module: nn.RNNBase, own: Mapping[str, nn.Parameter]) -> None:
    """Cells of each layer and direction: torch stacks the gates of all cells along axis 0."""
    for layer in range(module.num_layers):
        for direction in ("", "_reverse")[: 1 + module.bidirectional]:
            suffix = f"_l{layer}{direction}"
            cells = table.add(_join(name, suffix[1:]), module.hidden_size)
            for stem in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
                if (key := stem + suffix) in own:
                    gates = len(own[key]) // module.hidden_size
                    table.index[_join(name, key)] = _along(cells.repeat(gates), own[key])
            if (key := "weight_hr" + suffix) in own:
                rows = table.add(_join(name, f"projection{suffix}"), len(own[key]))
                table.index[_join(name, key)] = _along(rows, own[key])


def _number_attention(table: Units, name: str, module: nn.MultiheadAttention, own: Mapping[str, nn.Parameter]) -> None:
    """Rows of the projections of queries, keys and values, in this order, in one matrix or in three."""
    numbers = table.add(name, 3 * module.embed_dim)
    queries, keys, values = numbers.chunk(3)
    rows = {"q_proj_weight": queries, "k_proj_weight": keys, "v_proj_weight": values}
    columns = {"bias_k": keys, "bias_v": values}
    for key, parameter in own.items():
        index = columns[key].view(1, 1, -1) if key in columns else _along(rows.get(key, numbers), parameter)
        table.index[_join(name, key)] = index


def _outputs(table: Units, name: str, module: nn.Module) -> Tensor | None:
    """The units that a layer's output channels are, in order; None where it has none."""
    if isinstance(module, nn.MultiheadAttention):
        layers = [table.layers.get(_join(name, "out_proj"))]
    elif isinstance(module, nn.RNNBase):
        prefix = "projection_l" if getattr(module, "proj_size", 0) else "l"
        last = [f"{prefix}{module.num_layers - 1}{way}" for way in ("", "_reverse")[: 1 + module.bidirectional]]
        layers = [table.layers.get(_join(name, each)) for each in last]
    else:
        layers = [table.layers.get(name)]
    if not all(layers):
        return None
    return torch.cat([torch.tensor(numbers, dtype=torch.int64) for numbers in layers if numbers is not None])


def _of_whole(table: Units, name: str, model: nn.Module) -> Tensor | None:
    """The units of the layer that a follower is a part of, such as a switch of the BatchNorm before it."""
    whole = name.rpartition(".")[0]
    if not getattr(model.get_submodule(name), "follows", False):
        return None
    if isinstance(model.get_submodule(whole), NORMS):
        return table.index[f"{whole}.weight"].flatten() if f"{whole}.weight" in table.index else None
    return _outputs(table, whole, model.get_submodule(whole)) if whole else None


def _couple(table: Units, name: str, module: nn.Module, candidates: tuple[Tensor | None, ...]) -> None:
    """A normalisation's scale and shift belong to the units that it normalises.

    So does a follower's factor, and first to those of the layer that it is a part of. Then to those that the flow of
    values says; else those of the last layer before it, if there are as many; else its own.
    """
    for key, parameter in module.named_parameters(recurse=False):
        found = next((units for units in candidates if units is not None and len(units) == parameter.numel()), None)
        if found is None:
            known = table.layers.get(name)
            count = parameter.numel()
            found = torch.tensor(known) if known and len(known) == count else table.add(name, count)
        table.index[_join(name, key)] = found.view(parameter.shape)


def _along(numbers: Tensor, parameter: Tensor) -> Tensor:
    """Numbers of the entries of axis 0, in a shape that broadcasts to the parameter's."""
    return numbers.view(-1, *[1] * (parameter.dim() - 1)) if parameter.dim() else numbers.view(())


def _join(name: str, key: str) -> str:
    return f"{name}.{key}".strip(".")


def largest(table: Units, name: str, values: Tensor) -> Tensor:
    """The largest |value| of a parameter in each of its rows: one number for each entry of its index; nan stays."""
    index = table.index[name]
    axes = [axis for axis in range(values.dim()) if index.shape[axis] == 1 < values.shape[axis]]
    size = prod(values.shape[axis] for axis in axes)
    return values.abs().amax(axes, keepdim=True) if axes and size else values.abs()
