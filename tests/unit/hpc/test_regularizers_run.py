"""Whole runs with regularisers, in this process: against a loop by hand, resumed, cut, exported, refused."""

import shutil

import pytest
import torch

from hpc import data, export, network, optimizer, regularizers
from hpc.alone import Alone
from hpc.config.folder import freeze
from hpc.config.read import validate
from hpc.data import Feed
from hpc.engine import Engine
from hpc.errors import ConfigError
from hpc.objective import Objective
from hpc.progress import Silent
from hpc.rank import train as run
from hpc.run import assemble
from hpc.signals import StopRequest
from structlearn.regularizers import Shade

DIGITS = {
    "epochs": 2,
    "model": {"name": "mlp", "widths": [24, 16]},
    "data": {"name": "digits"},
    "record": {"every_steps": 1},
}
CPU = torch.device("cpu")
ALL = [
    {"name": "shade"},
    {"name": "reve", "refresh": 7},
    {"name": "dropout", "rate": 0.1},
    {"name": "dropconnect", "rate": 0.1},
    {"name": "input_noise"},
    {"name": "weight_noise"},
    {"name": "label_noise"},
    {"name": "variational", "samples": 2},
]
CUT = {"name": "norm", "threshold": 0.7, "strength": 0.02}
RUNS = {each["name"]: {"regularizers": [each]} for each in ALL} | {
    "REVE on Y, one mode": {"regularizers": [{"name": "reve", "on": "y", "modes": 1, "samples": 3}]},
    "REVE of a cut network": {"regularizers": [{"name": "reve", "refresh": 7}], "pruning": CUT},
    "all of them": {"regularizers": ALL},
    "all, cut": {"regularizers": ALL, "pruning": {**CUT, "threshold": 1.0}},
    "all, sorted and cut": {
        "regularizers": ALL,
        "pruning": {"name": "scalp", "threshold": 0.02, "strength": 0.02},
        "optimizer": {"name": "sgd", "lr": 1.0, "momentum": 0.5},
    },
    "all, with Alrao and cut": {
        "regularizers": ALL,
        "pruning": CUT,
        "optimizer": {"name": "alrao", "momentum": 0.5, "lr_max": 0.1},
    },
    "all, Adam, switches": {
        "regularizers": ALL,
        "optimizer": {"name": "adam"},
        "pruning": {"name": "shrinknets", "strength": 0.02, "gamma": 0.9},
    },
    "convolutions": {"regularizers": ALL, "model": {"name": "resnet18", "width": 0.0625}, "epochs": 1},
    "bfloat16": {"regularizers": ALL[:7], "compute": {"precision": "bfloat16"}},
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


def test_a_run_does_bit_for_bit_what_a_loop_by_hand_does_and_records_the_tasks_loss(tmp_path):
    sections = {"regularizers": [{"name": "shade", "strength": 0.01}]}
    engine = engine_of(tmp_path / "run", **sections)
    assert engine.run(Silent()) == "done"
    config = validate({**DIGITS, **sections})
    torch.set_num_threads(config.compute.threads or torch.get_num_threads())
    dataset = data.load(config.data, config.seed)
    model = network.build(config.model, dataset, config.seed)
    shade = Shade(model, torch.zeros(2, *dataset.input_shape), strength=0.01)
    stepper = optimizer.build(config.optimizer, model)
    objective = Objective(dataset.task, CPU, torch.float32)
    feed = Feed(dataset, config.data, CPU, seed=config.seed, rank=0, world_size=1)
    seen, added = [], []
    for epoch in range(config.epochs):
        for inputs, targets in feed.epoch(epoch):
            stepper.zero_grad()
            loss = objective.loss(model(inputs), targets)
            term = shade.loss()
            (loss + term).backward()
            stepper.step()
            seen.append(loss.item())
            added.append(term.item())
    assert engine.record["steps"].columns["loss"] == seen
    assert min(added) > 0
    state = engine.parts.model.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("name", RUNS)
def test_a_stopped_and_resumed_run_ends_bit_identical(name, tmp_path):
    class Soon:
        requested = False

    whole = engine_of(tmp_path / "whole", **RUNS[name])
    assert whole.run(Silent()) == "done"
    steps, state = 0, "stopped"
    while state == "stopped":
        stop = Soon()
        engine = engine_of(tmp_path / "broken", stop, **RUNS[name])
        assert engine.place.step == steps
        before = engine.parts.watch.after_step

        def after_step(step, before=before, stop=stop, steps=steps):
            before(step)
            stop.requested = step >= steps + 17

        engine.parts.watch.after_step = after_step
        state, steps = engine.run(Silent()), engine.place.step
    one, other = whole.parts.model.state_dict(), engine.parts.model.state_dict()
    assert one.keys() == other.keys()
    assert all(torch.equal(value, other[key]) for key, value in one.items())
    assert whole.record["steps"].columns == engine.record["steps"].columns
    if "pruning" in RUNS[name]:
        widths = engine.parts.pruning._pruner.structure.widths.values()
        assert sum(widths) < engine.parts.pruning._units


@pytest.mark.parametrize("name", ["all of them", "all, with Alrao and cut", "convolutions"])
def test_what_is_exported_is_the_network_alone(name, tmp_path):
    engine = engine_of(tmp_path / "run", **RUNS[name])
    assert engine.run(Silent()) == "done"
    answer = export.load(tmp_path / "run")
    assert {type(each).__module__.partition(".")[0] for each in answer.model.modules()} <= {"torch", "structlearn"}
    assert not any("shade" in key or "reve" in key or "deviation" in key for key in answer.model.state_dict())
    assert not any(each._forward_pre_hooks or each._forward_hooks for each in answer.model.modules())
    assert answer.model(answer.example).shape == (2, 10)


def test_what_is_exported_of_a_run_with_shade_is_what_was_evaluated(tmp_path):
    engine = engine_of(tmp_path / "run", **RUNS["shade"])
    assert engine.run(Silent()) == "done"
    answer = export.load(tmp_path / "run")
    inputs = next(engine.parts.feed.evaluation("test"))[0]
    torch.testing.assert_close(answer.model(inputs), engine.parts.model.eval()(inputs))


def test_shade_of_strength_zero_changes_nothing(tmp_path):
    plain = engine_of(tmp_path / "plain")
    other = engine_of(tmp_path / "other", regularizers=[{"name": "shade", "strength": 0.0}])
    assert plain.run(Silent()) == other.run(Silent()) == "done"
    assert plain.record["steps"].columns["loss"] == other.record["steps"].columns["loss"]


TABLE = "a,b,y\n" + "".join(f"{x / 7},{x % 5},{x / 3}\n" for x in range(80))


@pytest.fixture
def regression(tmp_path):
    (tmp_path / "train.csv").write_text(TABLE)
    (tmp_path / "test.csv").write_text(TABLE)
    return {
        "data": {"name": "tabular", "root": str(tmp_path), "task": "regression", "target": "y", "batch_size": 8},
        "model": {"name": "mlp", "widths": [8]},
    }


@pytest.mark.parametrize(
    "regularizer",
    [{"name": "shade"}, {"name": "label_noise"}, {"name": "label_noise", "deviation": 0.5}, {"name": "variational"}],
    ids=str,
)
def test_a_regression_takes_what_suits_it(regularizer, regression, tmp_path):
    engine = engine_of(tmp_path / "run", **regression, regularizers=[regularizer])
    assert engine.run(Silent()) == "done"
    assert engine.record["epochs"].columns["train_loss"][-1] < engine.record["epochs"].columns["train_loss"][0]


@pytest.mark.parametrize(
    ("regularizer", "message"),
    [
        ({"name": "reve"}, "regularizers.0.name: reve does not suit this network: it is for classes"),
        ({"name": "label_noise", "rate": 0.1}, "takes deviation and no rate"),
    ],
    ids=str,
)
def test_a_regression_refuses_what_does_not(regularizer, message, regression, tmp_path):
    with pytest.raises(ConfigError, match=message):
        engine_of(tmp_path / "run", **regression, regularizers=[regularizer])


@pytest.mark.parametrize(
    ("regularizer", "message"),
    [
        ({"name": "label_noise", "deviation": 0.1}, "takes rate and no deviation"),
        ({"name": "dropout", "layers": ["nobody"]}, "no such layer"),
        ({"name": "dropconnect", "layers": ["features.2"]}, "is a ReLU"),
        ({"name": "variational", "layers": ["features.2"]}, "is a ReLU"),
    ],
    ids=str,
)
def test_what_does_not_suit_a_network_is_refused_in_one_sentence(regularizer, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        engine_of(tmp_path / "run", regularizers=[regularizer])


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler, and there is no g++")
@pytest.mark.filterwarnings("default")  # torch's compiler warns of its own doings
@pytest.mark.timeout(600)
def test_a_compiled_network_is_regularised_as_the_plain_one(tmp_path):
    sections = {"regularizers": ALL[:2], "epochs": 1}
    plain = engine_of(tmp_path / "plain", **sections)
    compiled = engine_of(tmp_path / "compiled", **sections, compute={"compile": True})
    assert plain.run(Silent()) == compiled.run(Silent()) == "done"
    one, other = (each.record["steps"].columns["loss"] for each in (plain, compiled))
    assert one == pytest.approx(other, rel=1e-3)


def test_a_run_with_all_of_them_learns(tmp_path, capsys):
    config = validate(
        {**DIGITS, "run_dir": str(tmp_path / "run"), "model": {"name": "mlp"}, "epochs": 8, "regularizers": ALL}
    )
    assert run(config, StopRequest(), progress="plain", as_json=False) == 0
    capsys.readouterr()
    engine = engine_of(tmp_path / "run", model={"name": "mlp"}, epochs=8, regularizers=ALL)
    assert engine.record["epochs"].columns["test_accuracy"][-1] > 0.7


def test_with_alrao_layers_have_the_names_that_they_have_without(tmp_path):
    alrao = {"optimizer": {"name": "alrao"}}
    engine_of(tmp_path / "run", **alrao, regularizers=[{"name": "variational", "layers": ["features.1"]}])
    with pytest.raises(ConfigError, match=r"features\.2") as caught:
        engine_of(tmp_path / "run", **alrao, regularizers=[{"name": "dropconnect", "layers": ["features.2"]}])
    assert "model.features" not in str(caught.value)


def test_the_order_of_the_list_changes_nothing():
    drawn = []
    both = [{"name": "dropconnect", "rate": 0.5}, {"name": "variational", "deviation": 0.5}]
    for order in (both, both[::-1]):
        torch.manual_seed(0)
        net = torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.ReLU(), torch.nn.Linear(5, 3)).train()
        x = torch.randn(4, 6)
        regularizers.attach(validate({"regularizers": order}).regularizers, net, x[:2], "classification", 100)
        torch.manual_seed(1)
        drawn.append(net(x))
    assert torch.equal(*drawn)
