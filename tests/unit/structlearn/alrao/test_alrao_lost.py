"""Units and heads that would spoil the rest are lost; what is not finite moves nobody; no step waits for a device."""

from __future__ import annotations

import copy
import math
from contextlib import nullcontext

import pytest
import torch
from torch import Tensor, nn

from structlearn.alrao import SGD, Adam, Alrao, optimizer
from structlearn.alrao.optimizer import LIMIT, PerUnit
from structlearn.models import MODELS, build

KINDS = pytest.mark.parametrize("kind", [SGD, Adam])


@pytest.fixture(params=["looked at", "not looked at"])
def _both_ways(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a CPU, and as on other devices, where a step must not depend on a look at numbers."""
    if request.param == "not looked at":
        monkeypatch.setattr(optimizer, "_at_hand", lambda _: False)


both_ways = pytest.mark.usefixtures("_both_ways")


def adopted(kind: type[PerUnit], seed: int = 0, **options: object) -> tuple[Alrao, PerUnit]:
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Embedding(9, 4), nn.Flatten(), nn.Linear(8, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 3)
    )
    net = Alrao(model, heads=4)
    return net, kind(net, **{"lr_max": 0.1, **options})


def batch(step: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    return torch.randint(9, (8, 2), generator=generator), torch.randint(3, (8,), generator=generator)


def step(net: Alrao, optimiser: PerUnit, number: int = 0) -> float:
    x, y = batch(number)
    loss = net.loss(net(x), y)
    optimiser.zero_grad()
    loss.backward()
    optimiser.step()
    return loss.item()


def set_rate(optimiser: PerUnit, layer: str, unit: int, rate: float) -> None:
    rates = optimiser.param_groups[0]["rates"].clone()
    rates[optimiser.layers[layer][unit]] = rate
    optimiser.redraw(rates)


def of_unit(net: Alrao, optimiser: PerUnit, number: int) -> list[Tensor]:
    """All parameters of a unit."""
    index = optimiser._table.index
    return [each[(index[key] == number).broadcast_to(each.shape)] for key, each in net.named_parameters()]


@both_ways
@KINDS
@pytest.mark.parametrize("layer", ["model.0", "model.2"])
def test_a_unit_whose_step_is_too_large_is_lost_and_no_other(kind: type[PerUnit], layer: str) -> None:
    net, optimiser = adopted(kind, momentum=0.9) if kind is SGD else adopted(kind)
    other_net, other = copy.deepcopy(net), None
    other = type(optimiser)(other_net, lr_max=0.1, **({"momentum": 0.9} if kind is SGD else {}))
    set_rate(optimiser, layer, 1, 1e30)
    number = optimiser.layers[layer][1]
    step(net, optimiser)
    step(other_net, other)
    assert int(optimiser.lost) == 1
    assert all(not values.any() for values in of_unit(net, optimiser, number))
    for unit in range(number):  # all others made the same step as without it
        for mine, theirs in zip(of_unit(net, optimiser, unit), of_unit(other_net, other, unit), strict=True):
            assert torch.equal(mine, theirs)
    for later in range(1, 6):
        assert math.isfinite(step(net, optimiser, later))
    assert int(optimiser.lost) == 1
    assert all(not values.any() for values in of_unit(net, optimiser, number))
    assert float(optimiser.rates[layer][1]) == 0
    assert all(parameter.isfinite().all() for parameter in net.parameters())
    assert net.switch.alive.all()


@both_ways
@KINDS
def test_a_head_whose_step_is_too_large_is_lost_and_out_of_the_mixture(kind: type[PerUnit]) -> None:
    net, optimiser = adopted(kind)
    set_rate(optimiser, "model.5", 2, 1e30)
    for number in range(4):
        assert math.isfinite(step(net, optimiser, number))
    assert int(optimiser.lost) == 1
    assert net.switch.alive.tolist() == [True, True, False, True]
    assert net.switch.posterior()[2] == -math.inf
    assert net.eval()(batch(9)[0]).isfinite().all()


@both_ways
@pytest.mark.parametrize("heads", [1, 3])
def test_where_all_heads_are_lost_the_answer_is_even_and_finite(heads: int) -> None:
    net = Alrao(nn.Sequential(nn.Linear(4, 3)), heads=heads)
    optimiser = SGD(net, lr_min=1e30, lr_max=1e30)
    for _ in range(2):
        loss = net.loss(net(torch.randn(5, 4)), torch.arange(5) % 3)
        loss.backward()
        optimiser.step()
    assert int(optimiser.lost) == heads
    assert loss.item() == pytest.approx(math.log(3))
    assert net.switch.posterior().exp().sum().item() == pytest.approx(1)


@both_ways
@KINDS
@pytest.mark.parametrize("value", [math.inf, math.nan])
@pytest.mark.parametrize("key", ["model.0.weight", "model.2.weight", "model.5.weight"])
def test_weights_that_are_not_finite_are_given_up_and_the_rest_waits_a_step(
    kind: type[PerUnit], value: float, key: str
) -> None:
    net, optimiser = adopted(kind)
    step(net, optimiser)
    parameter = net.get_parameter(key)
    with torch.no_grad():
        if key == "model.0.weight":
            parameter[:, 1] = value
        else:
            parameter[1] = value
    for number in range(1, 6):
        loss = step(net, optimiser, number)
    assert math.isfinite(loss)
    assert all(each.isfinite().all() for each in net.parameters())
    assert int(optimiser.lost) == 1
    assert float(optimiser.rates[key.removesuffix(".weight")][1]) == 0


@both_ways
@KINDS
@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_where_a_gradient_is_not_finite_only_that_row_does_not_move(kind: type[PerUnit], value: float) -> None:
    net, optimiser = adopted(kind)
    step(net, optimiser)
    x, y = batch(1)
    optimiser.zero_grad()
    net.loss(net(x), y).backward()
    layer = net.model[2]
    layer.weight.grad += 1
    layer.weight.grad[3, 2] = value
    before = layer.weight.detach().clone()
    optimiser.step()
    assert ((layer.weight != before).any(1)).tolist() == [unit != 3 for unit in range(6)]
    assert torch.equal(layer.weight[3], before[3])
    assert not optimiser.lost
    for number in range(2, 5):
        assert math.isfinite(step(net, optimiser, number))
    assert not torch.equal(layer.weight[3], before[3])  # it goes on


def test_the_limit_is_where_it_is_said_to_be() -> None:
    layer = nn.Linear(1, 2, bias=False)
    optimiser = SGD(layer, lr_min=1, lr_max=1)
    layer.weight.grad = torch.tensor([[LIMIT], [0.99 * LIMIT]])
    optimiser.step()
    assert int(optimiser.lost) == 1
    assert layer.weight[0].item() == 0
    assert layer.weight[1].item() == pytest.approx(-0.99 * LIMIT, rel=1e-5)


@KINDS
@pytest.mark.parametrize("high", [0.1, 1e9])
def test_the_way_without_a_look_gives_the_same_bits(
    kind: type[PerUnit], high: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = []
    for looked in (True, False):
        monkeypatch.setattr(optimizer, "_at_hand", lambda _, looked=looked: looked)
        net, optimiser = adopted(kind, lr_max=high, weight_decay=0.01)
        for number in range(6):
            step(net, optimiser, number)
        assert (int(optimiser.lost) > 0) == (high > 1)
        results.append([*net.state_dict().values(), *optimiser.rates.values()])
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))


@both_ways
@pytest.mark.parametrize("name", MODELS)
def test_every_model_takes_steps_at_all_rates(name: str) -> None:
    torch.manual_seed(0)
    shape = {"lstm": (6,), "mlp": (4,)}.get(name, (3, 32, 32))
    net = Alrao(build(name, shape, 3, width=0.125), heads=3)
    optimiser = SGD(net, momentum=0.9, weight_decay=1e-4)
    x = torch.randint(3, (4, *shape)) if name == "lstm" else torch.randn(4, *shape)
    y = x if name == "lstm" else torch.arange(4) % 3
    for _ in range(3):
        loss = net.loss(net(x), y)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        assert loss.isfinite()
    assert all(parameter.isfinite().all() for parameter in net.parameters())
    assert net.eval()(x).isfinite().all()


@KINDS
@pytest.mark.parametrize("task", ["classification", "regression"])
def test_no_number_on_a_device_is_read(kind: type[PerUnit], task: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the meta device, where there are no numbers: to read one is an error."""
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # it knows no such device
    with torch.device("meta"):
        model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(36, 3))
        x = torch.empty(6, 2, 5, 5)
        y = torch.empty(6, dtype=torch.int64) if task == "classification" else torch.empty(6, 3)
    net = Alrao(model, task=task, heads=4)
    assert net.switch.logw.device.type == net.evidence.device.type == "meta"
    optimiser = kind(net, weight_decay=0.1, **({"momentum": 0.9} if kind is SGD else {}))
    for _ in range(2):
        net.loss(net(x), y).backward()
        optimiser.step()
        optimiser.zero_grad()
    net.drop()
    assert net.eval()(x).shape == (6, 3)
    assert optimiser.lost.device.type == "meta"
    with pytest.raises(RuntimeError):
        bool(optimiser.lost)
