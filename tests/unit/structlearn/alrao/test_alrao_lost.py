"""Units and heads that would spoil the rest are lost; what is not finite moves nobody; no step waits for a device."""

from __future__ import annotations

import math
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from structlearn.alrao import SGD, Adam, Alrao, optimizer
from structlearn.alrao.network import BOUND
from structlearn.alrao.optimizer import SHARE, PerUnit
from structlearn.models import MODELS, build

KINDS = pytest.mark.parametrize("kind", [SGD, Adam])


class Prompt:
    """A device's numbers that come at once: as if the wait for them were over."""

    def seen(self, flags: Tensor) -> list[list[bool]]:
        return [flags.tolist()] if flags.any() else []


@pytest.fixture(params=["looked at", "not looked at"])
def _both_ways(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a CPU, and as on a CUDA device, where a step must not wait for numbers."""
    if request.param == "not looked at":
        monkeypatch.setattr(optimizer, "is_at_hand", lambda _: False)
        monkeypatch.setattr(optimizer, "Late", Prompt)


both_ways = pytest.mark.usefixtures("_both_ways")


def adopted(kind: type[PerUnit], seed: int = 0, **options: object) -> tuple[Alrao, PerUnit]:
    """Nothing in this network keeps an exploded unit's answer small."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Embedding(9, 4), nn.Flatten(), nn.Linear(8, 6), nn.LeakyReLU(0.5), nn.Linear(6, 3))
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
@pytest.mark.parametrize("rate", [1e5, 1e9, 1e30])
@pytest.mark.parametrize("layer", ["model.0", "model.2"])
def test_a_unit_that_explodes_is_lost_and_no_other(kind: type[PerUnit], layer: str, rate: float) -> None:
    net, optimiser = adopted(kind)
    set_rate(optimiser, layer, 1, rate)
    number = optimiser.layers[layer][1]
    step(net, optimiser)
    assert torch.cat(of_unit(net, optimiser, number)).abs().max() > 100
    for later in range(1, 6):  # it may be right for a batch or two: it is lost when it shows
        before = [of_unit(net, optimiser, unit) for unit in range(number)]
        step(net, optimiser, later)
        if optimiser.lost:
            break
    assert int(optimiser.lost) == 1
    assert all(not values.any() for values in of_unit(net, optimiser, number))
    for unit in range(number):  # the gradients that it had spoilt moved nobody
        for now, then in zip(of_unit(net, optimiser, unit), before[unit], strict=True):
            torch.testing.assert_close(now, then, rtol=0, atol=0 if kind is SGD else 0.2)  # Adam's momentum does
    losses = [step(net, optimiser, later) for later in range(2, 30)]
    assert all(math.isfinite(loss) for loss in losses)
    assert max(losses) < 100
    assert int(optimiser.lost) == 1
    assert all(not values.any() for values in of_unit(net, optimiser, number))
    assert float(optimiser.rates[layer][1]) == 0
    assert net.switch.alive.all()


@both_ways
@KINDS
def test_a_loss_beyond_all_bounds_is_given_as_the_bound(kind: type[PerUnit]) -> None:
    net, optimiser = adopted(kind)
    set_rate(optimiser, "model.2", 0, 1e30)
    step(net, optimiser)
    assert step(net, optimiser, 1) == pytest.approx(BOUND["classification"] * (1 + math.log(3)))
    posterior = net.switch.posterior()
    assert int(net.switch.steps) == 2
    assert posterior.exp().min() > 0.01  # the step said nothing about the heads


@both_ways
@KINDS
@pytest.mark.parametrize("rate", [1e9, 1e30])
def test_a_head_that_explodes_is_lost_and_out_of_the_mixture(kind: type[PerUnit], rate: float) -> None:
    net, optimiser = adopted(kind, lr_max=1e-3)
    set_rate(optimiser, "model.4", 2, rate)
    for number in range(60):
        assert math.isfinite(step(net, optimiser, number))
    assert all(each.isfinite().all() for each in net.parameters())
    assert net.eval()(batch(9)[0]).isfinite().all()
    if rate == 1e30:
        assert int(optimiser.lost) == 1
        assert net.switch.alive.tolist() == [True, True, False, True]
        assert net.switch.posterior()[2] == -math.inf
    else:
        assert net.switch.posterior()[2].exp() < 0.02


@both_ways
@KINDS
def test_heads_of_a_regression_that_diverge_are_lost(kind: type[PerUnit]) -> None:
    torch.manual_seed(0)
    net = Alrao(nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 2)), task="regression", heads=5)
    optimiser = kind(net, lr_max=10.0)
    for number in range(200):
        x = torch.randn(16, 3, generator=torch.Generator().manual_seed(number))
        loss = net.loss(net(x), x[:, :2])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        assert loss.isfinite()
    assert all(each.isfinite().all() for each in net.parameters())
    assert bool(net.switch.alive.all()) == (kind is Adam)  # whose steps do not grow with the error
    assert loss < 3


@both_ways
@KINDS
@pytest.mark.parametrize("value", [math.inf, math.nan])
@pytest.mark.parametrize("key", ["model.0.weight", "model.2.weight", "model.4.weight"])
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
def test_a_unit_whose_gradient_is_not_finite_is_lost_and_no_other(kind: type[PerUnit], value: float) -> None:
    net, optimiser = adopted(kind)
    step(net, optimiser)
    x, y = batch(1)
    optimiser.zero_grad()
    net.loss(net(x), y).backward()
    net.model[2].weight.grad[3, 2] = value
    optimiser.step()
    for number in range(2, 8):
        assert math.isfinite(step(net, optimiser, number))
    assert int(optimiser.lost) == 1
    assert float(optimiser.rates["model.2"][3]) == 0
    assert all(each.isfinite().all() for each in net.parameters())


def test_the_units_that_have_grown_most_are_to_blame() -> None:
    net, optimiser = adopted(SGD)
    layer, numbers = net.model[2], optimiser.layers["model.2"]
    start = torch.cat([layer.weight, layer.bias[:, None]], 1).abs().amax(1).detach()

    def blamed() -> list[int]:
        return [number - numbers.start for number in optimiser._exploded().nonzero().flatten().tolist()]

    with torch.no_grad():
        layer.weight[:, 0] = start * torch.tensor([1.0, 1.9, 4.0, 1.0, 1.0, 0.5])
        assert blamed() == [2]
        layer.bias[3] = -2 / SHARE * start[3]  # as much of it as SHARE says
        assert blamed() == [2, 3]
        net.heads.weight[:] = 1e6  # heads are never to blame
        assert blamed() == [2, 3]
        layer.weight[5, 5] = math.nan
        assert blamed() == [5]
        set_rate(optimiser, "model.2", 5, 0.0)  # nor those that do not move
        assert blamed() == [2, 3]


@both_ways
@pytest.mark.parametrize("heads", [1, 3])
def test_where_all_heads_are_lost_the_answer_is_even_and_finite(heads: int) -> None:
    torch.manual_seed(0)
    net = Alrao(nn.Sequential(nn.Linear(4, 3)), heads=heads)
    optimiser = SGD(net, lr_min=1e9, lr_max=1e9)
    for _ in range(6):
        optimiser.zero_grad()
        loss = net.loss(net(torch.randn(5, 4)), torch.arange(5) % 3)
        loss.backward()
        optimiser.step()
    assert int(optimiser.lost) == heads
    assert loss.item() == pytest.approx(math.log(3))
    assert net.switch.posterior().exp().sum().item() == pytest.approx(1)


@KINDS
@pytest.mark.parametrize("high", [0.1, 1e9])
def test_the_way_without_a_look_gives_the_same_bits(
    kind: type[PerUnit], high: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = []
    for looked in (True, False):
        monkeypatch.setattr(optimizer, "is_at_hand", lambda _, looked=looked: looked)
        monkeypatch.setattr(optimizer, "Late", Prompt)
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


@both_ways
def test_running_statistics_are_what_they_were_before_the_explosion() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3)
    )
    net = Alrao(model, heads=4)
    optimiser = SGD(net, lr_max=0.1)

    def go(number: int) -> None:
        x = torch.randn(16, 4, generator=torch.Generator().manual_seed(number))
        net.loss(net(x), (x[:, 0] > 0).long()).backward()
        optimiser.step()
        optimiser.zero_grad()

    for number in range(20):
        go(number)
    with torch.no_grad():
        net.model[0].weight[2] = math.inf
    for number in range(20, 220):
        go(number)
    assert int(optimiser.lost) == 1
    assert all(buffer.isfinite().all() for buffer in net.model.buffers())
    x = torch.randn(500, 4)
    assert (net.eval()(x).argmax(1) == (x[:, 0] > 0)).float().mean() > 0.9


@both_ways
def test_a_large_first_loss_is_where_training_starts() -> None:
    torch.manual_seed(0)
    net = Alrao(nn.Sequential(nn.Linear(20, 30), nn.ReLU(), nn.Linear(30, 10)), heads=4)
    optimiser = SGD(net, lr_min=1e-9, lr_max=1e-7)
    x, y = torch.rand(64, 20) * 3000, torch.randint(10, (64,))
    losses = []
    for _ in range(30):
        loss = net.loss(net(x), y)
        losses.append(loss.item())
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
    assert losses[0] > BOUND["classification"] * (1 + math.log(10))
    assert float(net.first) == pytest.approx(losses[0])
    assert losses[-1] < losses[0]
    assert not optimiser.lost


def test_a_device_is_looked_at_a_fixed_number_of_steps_later(monkeypatch: pytest.MonkeyPatch) -> None:
    class Event:
        def synchronize(self) -> None:
            """It is over."""

    class Flags:
        device, dtype, shape = torch.device("cuda"), torch.bool, (2,)

        def __init__(self, *values: bool) -> None:
            self.values = torch.tensor(values)

    def empty(*_: object, **__: object) -> Tensor:
        return torch.zeros(2, dtype=torch.bool)

    monkeypatch.setattr(torch, "empty", empty)
    monkeypatch.setattr(Tensor, "copy_", lambda self, other, **_: self.logical_or_(other.values))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: SimpleNamespace(record_event=Event))
    late = optimizer.Late()
    come = [late.seen(Flags(number in {2, 3, 12}, False)) for number in range(20)]
    seen = [number for number, flags in enumerate(come) if flags]
    assert seen == [2 + late.LAG, 12 + late.LAG]  # that of 3 was the same explosion
    assert come[seen[0]] == [[True, False]]
