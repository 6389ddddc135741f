"""What the optimiser carries is cut with the network: training goes on as if the other units had been masked."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from structlearn import alrao
from structlearn.models import build
from structlearn.structure import Plan, Structure
from structlearn.structure.verify import outgoing, random_plan, silence

if TYPE_CHECKING:
    from collections.abc import Callable

NETS = {
    "lenet": ((1, 12, 12), {}),
    "resnet18": ((3, 8, 8), {"width": 0.1}),
    "depthwise": ((3, 8, 8), {}),
    "lstm": ((5,), {"hidden": 6, "embedding": 5, "dropout": 0.0}),
}
OPTIMIZERS: dict[str, Callable[[nn.Module], torch.optim.Optimizer]] = {
    "sgd": lambda model: torch.optim.SGD(model.parameters(), 0.003, momentum=0.9, weight_decay=1e-3, nesterov=True),
    "adam": lambda model: torch.optim.Adam(model.parameters(), 1e-3, fused=True),
    "adagrad": lambda model: torch.optim.Adagrad(model.parameters(), 0.01),
    "rmsprop": lambda model: torch.optim.RMSprop(model.parameters(), 1e-3, momentum=0.9, centered=True),
    "alrao": lambda model: alrao.SGD(model, momentum=0.9, lr_max=0.1, seed=3),
    "alrao-adam": lambda model: alrao.Adam(model, lr_max=1e-2, seed=3),
}


def depthwise() -> nn.Module:
    """Narrow, depthwise and narrow again: a block of MobileNet."""
    return nn.Sequential(
        nn.Conv2d(3, 12, 3, bias=False), nn.BatchNorm2d(12), nn.ReLU6(),
        nn.Conv2d(12, 12, 3, groups=12, bias=False), nn.BatchNorm2d(12), nn.ReLU6(),
        nn.Conv2d(12, 9, 1, bias=False), nn.BatchNorm2d(9), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(9, 4),
    )  # fmt: skip


def network(name: str, optimizer: str) -> nn.Module:
    torch.manual_seed(0)
    shape, small = NETS[name]
    model = depthwise() if name == "depthwise" else build(name, shape, 4, **small)
    if optimizer.startswith("alrao"):
        model = alrao.Alrao(model, heads=3)
    return model.double()


def batches(name: str, count: int, seed: int) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    shape = NETS[name][0]
    if name == "lstm":
        tokens = [torch.randint(4, (8, *shape), generator=generator) for _ in range(count)]
        return [(each, each.roll(1, 1)) for each in tokens]
    return [
        (
            torch.randn(8, *shape, generator=generator, dtype=torch.float64),
            torch.randint(4, (8,), generator=generator),
        )
        for _ in range(count)
    ]


def train(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    data: list[tuple[Tensor, Tensor]],
    masked: list[tuple[Tensor, int, Tensor]],
) -> list[float]:
    model.train()
    losses = []
    for x, y in data:
        answer = model(x)
        if isinstance(model, alrao.Alrao):
            loss = model.loss(answer, y)
        else:
            loss = cross_entropy(answer.flatten(0, -2), y.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        silence(masked)
        losses.append(float(loss.detach()))
    return losses


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("name", NETS)
def test_the_cut_network_trains_like_the_masked_one(name: str, optimizer: str) -> None:
    """20 further steps, two cuts (3.2 of what must be shown)."""
    full = network(name, optimizer)
    x, _ = batches(name, 1, 0)[0]
    made = OPTIMIZERS[optimizer](full)
    train(full, made, batches(name, 5, 1), [])
    small = copy.deepcopy(full)
    other = OPTIMIZERS[optimizer](small)
    other.load_state_dict(copy.deepcopy(made.state_dict()))
    structure = Structure(small, x)
    chance = np.random.default_rng(5)
    start = Structure(full, x)
    masked: list[tuple[Tensor, int, Tensor]] = []
    for seed in (2, 3):
        plan = random_plan(structure, chance, least=0.5)  # a normalisation of one unit blows up rounding
        masked = outgoing(start, structure.plan.then(plan))
        silence(masked)
        silence(outgoing(structure, plan))
        structure.apply(plan, other)
        assert all(p.grad is None or p.grad.shape == p.shape for p in small.parameters())
        data = batches(name, 20, seed)
        assert train(small, other, data, []) == pytest.approx(train(full, made, data, masked), rel=1e-5)
    count = sum(parameter.numel() for parameter in small.parameters())
    assert count < sum(parameter.numel() for parameter in full.parameters())
    start.apply(structure.plan)
    for (key, value), wanted in zip(small.state_dict().items(), full.state_dict().values(), strict=True):
        assert torch.allclose(value, wanted, rtol=1e-5, atol=1e-5), key


@pytest.mark.parametrize("optimizer", ["alrao", "alrao-adam"])
def test_each_unit_keeps_its_rate(optimizer: str) -> None:
    model = network("resnet18", optimizer)
    made = OPTIMIZERS[optimizer](model)
    before = {name: rates.clone() for name, rates in made.rates.items()}
    structure = Structure(model, torch.zeros(2, 3, 8, 8, dtype=torch.float64))
    plan = random_plan(structure, np.random.default_rng(0), every=1.0)
    structure.apply(plan, made)
    assert len(plan.keep) == len(structure.sets)
    for name, units in plan.keep.items():
        assert torch.equal(made.rates[name], before[name][list(units)])


def test_state_is_there_after_a_restart_in_the_small_shape() -> None:
    model = network("lenet", "alrao")
    made = OPTIMIZERS["alrao"](model)
    data = batches("lenet", 4, 0)
    train(model, made, data, [])
    structure = Structure(model, data[0][0])
    structure.apply(random_plan(structure, np.random.default_rng(0)), made)
    again = network("lenet", "alrao")
    resumed = OPTIMIZERS["alrao"](again)
    Structure(again, data[0][0]).apply(structure.plan, resumed)
    again.load_state_dict(model.state_dict())
    resumed.load_state_dict(copy.deepcopy(made.state_dict()))
    assert train(again, resumed, data, []) == train(model, made, data, [])


def test_gradients_are_cut_too() -> None:
    model = network("lenet", "sgd")
    (x, y), *_ = batches("lenet", 1, 0)
    loss = cross_entropy(model(x), y)  # stays alive, and with it what autograd knows of shapes
    loss.backward()
    before = {
        name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None
    }
    structure = Structure(model, x)
    cut = structure.apply(Plan({"features.0": (4, 1), "features.7": tuple(range(0, 120, 2))}))
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        assert torch.equal(parameter.grad, cut.select(name, before[name]))
    cross_entropy(model(x), y).backward()


def test_an_optimizer_whose_state_cannot_be_cut_is_refused_before_anything_changes() -> None:
    model = network("lenet", "sgd")
    optimizer = torch.optim.Adafactor(model.parameters())
    data = batches("lenet", 1, 0)
    train(model, optimizer, data, [])
    structure = Structure(model, data[0][0])
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=r"Adafactor keeps 'row_var' of shape \(6, 1, 5, 1\).*take an optimiser"):
        structure.apply(Plan({"features.0": (0,)}), optimizer)
    assert structure.version == 0
    assert all(torch.equal(one, before[name]) for name, one in model.state_dict().items())


@pytest.mark.parametrize(
    ("keep", "message"),
    [
        ({"features.1": (0,)}, "set of units"),
        ({"features.0": ()}, "leaves no unit of features.0, which has 6"),
        ({"features.0": (1, 1)}, "each may stay once"),
        ({"features.0": (5, 6)}, "numbered from 0 to 5"),
    ],
)
def test_a_plan_for_another_network_is_refused(keep: dict[str, tuple[int, ...]], message: str) -> None:
    structure = Structure(network("lenet", "sgd"), torch.zeros(1, 1, 12, 12, dtype=torch.float64))
    with pytest.raises(ValueError, match=message):
        structure.apply(Plan(keep))
