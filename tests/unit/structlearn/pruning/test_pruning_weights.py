"""Which tensors are weights, and which of their entries lie in one group."""

import runpy
from pathlib import Path

import pytest
import torch
from torch import nn

from structlearn.pruning.weights import groups_of, weights_of
from structlearn.structure import Plan, Structure

support = runpy.run_path(str(Path(__file__).parents[3] / "support" / "prunable.py"))
network = support["network"]

WEIGHTS = {
    "mlp": ["0.weight", "3.weight", "6.weight"],
    "lenet": ["0.weight", "4.weight", "7.weight", "9.weight"],
    "residual": ["0.weight", "3.one.weight", "3.two.weight", "4.one.weight", "4.two.weight", "7.weight"],
    "dense": ["stem.weight", "one.weight", "two.weight", "head.weight"],
    "lstm": ["rnn.weight_ih_l0", "rnn.weight_hh_l0", "hidden.weight", "head.weight"],
    "maxmin": ["0.weight", "3.weight", "6.weight"],
}
# The outgoing groups of a unit of one set: (its set, unit, the entries along the axis of inputs in each weight).
OUTGOING = {
    "mlp": ("0", 2, {"3.weight": [2]}),
    "lenet": ("4", 3, {"7.weight": [12, 13, 14, 15]}),
    "residual": ("0", 1, {"3.one.weight": [1], "4.one.weight": [1], "7.weight": [1]}),
    "dense": ("stem", 4, {"one.weight": [4], "two.weight": [4]}),
    "lstm": ("rnn", 5, {"rnn.weight_hh_l0": [5], "hidden.weight": [5]}),
    "maxmin": ("0", 6, {"3.weight": [6, 13]}),
}
INCOMING = {
    "mlp": ("3", 2, {"3.weight": [2]}),
    "lenet": ("4", 3, {"4.weight": [3]}),
    "residual": ("0", 1, {"0.weight": [1], "3.two.weight": [1], "4.two.weight": [1]}),
    "dense": ("one", 4, {"one.weight": [4]}),
    "lstm": ("rnn", 5, {"rnn.weight_ih_l0": [5, 12, 19, 26], "rnn.weight_hh_l0": [5, 12, 19, 26]}),
    "maxmin": ("0", 6, {"0.weight": [6]}),
}


def structured(name, scaling=None):
    model, batch = network(name, scaling)
    return Structure(model, batch[:2])


@pytest.mark.parametrize("scaling", [None, "sqrt_log"])
@pytest.mark.parametrize("name", WEIGHTS)
def test_weights_are_those_of_linear_maps_in_every_layer(name, scaling):
    assert sorted(weight.name for weight in weights_of(structured(name, scaling))) == sorted(WEIGHTS[name])


def test_what_acts_on_channels_one_by_one_is_not_penalised():
    model = nn.Sequential(
        nn.Conv2d(4, 4, 3, groups=4), nn.Conv2d(4, 6, 1), nn.Conv2d(6, 6, 3, groups=6), nn.PReLU(6), nn.Conv2d(6, 3, 1)
    )
    names = [weight.name for weight in weights_of(Structure(model, torch.randn(1, 4, 8, 8)))]
    assert names == ["1.weight", "4.weight"]


def test_frozen_and_shared_weights_count_never_and_once():
    one, two = nn.Linear(4, 4), nn.Linear(4, 4)
    model = nn.Sequential(one, nn.ReLU(), two, nn.ReLU(), one)
    two.weight.requires_grad_(requires_grad=False)
    assert [weight.name for weight in weights_of(Structure(model, torch.randn(1, 4)))] == ["0.weight"]


def test_parameters_without_a_layer_are_weights_where_they_have_inputs_and_outputs():
    class Raw(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Parameter(torch.randn(4, 5)), nn.Parameter(torch.randn(5, 3))
            self.shift = nn.Parameter(torch.randn(5))

        def forward(self, x):
            return (x @ self.first + self.shift).relu() @ self.second

    weights = weights_of(Structure(Raw(), torch.randn(2, 4)))
    assert {weight.name: weight.axes for weight in weights} == {
        "first": {"in": 0, "out": 1},
        "second": {"in": 0, "out": 1},
    }


@pytest.mark.parametrize(("side", "table"), [("in", OUTGOING), ("out", INCOMING)])
@pytest.mark.parametrize("name", WEIGHTS)
def test_a_units_weights_are_one_group(name, side, table):
    structure = structured(name)
    weights = weights_of(structure)
    groups = groups_of(structure, weights, side)
    layer, unit, wanted = table[name]
    start = 0
    for each in structure.sets.values():
        if each.name == layer:
            break
        start += each.size
    found = {
        weight.name: entries
        for weight, index in zip(weights, groups.index, strict=True)
        if (entries := (index == start + unit).nonzero().flatten().tolist())
    }
    assert found == wanted
    sizes = [
        weight.tensor.numel() // weight.tensor.shape[weight.axes[side]] * len(wanted[weight.name])
        for weight in weights
        if weight.name in wanted
    ]
    assert groups.sizes[start + unit] == sum(sizes)


@pytest.mark.parametrize("side", ["in", "out"])
@pytest.mark.parametrize("name", WEIGHTS)
def test_groups_are_a_partition(name, side):
    structure = structured(name)
    weights = weights_of(structure)
    groups = groups_of(structure, weights, side)
    assert groups.sizes.sum() == sum(weight.tensor.numel() for weight in weights)
    used = torch.cat(groups.index).unique()
    assert len(used) == groups.count - sum((groups.sizes == 0).tolist())
    ones = groups.sums([torch.ones_like(weight.tensor) for weight in weights])
    torch.testing.assert_close(ones.double(), groups.sizes)


def test_groups_follow_a_cut():
    structure = structured("mlp")
    structure.apply(Plan({"0": (4, 1), "3": (7, 0, 2)}))
    weights = weights_of(structure)
    groups = groups_of(structure, weights, "in")
    assert groups.count == 5 + 2 + 3
    assert sorted(groups.sizes.tolist()) == sorted([2.0] * 5 + [3.0] * 2 + [3.0] * 3)
