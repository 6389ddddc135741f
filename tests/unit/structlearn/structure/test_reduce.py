"""Sums over the places of units, and what is carried across a cut."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from torch import Tensor, nn

from structlearn.scala import adopt
from structlearn.structure import Plan, Structure

if TYPE_CHECKING:
    from structlearn.structure.tracker import Role


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


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_sums_and_counts_in_any_precision(kind: torch.dtype) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 1), nn.Flatten(), nn.Linear(4 * 400, 3)).to(kind)
    structure = Structure(model, torch.zeros(2, 1, 20, 20, dtype=kind))
    weight = model[2].weight
    sums = structure.reduce("in", lambda _, tensor: tensor.square())["0"]
    exact = weight.detach().double().view(3, 4, 400).square().sum((0, 2))
    torch.testing.assert_close(sums.detach().double(), exact, rtol=1e-5, atol=0)
    assert structure.count("in")["0"].tolist() == [1200.0] * 4
    sums.sum().backward()
    torch.testing.assert_close(weight.grad, 2 * weight.detach())


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("role", ["in", "out", "along"])
def test_norms_are_roots_of_the_sums_of_squares(kind: torch.dtype, role: Role) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 600, 3), nn.BatchNorm2d(600), nn.Conv2d(600, 70, 3, groups=2), nn.ReLU(),
        nn.ConvTranspose2d(70, 9, 3), nn.Flatten(), nn.Linear(9 * 64, 500), nn.ReLU(), nn.Linear(500, 300),
    ).to(kind)  # fmt: skip
    structure = Structure(model, torch.zeros(2, 3, 10, 10, dtype=kind))
    sums = structure.reduce(role, lambda _, tensor: tensor.detach().square())
    norms = structure.norms(role)
    assert norms.keys() == structure.sets.keys()
    for name, each in sums.items():
        torch.testing.assert_close(norms[name], each.sqrt(), rtol=1e-5, atol=0)


def test_sums_over_places_of_several_types() -> None:
    torch.manual_seed(0)

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(5, 4), nn.Linear(4, 3).bfloat16(), nn.Linear(4, 3).double()

        def forward(self, x: Tensor) -> Tensor:
            x = self.a(x)
            return self.b(x.bfloat16()).double() + self.c(x.double())

    model = Twice()
    sums = Structure(model, torch.randn(2, 5)).reduce("in", lambda _, tensor: tensor.abs())["a"]
    exact = model.b.weight.double().abs().sum(0) + model.c.weight.abs().sum(0)
    torch.testing.assert_close(sums.double(), exact, rtol=1e-5, atol=0)
