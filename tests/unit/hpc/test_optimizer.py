"""The optimisers in their fastest form against torch's plainest form."""

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import Optimizer

from hpc.config.training import Adagrad, Adam, OptimizerConfig, RmsProp, Sgd
from hpc.optimizer import build
from hpc.pruning import Pruning

PLAIN: dict[str, Any] = {"foreach": False, "fused": False}
CASES: dict[str, tuple[OptimizerConfig, Callable[..., Optimizer]]] = {
    "sgd": (Sgd(lr=0.1), lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, **PLAIN)),
    "sgd without momentum": (Sgd(lr=0.1, momentum=0.0), lambda p: torch.optim.SGD(p, lr=0.1, **PLAIN)),
    "sgd nesterov": (
        Sgd(lr=0.1, momentum=0.8, nesterov=True),
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.8, nesterov=True, **PLAIN),
    ),
    "sgd with decay": (
        Sgd(lr=0.1, weight_decay=0.05),
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.05, **PLAIN),
    ),
    "adam": (Adam(lr=0.01), lambda p: torch.optim.Adam(p, lr=0.01, **PLAIN)),
    "adam with options": (
        Adam(lr=0.01, betas=(0.8, 0.95), eps=1e-3),
        lambda p: torch.optim.Adam(p, lr=0.01, betas=(0.8, 0.95), eps=1e-3, **PLAIN),
    ),
    "adam with decay": (
        Adam(lr=0.01, weight_decay=0.1),
        lambda p: torch.optim.Adam(p, lr=0.01, weight_decay=0.1, **PLAIN),
    ),
    "adam with decoupled decay": (
        Adam(lr=0.01, weight_decay=0.1, decoupled=True),
        lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1, **PLAIN),
    ),
    "adagrad": (
        Adagrad(lr=0.1, weight_decay=0.01, eps=1e-6),
        lambda p: torch.optim.Adagrad(p, lr=0.1, weight_decay=0.01, eps=1e-6, **PLAIN),
    ),
    "rmsprop": (
        RmsProp(lr=0.01, alpha=0.9, eps=1e-4),
        lambda p: torch.optim.RMSprop(p, lr=0.01, alpha=0.9, eps=1e-4, foreach=False),
    ),
    "rmsprop with momentum and decay": (
        RmsProp(lr=0.01, momentum=0.7, weight_decay=0.02),
        lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.7, weight_decay=0.02, foreach=False),
    ),
}


def network(dtype: torch.dtype) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 17), nn.Tanh(), nn.LayerNorm(17), nn.Linear(17, 3)).to(dtype)


def train(model: nn.Module, optimizer: Optimizer, steps: int, start: int = 0) -> None:
    for step in range(start, start + steps):
        generator = torch.Generator().manual_seed(step)
        dtype = next(model.parameters()).dtype
        inputs, targets = (torch.randn(16, n, generator=generator).to(dtype) for n in (6, 3))
        nn.functional.mse_loss(model(inputs), targets).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


# The forms round differently: one unit in the last place a step, which 20 steps carry on.
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-5), (torch.float64, 1e-12)], ids=str)
@pytest.mark.parametrize("name", CASES)
def test_twenty_steps_are_those_of_torchs_plain_form(name, dtype, tolerance):
    config, plain = CASES[name]
    model = network(dtype)
    twin = copy.deepcopy(model)
    before = [parameter.clone() for parameter in model.parameters()]
    train(model, build(config, model), 20)
    train(twin, plain(twin.parameters()), 20)
    for old, ours, theirs in zip(before, model.parameters(), twin.parameters(), strict=True):
        assert not torch.allclose(old, ours, rtol=1e-2)
        torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", CASES)
def test_the_configs_defaults_are_the_settings_they_state(name):
    config, _ = CASES[name]
    (group,) = build(config, network(torch.float32)).param_groups
    for key in ("lr", "weight_decay", "momentum", "nesterov", "eps", "alpha", "betas"):
        if hasattr(config, key):
            assert group[key] == getattr(config, key), key


@pytest.mark.parametrize("name", CASES)
def test_it_goes_on_from_its_state(name):
    config, _ = CASES[name]
    model = network(torch.float32)
    optimizer = build(config, model)
    train(model, optimizer, 3)
    twin = copy.deepcopy(model)
    other = build(config, twin)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    train(model, optimizer, 3, start=3)
    train(twin, other, 3, start=3)
    for ours, theirs in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_decoupled_decay_does_not_go_through_the_gradient():
    """With a gradient of zero, Adam's decay is a step of the rate's size, AdamW's shrinks by lr * decay."""
    found = {}
    for decoupled in (False, True):
        weight = nn.Parameter(torch.full((3,), 10.0))
        optimizer = build(Adam(lr=0.01, weight_decay=0.1, decoupled=decoupled), nn.ParameterList([weight]))
        weight.grad = torch.zeros(3)
        optimizer.step()
        found[decoupled] = weight[0].item()
    assert found[True] == pytest.approx(10 * (1 - 0.001))
    assert found[False] == pytest.approx(10 - 0.01)


def test_coupled_decay_adds_to_the_gradient():
    weight = nn.Parameter(torch.full((3,), 10.0))
    optimizer = build(Sgd(lr=0.1, momentum=0.0, weight_decay=0.5), nn.ParameterList([weight]))
    weight.grad = torch.ones(3)
    optimizer.step()
    assert weight.tolist() == pytest.approx([10 - 0.1 * (1 + 0.5 * 10)] * 3)


@pytest.mark.parametrize("config", [Sgd(), Adam(), Adagrad(), RmsProp()], ids=lambda c: c.name)
def test_frozen_parameters_are_left_out(config):
    model = network(torch.float32)
    model[0].requires_grad_(requires_grad=False)
    (group,) = build(config, model).param_groups
    assert len(group["params"]) == len(list(model.parameters())) - 2
    assert all(parameter.requires_grad for parameter in group["params"])


# --- clipping, which the loop does -------------------------------------------------------------------------


class Feed:
    """One step an epoch, always the same batch."""

    steps_per_epoch = 1

    def batches(self, step: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        yield torch.full((2, 6), 3.0), torch.full((2, 3), 100.0)

    def evaluation(self, part: str) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        yield from ()


def change_of_one_step(tmp_path, clip_norm: float | None) -> float:
    """The length of the change that one step of the engine makes, at rate 1."""
    from hpc.alone import Alone
    from hpc.config.root import Config
    from hpc.engine import Engine, Parts
    from hpc.exchange.agenda import Agenda
    from hpc.exchange.none import NoExchange
    from hpc.heartbeat import Heartbeat
    from hpc.objective import Objective
    from hpc.penalties import Penalties
    from hpc.progress import Silent
    from hpc.signals import StopRequest
    from hpc.watch import Watch

    class Nowhere:
        def save(self, *_: Any, **__: Any) -> None:
            """Checkpoints are tested elsewhere."""

    config = Config(epochs=1, optimizer=Sgd(lr=1.0, momentum=0.0, clip_norm=clip_norm))
    model, comm, device = network(torch.float64), Alone(), torch.device("cpu")
    before = torch.cat([parameter.detach().flatten().clone() for parameter in model.parameters()])
    (tmp_path / "logs").mkdir(exist_ok=True)

    class Doubles(Objective):
        def answer(self, net: Any, inputs: torch.Tensor) -> torch.Tensor:
            return net(inputs.double())

        def loss(self, answer: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
            return super().loss(answer, targets.double())

    parts = Parts(
        config, comm, device, model, build(config.optimizer, model),
        NoExchange(comm, model, Agenda(1, None, 1), seed=0, consensus_every=None),
        Doubles("regression", device, torch.float32), list(model.parameters()), Watch(), Pruning(), Penalties(), Feed(),
        "", {}, Nowhere(), Heartbeat(tmp_path, 0, 1, {}), StopRequest(), lambda *_: None,
    )  # fmt: skip
    Engine(parts).run(Silent())
    after = torch.cat([parameter.detach().flatten() for parameter in model.parameters()])
    return float((after - before).norm())


def test_a_long_gradient_is_clipped_over_all_parameters_together(tmp_path):
    free = change_of_one_step(tmp_path, None)
    assert free > 10
    assert change_of_one_step(tmp_path, 0.5) == pytest.approx(0.5, rel=1e-5)
    assert change_of_one_step(tmp_path, 2 * free) == pytest.approx(free)
