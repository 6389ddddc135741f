"""Sums over the places of units, and what is carried across a cut."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from structlearn.scala import adopt
from structlearn.structure import Plan, Structure


def mlp() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3)), torch.randn(2, 5)


def test_sums_over_incoming_parameters_take_a_biass_entries_one_by_one() -> None:
    model, example = mlp()
    sums = Structure(model, example).reduce("out", lambda _, tensor: tensor.abs())
    torch.testing.assert_close(sums["0"], model[0].weight.abs().sum(1) + model[0].bias.abs())


@pytest.mark.parametrize("examples", [1, 100])
def test_a_scaling_goes_with_its_units_whether_it_meets_weights_or_inputs(examples: int) -> None:
    model, _ = mlp()
    structure = Structure(adopt(model), torch.randn(examples, 5))
    assert {place.tensor for place in structure.sets["0"].places if place.role == "along"} == {"2.scale"}


def test_what_is_carried_is_in_the_scale_of_now() -> None:
    model, example = mlp()
    older = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    cut = Structure(model, example).apply(Plan({"0": (3, 0)}))
    with torch.no_grad():
        model[2].weight.mul_(torch.tensor([2.0, 3.0]))
    cut.factors["2.weight"] = torch.tensor([[2.0, 3.0]])
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(cut.carry(name, older[name]), tensor)
    torch.testing.assert_close(cut.select("2.weight", older["2.weight"]), older["2.weight"][:, [3, 0]])
