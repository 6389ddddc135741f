"""Adam with one rate a unit: torch's steps where all rates are one, and the formulas where they differ."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from structlearn.alrao import Adam
from structlearn.models import build
from structlearn.units import units

RATE = 2.0**-6  # exact in float32
OPTIONS = [{}, {"weight_decay": 0.01}, {"betas": (0.5, 0.9), "eps": 1e-3}, {"betas": (0.0, 0.0)}]


def network(name: str) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    if name == "mlp":
        return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)), torch.randn(8, 4, dtype=torch.float64)
    if name == "conv":
        layers = [nn.Conv2d(2, 4, 3, bias=False), nn.BatchNorm2d(4), nn.Tanh(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
        return nn.Sequential(*layers, nn.Linear(4, 3)), torch.randn(8, 2, 5, 5, dtype=torch.float64)
    return build("lstm", (6,), 3, width=0.05, dropout=0), torch.randint(3, (8, 6))


def gradients(model: nn.Module, x: Tensor) -> None:
    model.zero_grad()
    answer = model(x)
    answer = answer if answer.dim() == 2 else answer[:, -1]
    nn.functional.cross_entropy(answer, torch.arange(len(x)) % 3).backward()


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("name", ["mlp", "conv", "lstm"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_with_one_common_rate_it_is_torchs(name: str, options: dict[str, object], dtype: torch.dtype) -> None:
    """From the same gradients: Adam's first steps have the size of the rate even where a gradient is rounding only."""
    model, x = network(name)
    model = model.to(dtype)
    x = x.to(dtype) if x.is_floating_point() else x
    plain = copy.deepcopy(model)
    mine = Adam(model, lr_min=RATE, lr_max=RATE, **options)
    torchs = torch.optim.Adam(plain.parameters(), lr=RATE, **options)
    for _ in range(50):
        gradients(plain, x)
        for one, other in zip(model.parameters(), plain.parameters(), strict=True):
            one.grad = other.grad.clone()
        mine.step()
        torchs.step()
    tolerance = {"rtol": 1e-5, "atol": 2e-6} if dtype == torch.float32 else {"rtol": 1e-11, "atol": 1e-12}
    for one, other in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(one, other, **tolerance)


@pytest.mark.parametrize("name", ["mlp", "conv", "lstm"])
def test_each_unit_moves_at_its_own_rate(name: str) -> None:
    """A unit's way is torch's at rate 1 times its rate, from the same gradients."""
    model, x = network(name)
    model.double()
    optimiser = Adam(model, lr_min=0.001, lr_max=0.1, seed=1)
    rates = torch.cat(list(optimiser.rates.values()))
    shadow = copy.deepcopy(model)
    torchs = torch.optim.Adam(shadow.parameters(), lr=1.0)
    index = units(model).index
    for _ in range(5):
        gradients(model, x)
        for one, other in zip(shadow.parameters(), model.parameters(), strict=True):
            one.grad = other.grad.clone()
        old = [parameter.detach().clone() for parameter in model.parameters()]
        before = [parameter.detach().clone() for parameter in shadow.parameters()]
        optimiser.step()
        torchs.step()
        for (key, parameter), was, start, other in zip(
            model.named_parameters(), old, before, shadow.parameters(), strict=True
        ):
            whose = index[key].broadcast_to(parameter.shape)
            for unit, rate in enumerate(rates.tolist()):
                mask = whose == unit
                torch.testing.assert_close(
                    parameter[mask], was[mask] + rate * (other - start)[mask], rtol=1e-9, atol=1e-11
                )


def test_a_parameter_counts_its_own_steps() -> None:
    """One whose gradient comes late starts with torch's corrections of a first step."""
    model, x = network("mlp")
    model.double()
    plain = copy.deepcopy(model)
    mine, torchs = Adam(model, lr_min=RATE, lr_max=RATE), torch.optim.Adam(plain.parameters(), lr=RATE)
    for step in range(6):
        for each, optimiser in ((model, mine), (plain, torchs)):
            gradients(each, x)
            if step < 3:
                each[0].weight.grad = None
            optimiser.step()
    torch.testing.assert_close(model[0].weight, plain[0].weight, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("betas", [(1.0, 0.9), (0.9, 1.0), (-0.1, 0.9)])
def test_betas_out_of_range_are_refused(betas: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="betas"):
        Adam(nn.Linear(2, 2), betas=betas)
