"""The table of units: which parameter belongs to which, for every layer and every model."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from structlearn.alrao import SGD, Alrao
from structlearn.models import MODELS, build
from structlearn.shrinknets import Switch, adopt
from structlearn.units import Units, largest, units

SHAPES = {"mlp": (3, 4, 5), "lstm": (6,), "cvnn": (3, 16, 16), "lenet": (1, 12, 12)}
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.LayerNorm, nn.GroupNorm)


def small(name: str) -> nn.Module:
    large = name.startswith("vgg")
    return build(name, SHAPES.get(name, (3, 32, 32) if large else (3, 8, 8)), 5, width=0.125)


def full(table: Units, name: str, parameter: Tensor) -> Tensor:
    """The unit of each entry of a parameter."""
    return table.index[name].broadcast_to(parameter.shape)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("adopted", [False, True])
def test_every_parameter_of_every_model_has_its_units_and_no_norm_has_units_of_its_own(
    name: str, adopted: bool
) -> None:
    model = Alrao(small(name), heads=3) if adopted else small(name)
    table = units(model)
    parameters = dict(model.named_parameters())
    assert set(table.index) == set(parameters)
    owned = torch.cat([full(table, key, parameter).flatten() for key, parameter in parameters.items()])
    assert sorted(set(owned.tolist())) == list(range(len(table)))
    assert [number for numbers in table.layers.values() for number in numbers] == list(range(len(table)))
    modules = dict(model.named_modules())
    assert not [layer for layer in table.layers if isinstance(modules.get(layer), NORMS)]


@pytest.mark.parametrize("name", ["densenet121", "wideresnet28_10", "googlenet"])
def test_a_network_has_the_same_units_under_alrao(name: str) -> None:
    model = small(name)
    plain = units(model)
    adopted = SGD(Alrao(model, heads=3))._table
    for key, index in plain.index.items():
        if not key.startswith("head."):
            assert torch.equal(adopted.index[f"model.{key}"], index)


def test_rows_of_a_linear_layer_share_a_unit_with_their_bias() -> None:
    table = units(nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)))
    assert table.layers == {"0": range(3), "2": range(3, 5)}
    assert table.index["0.weight"].tolist() == [[0], [1], [2]]
    assert table.index["0.bias"].tolist() == [0, 1, 2]
    assert table.index["2.weight"].tolist() == [[3], [4]]


def test_filters_of_a_convolution_grouped_or_not() -> None:
    for groups in (1, 2, 4):
        layer = nn.Conv2d(4, 8, 3, groups=groups)
        table = units(layer)
        assert table.layers == {"": range(8)}
        assert full(table, "weight", layer.weight)[:, 0, 0, 0].tolist() == list(range(8))
        assert table.index["bias"].tolist() == list(range(8))


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("kind", [nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d])
def test_a_unit_of_a_transposed_convolution_is_what_one_output_channel_depends_on(kind: type, groups: int) -> None:
    layer = kind(4, 6, 2, groups=groups)
    table = units(layer)
    x = torch.randn(1, 4, *[3] * (layer.weight.dim() - 2))
    before = layer(x)
    for channel in range(6):
        changed = kind(4, 6, 2, groups=groups)
        changed.load_state_dict(layer.state_dict())
        with torch.no_grad():
            for key, parameter in changed.named_parameters():
                parameter[full(table, key, parameter) == channel] += 1
        differs = (changed(x) != before).flatten(2).all(2)[0]
        assert differs.tolist() == [other == channel for other in range(6)]


@pytest.mark.parametrize("options", [{}, {"num_layers": 2}, {"bidirectional": True}, {"num_layers": 2, "bias": False}])
@pytest.mark.parametrize(("kind", "gates"), [(nn.LSTM, 4), (nn.GRU, 3), (nn.RNN, 1)])
def test_all_gate_rows_of_a_cell_share_its_unit(kind: type, gates: int, options: dict[str, object]) -> None:
    layer = kind(5, 3, **options)
    table = units(layer)
    ways = 2 if options.get("bidirectional") else 1
    assert len(table) == 3 * ways * options.get("num_layers", 1)
    for key in dict(layer.named_parameters()):
        suffix = key[key.index("_l") + 1 :]
        cells = list(table.layers[suffix])
        assert table.index[key].flatten().tolist() == cells * gates


def test_an_lstm_with_projections_has_cells_and_rows_of_projections() -> None:
    layer = nn.LSTM(5, 4, proj_size=2, num_layers=2, bidirectional=True)
    table = units(layer)
    assert len(table) == 4 * (4 + 2)
    for suffix in ("l0", "l0_reverse", "l1", "l1_reverse"):
        rows = list(table.layers[f"projection_{suffix}"])
        assert table.index[f"weight_hr_{suffix}"].flatten().tolist() == rows
        assert table.index[f"weight_hh_{suffix}"].flatten().tolist() == list(table.layers[suffix]) * 4
    assert all(full(table, key, parameter).shape == parameter.shape for key, parameter in layer.named_parameters())


@pytest.mark.parametrize("kind", [nn.Embedding, nn.EmbeddingBag])
def test_columns_of_an_embedding(kind: type) -> None:
    layer = kind(7, 3)
    table = units(layer)
    assert full(table, "weight", layer.weight).tolist() == [[0, 1, 2]] * 7


@pytest.mark.parametrize("options", [{}, {"bias": False}, {"kdim": 3, "vdim": 5}, {"kdim": 3, "add_bias_kv": True}])
def test_rows_of_attention_share_units_with_their_biases(options: dict[str, object]) -> None:
    layer = nn.MultiheadAttention(4, 2, **options)
    table = units(layer)
    assert table.layers == {"": range(12), "out_proj": range(12, 16)}
    rows = {"q_proj_weight": (0, 4), "k_proj_weight": (4, 8), "v_proj_weight": (8, 12), "in_proj_weight": (0, 12)}
    rows |= {"in_proj_bias": (0, 12), "out_proj.weight": (12, 16), "out_proj.bias": (12, 16)}
    rows |= {"bias_k": (4, 8), "bias_v": (8, 12)}
    for key, parameter in layer.named_parameters():
        assert table.index[key].flatten().tolist() == list(range(*rows[key]))
        assert full(table, key, parameter).shape == parameter.shape


def test_a_norm_after_attention_has_the_units_of_its_output() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.LayerNorm(4)
            self.attention = nn.MultiheadAttention(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(self.attention(x, x, x)[0])

    table = units(Block())
    assert table.index["norm.weight"].tolist() == list(table.layers["attention.out_proj"])


def test_axis_0_of_raw_parameters_a_weight_and_a_bias_of_one_size_together() -> None:
    class Raw(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(3, 4))
            self.bias = nn.Parameter(torch.zeros(3))
            self.scale = nn.Parameter(torch.zeros(()))
            self.other = nn.Parameter(torch.zeros(2, 2))

    model = nn.Sequential(Raw())
    table = units(model)
    assert table.layers == {"0": range(3), "0.scale": range(3, 4), "0.other": range(4, 6)}
    assert table.index["0.weight"].flatten().tolist() == table.index["0.bias"].tolist() == [0, 1, 2]
    assert all(full(table, key, parameter).shape == parameter.shape for key, parameter in model.named_parameters())


def test_shared_parameters_are_there_once() -> None:
    model = nn.Sequential(nn.Embedding(7, 3), nn.Linear(3, 7))
    model[1].weight = model[0].weight
    table = units(model)
    assert set(table.index) == {"0.weight", "1.bias"}
    assert table.layers == {"0": range(3), "1": range(3, 10)}


def test_a_transposed_convolution_may_have_the_weights_of_another() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ConvTranspose2d(4, 3, 3))
    model[1].weight = model[0].weight
    table = units(model)
    assert set(table.index) == {"0.weight", "0.bias", "1.bias"}
    assert table.index["1.bias"].tolist() == list(table.layers["1"])


def test_the_largest_number_of_each_row() -> None:
    model = nn.Sequential(nn.Embedding(7, 3), nn.Linear(3, 4), nn.ConvTranspose2d(4, 6, 2, groups=2))
    table = units(model)
    for key, parameter in model.named_parameters():
        values = torch.randn_like(parameter)
        top = largest(table, key, values)
        index = full(table, key, parameter)
        assert top.shape == table.index[key].shape
        for unit in set(index.flatten().tolist()):
            assert top[table.index[key] == unit].max() == values[index == unit].abs().max()
    parameter = model[2].weight
    assert largest(table, "2.weight", torch.full_like(parameter, torch.nan)).isnan().all()


@pytest.mark.parametrize("name", ["mlp", "vgg11", "resnet18", "mobilenet_v2", "densenet121"])
def test_a_switch_has_the_units_of_the_layer_that_it_is_behind(name: str) -> None:
    shape = (1, 8, 8) if name == "mlp" else (3, 32, 32)
    model = build(name, shape, 4, width=0.1)
    before = units(model)
    adopt(model, torch.randn(2, *shape))
    table = units(model)
    switches = [key for key, module in model.named_modules() if isinstance(module, Switch)]
    assert len(switches) >= 2
    for key in switches:
        of_layer = table.index[f"{key.removesuffix('.switch')}.weight"]
        assert torch.equal(table.index[f"{key}.theta"], of_layer.flatten())
    assert len(table) == len(before)


def test_a_switch_by_itself_has_the_units_that_it_is_given() -> None:
    model = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), Switch(5, axis=-1), nn.Linear(5, 2))
    table = units(model)
    assert torch.equal(table.index["2.theta"], table.index["0.bias"])
    assert len(table) == 7
