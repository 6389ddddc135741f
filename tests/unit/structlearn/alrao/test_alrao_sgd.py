"""SGD with one rate a unit: torch's steps where all rates are one, and a plain loop where they differ."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from structlearn.alrao import SGD, Adam, Alrao, adopt
from structlearn.models import build
from structlearn.units import units

RATE = 0.0625  # exact in float32
OPTIONS = [
    {},
    {"momentum": 0.9},
    {"momentum": 0.9, "nesterov": True},
    {"weight_decay": 0.01},
    {"momentum": 0.5, "weight_decay": 0.01, "nesterov": True},
]


def network(name: str) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    if name == "mlp":
        return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)), torch.randn(8, 4, dtype=torch.float64)
    if name == "conv":
        layers = [nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.Tanh(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
        return nn.Sequential(*layers, nn.Linear(4, 3)), torch.randn(8, 2, 5, 5, dtype=torch.float64)
    return build("lstm", (6,), 3, width=0.05, dropout=0), torch.randint(3, (8, 6))


def train(model: nn.Module, optimiser: torch.optim.Optimizer, x: Tensor, steps: int) -> None:
    y = torch.arange(len(x)) % 3
    for _ in range(steps):
        answer = model(x)
        answer = answer if answer.dim() == 2 else answer[:, -1]
        optimiser.zero_grad()
        nn.functional.cross_entropy(answer, y).backward()
        optimiser.step()


def assert_same(one: nn.Module, other: nn.Module, **tolerance: float) -> None:
    for mine, theirs in zip(one.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, **tolerance)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("name", ["mlp", "conv", "lstm"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_with_one_common_rate_it_is_torchs(name: str, options: dict[str, object], dtype: torch.dtype) -> None:
    model, x = network(name)
    model = model.to(dtype)
    x = x.to(dtype) if x.is_floating_point() else x
    plain = copy.deepcopy(model)
    train(model, SGD(model, lr_min=RATE, lr_max=RATE, **options), x, 50)
    train(plain, torch.optim.SGD(plain.parameters(), lr=RATE, **options), x, 50)
    tolerance = {"rtol": 1e-5, "atol": 1e-6} if dtype == torch.float32 else {"rtol": 1e-11, "atol": 1e-12}
    assert_same(model, plain, **tolerance)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("name", ["mlp", "conv", "lstm"])
def test_each_unit_moves_at_its_own_rate(name: str, options: dict[str, object]) -> None:
    """Against a loop over units, each of whose entries is moved by torch's formulas."""
    model, x = network(name)
    model.double()
    by_hand = copy.deepcopy(model)
    optimiser = SGD(model, lr_min=0.01, lr_max=0.5, seed=1, **options)
    rates = torch.cat(list(optimiser.rates.values()))
    assert len(set(rates.tolist())) == len(rates)
    torchs = torch.optim.SGD(by_hand.parameters(), lr=1.0, **options)
    index = units(by_hand).index
    for _ in range(5):
        train(model, optimiser, x, 1)
        before = {key: parameter.detach().clone() for key, parameter in by_hand.named_parameters()}
        train(by_hand, torchs, x, 1)
        with torch.no_grad():
            for key, parameter in by_hand.named_parameters():
                moved = parameter - before[key]  # at rate 1
                whose = index[key].broadcast_to(parameter.shape)
                parameter.copy_(before[key])
                for unit, rate in enumerate(rates.tolist()):
                    parameter[whose == unit] += rate * moved[whose == unit]
    assert_same(model, by_hand, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("kind", [SGD, Adam])
def test_frozen_units_never_move_and_all_others_do(kind: type) -> None:
    model, x = network("conv")
    before = copy.deepcopy(model)
    optimiser = kind(model, lr_min=0.01, lr_max=0.1, frozen=0.5, weight_decay=0.1)
    train(model, optimiser, x.float(), 3)
    table = units(model)
    rates = torch.cat(list(optimiser.rates.values()))
    assert 0 < int((rates == 0).sum()) < len(rates)
    assert not optimiser.lost
    for (key, parameter), old in zip(model.named_parameters(), before.parameters(), strict=True):
        asleep = (rates[table.index[key]] == 0).broadcast_to(parameter.shape)
        assert torch.equal(parameter[asleep], old[asleep])
        assert key == "0.bias" or (parameter != old)[~asleep].all()  # a BatchNorm hides the convolution's bias


@pytest.mark.parametrize("kind", [SGD, Adam])
def test_a_schedule_multiplies_all_rates(kind: type) -> None:
    model, x = network("mlp")
    plain, halved = copy.deepcopy(model), copy.deepcopy(model)
    scheduled = kind(model, lr_min=0.01, lr_max=0.1)
    torch.optim.lr_scheduler.LambdaLR(scheduled, lambda _: 0.5)
    lower = kind(halved, lr_min=0.005, lr_max=0.05)
    train(model, scheduled, x.float(), 5)
    train(halved, lower, x.float(), 5)
    train(plain, kind(plain, lr_min=0.01, lr_max=0.1), x.float(), 5)
    assert_same(model, halved, rtol=1e-5, atol=1e-6)
    assert not torch.equal(model[0].weight, plain[0].weight)
    assert scheduled.param_groups[0]["lr"] == 0.5


def steps(net: Alrao, optimiser: torch.optim.Optimizer, count: int, first: int = 0) -> None:
    for step in range(first, first + count):
        generator = torch.Generator().manual_seed(step)
        x, y = torch.randn(8, 4, generator=generator), torch.randint(3, (8,), generator=generator)
        net.loss(net(x), y).backward()
        optimiser.step()
        optimiser.zero_grad()


def adopted(seed: int, kind: type, **options: object) -> tuple[Alrao, torch.optim.Optimizer]:
    torch.manual_seed(seed)
    bounded = [nn.BatchNorm1d(6), nn.Tanh()] if options.get("lr_max", 10) <= 10 else [nn.LeakyReLU(0.5)]
    net = Alrao(nn.Sequential(nn.Linear(4, 6), *bounded, nn.Linear(6, 3)), heads=4)
    return net, kind(net, seed=seed, **options)


@pytest.mark.parametrize(
    ("kind", "options"),
    [(SGD, {"momentum": 0.9}), (SGD, {"lr_max": 1e9, "momentum": 0.5}), (Adam, {}), (Adam, {"lr_max": 1e9})],
    ids=str,
)
def test_saved_and_loaded_it_goes_on_bit_for_bit(kind: type, options: dict[str, float]) -> None:
    whole, its = adopted(0, kind, **options)
    steps(whole, its, 10)
    half, first = adopted(0, kind, **options)
    steps(half, first, 5)
    fresh, second = adopted(1, kind, **options)
    assert not torch.equal(fresh.heads.weight, half.heads.weight)
    fresh.load_state_dict(half.state_dict())
    second.load_state_dict(first.state_dict())
    steps(fresh, second, 5, first=5)
    for key, value in whole.state_dict().items():
        assert torch.equal(fresh.state_dict()[key], value), key
    for name, rates in its.rates.items():
        assert torch.equal(second.rates[name], rates)
    assert torch.equal(second.lost, its.lost)
    assert (int(its.lost) > 0) == (options.get("lr_max", 10) > 10)
    # What was loaded is a copy: the network that was saved is as it was.
    assert int(half.switch.steps) == 5
    again, third = adopted(0, kind, **options)
    steps(again, third, 5)
    assert all(torch.equal(first.rates[name], rates) for name, rates in third.rates.items())


def test_parameters_without_gradients_stay_and_state_comes_with_the_first() -> None:
    model, x = network("mlp")
    model[0].requires_grad_(False)
    optimiser = SGD(model, momentum=0.9)
    before = copy.deepcopy(model)
    assert len(optimiser.param_groups[0]["params"]) == 2
    optimiser.step()
    assert not optimiser.state
    train(model, optimiser, x.float(), 1)
    assert torch.equal(model[0].weight, before[0].weight)
    assert not torch.equal(model[2].weight, before[2].weight)


def test_a_closure_is_called_and_its_loss_comes_back() -> None:
    model, _ = network("mlp")
    optimiser = SGD(model)

    def closure() -> float:
        loss = model[2].bias.square().sum()
        loss.backward()
        return loss.item()

    assert optimiser.step(closure) > 0
    assert optimiser.step() is None


def test_rates_can_be_given() -> None:
    net, optimiser = adopted(0, SGD, lr_max=1e9)
    steps(net, optimiser, 8)
    assert optimiser.lost
    optimiser.redraw(torch.full_like(optimiser.param_groups[0]["rates"], 0.25))
    assert not optimiser.lost
    assert all((rates == 0.25).all() for rates in optimiser.rates.values())
    before = net.model[0].bias.detach().clone()
    net.loss(net(torch.randn(8, 4)), torch.zeros(8, dtype=torch.int64)).backward()
    net.model[0].bias.grad.fill_(1)
    optimiser.step()
    torch.testing.assert_close(net.model[0].bias, before - 0.25)


@pytest.mark.parametrize("options", [{"momentum": 1.0}, {"nesterov": True}, {"lr_min": 0.0}, {"frozen": 1.0}])
def test_what_makes_no_sense_is_refused(options: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"must be|needs a momentum"):
        SGD(nn.Linear(2, 2), **options)


def test_a_network_without_parameters_and_sparse_gradients_are_refused() -> None:
    with pytest.raises(ValueError, match="no parameter that can be trained"):
        SGD(nn.ReLU())
    model = nn.Embedding(3, 2, sparse=True)
    model(torch.tensor([1])).sum().backward()
    with pytest.raises(RuntimeError, match="sparse=False"):
        SGD(model).step()


@pytest.mark.parametrize("nesterov", [False, True])
def test_a_schedule_of_momentum_is_torchs(nesterov: bool) -> None:
    torch.manual_seed(0)
    mine = nn.Linear(5, 3).double()
    theirs = copy.deepcopy(mine)
    ours = SGD(mine, lr_min=0.0625, lr_max=0.0625, momentum=0.9, nesterov=nesterov)
    other = torch.optim.SGD(theirs.parameters(), lr=0.0625, momentum=0.9, nesterov=nesterov)
    for step in range(40):
        for group in (*ours.param_groups, *other.param_groups):
            group["momentum"] = 0.9 if step < 20 else 0.5
        x = torch.randn(8, 5, dtype=torch.float64)
        for model, optimiser in ((mine, ours), (theirs, other)):
            optimiser.zero_grad()
            model(x).square().mean().backward()
            optimiser.step()
    for one, two in zip(mine.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=1e-12)


def test_a_state_of_another_network_is_refused() -> None:
    with pytest.raises(ValueError, match="of a network of 7 units, but this one has 5"):
        SGD(nn.Linear(2, 5)).load_state_dict(SGD(nn.Linear(2, 7)).state_dict())


def test_one_call_takes_the_options_of_both() -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 3))
    net, optimiser = adopt(model, head="0", theta=0.9, per="example", heads=2, momentum=0.5)
    assert (net.head, net.switch.theta, net.switch.per) == ("0", 0.9, "example")
    assert optimiser.param_groups[0]["momentum"] == 0.5
