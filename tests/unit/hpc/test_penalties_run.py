"""Whole runs with penalties, in this process: against loops by hand, resumed, pruned, with every optimiser."""

import math

import pytest
import torch
from torch import nn

from hpc import alrao, data, network, optimizer, penalties
from hpc.alone import Alone
from hpc.config.folder import freeze
from hpc.config.read import validate
from hpc.data import Feed
from hpc.engine import Engine
from hpc.errors import ConfigError
from hpc.objective import Objective
from hpc.progress import Silent
from hpc.run import assemble
from hpc.signals import StopRequest
from structlearn.penalties import penalise

DIGITS = {
    "epochs": 2,
    "model": {"name": "mlp", "widths": [16]},
    "data": {"name": "digits"},
    "record": {"every_steps": 1},
}
CPU = torch.device("cpu")
NORM = {"name": "norm", "threshold": 0.7, "strength": 0.02}
RUNS = {
    "two of them": {"penalties": [{"name": "l2"}, {"name": "reversed_group_lasso", "factors": "usual"}]},
    "proximal": {"penalties": [{"name": "sparse_group_lasso", "proximal": True, "strength": 1e-3, "mix": 0.2}]},
    "pruned": {"penalties": [{"name": "l1", "strength": 1e-4}], "pruning": NORM},
    "pruned with factors": {"pruning": {**NORM, "factors": "bayesian", "strength": None, "threshold": 1.0}},
    "Adam": {"penalties": [{"name": "group_lasso", "factors": {"head": 0.5}}], "optimizer": {"name": "adam"}},
    "Alrao": {"penalties": [{"name": "group_lasso"}], "optimizer": {"name": "alrao", "momentum": 0.5, "lr_max": 1.0}},
    "scales": {
        "penalties": [{"name": "bn_lasso", "proximal": True, "strength": 0.1}, {"name": "l1"}],
        "model": {"name": "resnet18", "width": 0.0625},
        "epochs": 1,
    },
}


@pytest.fixture(autouse=True)
def _torch_as_before():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def engine_of(run_dir, stop=None, **sections):
    config = validate({**DIGITS, **sections, "run_dir": str(run_dir)})
    freeze(config)
    engine = Engine(assemble(config, Alone(), stop or StopRequest(), lambda _: None))
    loaded = engine.parts.checkpoints.load()
    if loaded is not None:
        engine.restore(loaded)
    return engine


def by_hand(regularise, **sections):
    """The losses of a plain loop, and the network that it ends with; `regularise(model, samples)` before each step."""
    config = validate({**DIGITS, **sections})
    torch.set_num_threads(config.compute.threads or torch.get_num_threads())
    dataset = data.load(config.data, config.seed)
    model = network.build(config.model, dataset, config.seed)
    stepper = optimizer.build(config.optimizer, model)
    objective = Objective(dataset.task, CPU, torch.float32)
    feed = Feed(dataset, config.data, CPU, seed=config.seed, rank=0, world_size=1)
    seen = []
    for epoch in range(config.epochs):
        for inputs, targets in feed.epoch(epoch):
            stepper.zero_grad()
            loss, _ = objective(model, inputs, targets)
            loss.backward()
            regularise(model, len(dataset.train))
            stepper.step()
            seen.append(loss.item())
    return seen, model


def weights(model):
    """(weight, P, n) of the linear layers of an mlp."""
    return [
        (each.weight, each.in_features, each.out_features) for each in model.modules() if isinstance(each, nn.Linear)
    ]


@torch.no_grad()
def two_of_them(model, samples):
    for weight, p, _ in weights(model):
        weight.grad.add_(weight, alpha=2 / samples * (p / 2))
    for weight, _, n in weights(model):
        norms = weight.norm(dim=0)
        weight.grad.add_(math.sqrt(n) / samples * weight / torch.where(norms > 0, norms, 1.0))


@torch.no_grad()
def all_squares(model, samples):
    for weight, _, _ in weights(model):
        weight.grad.add_(weight, alpha=2 * 0.001)


def test_a_run_with_l2_does_bit_for_bit_what_a_loop_by_hand_does(tmp_path):
    """It is also weight decay of twice the strength, but for biases."""
    sections = {"penalties": [{"name": "l2", "factors": "usual", "strength": 0.001}]}
    engine = engine_of(tmp_path / "run", **sections)
    assert engine.run(Silent()) == "done"
    seen, model = by_hand(all_squares, **sections)
    assert engine.record["steps"].columns["loss"] == seen
    for one, other in zip(engine.parts.model.parameters(), model.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_run_with_two_penalties_does_what_a_loop_by_hand_does(tmp_path):
    engine = engine_of(tmp_path / "run", **RUNS["two of them"])
    assert engine.run(Silent()) == "done"
    seen, model = by_hand(two_of_them, **RUNS["two of them"])
    assert engine.record["steps"].columns["loss"] == pytest.approx(seen, rel=1e-4)
    for one, other in zip(engine.parts.model.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5)
    plain, _ = by_hand(lambda *_: None)
    assert max(abs(a - b) for a, b in zip(seen, plain, strict=True)) > 0.01  # the penalties did something


@pytest.mark.parametrize("name", RUNS)
def test_a_stopped_and_resumed_run_ends_bit_identical(name, tmp_path):
    """Penalties carry nothing; the network that they are on comes back, cut or not."""

    class Soon:
        requested = False

    whole = engine_of(tmp_path / "whole", **RUNS[name])
    assert whole.run(Silent()) == "done"
    stop = Soon()
    engine = engine_of(tmp_path / "broken", stop, **RUNS[name])
    before = engine.parts.watch.after_step

    def after_step(step):
        before(step)
        stop.requested = step >= 20

    engine.parts.watch.after_step = after_step
    assert engine.run(Silent()) == "stopped"
    engine = engine_of(tmp_path / "broken", **RUNS[name])
    assert engine.place.step >= 20
    assert engine.run(Silent()) == "done"
    one, other = whole.parts.model.state_dict(), engine.parts.model.state_dict()
    assert one.keys() == other.keys()
    assert all(torch.equal(value, other[key]) for key, value in one.items())
    assert whole.record["epochs"].columns["train_loss"] == engine.record["epochs"].columns["train_loss"]


def test_proximal_steps_of_a_run_make_exact_zeros(tmp_path):
    zeros = {}
    for proximal in (True, False):
        sections = {"penalties": [{"name": "l1", "strength": 1e-3, "factors": "usual", "proximal": proximal}]}
        engine = engine_of(tmp_path / str(proximal), **sections)
        assert engine.run(Silent()) == "done"
        zeros[proximal] = [int((weight == 0).sum()) for weight, _, _ in weights(engine.parts.model)]
    assert all(zero > 0 for zero in zeros[True])
    assert zeros[False] == [0, 0]


def test_when_pruning_cuts_the_penalties_go_on_with_what_is_left(tmp_path):
    engine = engine_of(tmp_path / "run", **RUNS["pruned"])
    (penalty,) = engine.parts.penalties._penalties
    whole = penalty._current()
    assert engine.run(Silent()) == "done"
    assert sum(engine.parts.pruning._pruner.structure.widths.values()) < 16
    assert penalty._current() is not whole
    fresh = penalise(engine.parts.model, "l1", strength=1e-4)
    assert penalty.value() == fresh.value()


def test_norm_prunes_with_bayesian_factors_over_the_number_of_samples(tmp_path):
    engine = engine_of(tmp_path / "run", **RUNS["pruned with factors"])
    pruner, samples = engine.parts.pruning._pruner, len(data.load(engine.parts.config.data, 0).train)
    assert (pruner.factors, pruner.strength) == ("bayesian", 1 / samples)
    total = sum(math.sqrt(p * (p + 1)) * weight.norm(dim=1).sum() for weight, p, _ in weights(engine.parts.model))
    assert pruner.penalty().item() == pytest.approx(total.item() / samples, rel=1e-5)
    assert engine.run(Silent()) == "done"
    assert sum(pruner.structure.widths.values()) < 16


def test_without_a_strength_it_is_one_over_the_samples(tmp_path):
    engine = engine_of(tmp_path / "run", penalties=[{"name": "l1"}, {"name": "l2", "strength": 0.5}])
    samples = len(data.load(engine.parts.config.data, 0).train)
    assert [each.strength for each in engine.parts.penalties._penalties] == [1 / samples, 0.5]


def test_of_a_text_each_character_is_an_answer(tmp_path):
    for part in ("train", "valid", "test"):
        (tmp_path / f"{part}.txt").write_text("to be or not to be, that is the question. " * 200)
    text = {"name": "text", "root": str(tmp_path)}
    config = validate({"data": text, "model": {"name": "lstm"}})
    dataset = data.load(config.data, 0)
    assert dataset.answers == dataset.train.targets.numel() > len(dataset.train)


def test_layers_of_alrao_have_the_names_that_they_have_without(tmp_path):
    config = validate({**DIGITS, "optimizer": {"name": "alrao"}, "penalties": [{"name": "l1", "factors": {"head": 2}}]})
    dataset = data.load(config.data, config.seed)
    model = network.build(config.model, dataset, config.seed)
    plain = penalties.build(config.penalties, model, 10)._penalties[0].layers
    model = alrao.wrap(config.optimizer, model, dataset.task, config.seed)
    (penalty,) = penalties.build(config.penalties, model, 10)._penalties
    assert penalty.layers == plain == ["head"]
    assert penalty.value().item() == pytest.approx(0.2 * model.heads.weight.detach().abs().sum().item(), rel=1e-5)


@pytest.mark.parametrize(
    ("penalty", "says"),
    [
        ({"name": "bn_lasso"}, r"penalties\.1: bn_lasso does not suit this network: .* BatchNorm"),
        ({"name": "l1", "factors": {"haed": 1}}, r"penalties\.1: l1 does not .* 'haed' \(did you mean 'head'\?\)"),
    ],
)
def test_what_the_network_does_not_have_is_told(penalty, says, tmp_path):
    with pytest.raises(ConfigError, match=says):
        engine_of(tmp_path / "run", penalties=[{"name": "l2"}, penalty])
