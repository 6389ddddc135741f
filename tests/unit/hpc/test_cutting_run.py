"""Whole runs that prune, in this process: what they cut, record, keep, refuse, and end with."""

import json
import shutil

import h5py
import numpy as np
import pytest
import torch
from torch import nn

from hpc.alone import Alone
from hpc.config.folder import freeze
from hpc.config.pruning import proximal
from hpc.config.read import validate
from hpc.engine import Engine
from hpc.errors import ConfigError
from hpc.progress import Silent
from hpc.rank import train as run
from hpc.run import assemble
from hpc.signals import StopRequest

DIGITS = {"epochs": 3, "model": {"name": "mlp", "widths": [32, 16]}, "data": {"name": "digits"}}
ROOM = {"name": "sgd", "lr": 1.0, "momentum": 0.5}  # as scaling layers take it
METHODS = {
    "scalp": {"pruning": {"name": "scalp", "threshold": 0.02, "strength": 0.02}, "optimizer": ROOM},
    "scalp, l1, proximal": {
        "pruning": {
            "name": "scalp",
            "penalty": "l1",
            "scaling": "inverse",
            "threshold": 0.01,
            "strength": 0.01,
            "proximal": True,
        },
        "optimizer": ROOM,
    },
    "norm": {"pruning": {"name": "norm", "threshold": 0.7, "strength": 0.02}},
    "norm of Adam": {
        "pruning": {"name": "norm", "threshold": 0.7, "strength": 0.02},
        "optimizer": {"name": "adam", "lr": 0.01},
    },
    "norm, absorbed": {"pruning": {"name": "norm", "threshold": 0.7, "strength": 0.02, "absorb": True}},
    "reversed": {"pruning": {"name": "norm", "penalty": "reversed_group_lasso", "threshold": 0.4, "strength": 0.02}},
    "bn_lasso": {
        "pruning": {"name": "bn_lasso", "strength": 0.1, "threshold": 0.7},
        "model": {"name": "resnet18", "width": 0.0625},
    },
    "bn_lasso, scaled": {
        "pruning": {"name": "bn_lasso", "strength": 0.1, "threshold": 0.7, "scaling": "uniform"},
        "optimizer": ROOM,
    },
    "shrinknets": {"pruning": {"name": "shrinknets", "strength": 0.02, "gamma": 0.9}},
    "scalp of Alrao": {
        "pruning": {"name": "scalp", "threshold": 0.1, "strength": 0.02},
        "optimizer": {"name": "alrao", "lr_max": 1.0, "momentum": 0.5},
    },
    "norm of Alrao-Adam": {
        "pruning": {"name": "norm", "threshold": 0.7, "strength": 0.02},
        "optimizer": {"name": "alrao-adam", "lr_max": 0.01},
    },
}


@pytest.fixture(autouse=True)
def _torch_as_before():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def train(tmp_path, capsys, name="run", **sections):
    """(the JSON summary, what was shown, every dataset of the record, its attributes)."""
    config = validate({**DIGITS, **sections, "run_dir": str(tmp_path / name)})
    assert run(config, StopRequest(), progress="plain", as_json=True) == 0
    said = capsys.readouterr()
    found = {}
    with h5py.File(tmp_path / name / "record.h5") as file:
        file.visititems(lambda name, node: found.update({name: node[()]} if hasattr(node, "shape") else {}))
        return json.loads(said.out.splitlines()[-1]), said.err, found, dict(file.attrs)


def engine_of(run_dir, stop=None, **sections):
    config = validate({**DIGITS, **sections, "run_dir": str(run_dir)})
    freeze(config)
    engine = Engine(assemble(config, Alone(), stop or StopRequest(), lambda _: None))
    loaded = engine.parts.checkpoints.load()
    if loaded is not None:
        engine.restore(loaded)
    return engine


@pytest.mark.parametrize("name", METHODS)
def test_units_go_and_the_record_says_which_layers_have_how_many(name, tmp_path, capsys):
    summary, said, found, attributes = train(tmp_path, capsys, **METHODS[name])
    widths = found["structure/widths"]
    assert widths.shape == (3, len(found["structure/layers"]))
    assert widths.dtype == np.int64
    assert (widths >= 1).all()
    assert (np.diff(widths, axis=0) <= 0).all()
    engine = engine_of(tmp_path / "run", **METHODS[name])
    structure = engine.parts.pruning._pruner.structure
    assert list(structure.widths.items()) == list(
        zip((layer.decode() for layer in found["structure/layers"]), widths[-1], strict=True)
    )
    whole = engine.parts.pruning._units
    assert widths[-1].sum() < whole
    assert f"{widths[-1].sum():,} of {whole:,} units are left ({summary['parameters']:,} parameters)" in said
    assert found["epochs/parameters"][-1] == summary["parameters"]
    assert summary["parameters"] == sum(parameter.numel() for parameter in engine.parts.model.parameters())
    assert found["structure/phase"].tolist() == [b"pruning"] * 3
    assert found["structure/digest"][-1].decode() == structure.plan.digest
    assert (
        len(set(found["structure/digest"].tolist())) == 1 + int((np.diff(widths.sum(1)) != 0).sum()) or "scalp" in name
    )
    assert attributes["answer_epoch"] == 3
    assert "answer_epoch" not in summary
    shared = engine.parts.checkpoints.load().shared
    assert {key: value.shape for key, value in shared["answer"].items()} == {
        key: value.shape for key, value in engine.parts.model.state_dict().items()
    }


@pytest.mark.parametrize("name", METHODS)
def test_a_run_that_is_stopped_and_resumed_at_each_epoch_ends_bit_identical(name, tmp_path):
    """Each time the network is built at its full size, and cut to what it had come to."""

    class Soon:
        requested = False

    whole = engine_of(tmp_path / "whole", **METHODS[name])
    assert whole.run(Silent()) == "done"
    state, steps = "stopped", 0
    while state == "stopped":
        stop = Soon()
        engine = engine_of(tmp_path / "broken", stop, **METHODS[name])
        assert engine.place.step == steps
        before = engine.parts.watch.after_step

        def after_step(step, before=before, stop=stop, steps=steps):
            before(step)
            stop.requested = step >= steps + 27

        engine.parts.watch.after_step = after_step
        state, steps = engine.run(Silent()), engine.place.step
    assert len(list(engine.record["epochs"].columns["epoch"])) == 3
    for one, other in ((whole._state()[0], engine._state()[0]), (whole._state()[1], engine._state()[1])):
        assert_same(one, other)


TIMES = {"seconds", "seconds_blocked", "profile"}


def assert_same(one, other, path=""):
    assert type(one) is type(other), path
    if isinstance(one, dict):
        assert one.keys() == other.keys(), path
        for key in one.keys() - TIMES:
            assert_same(one[key], other[key], f"{path}/{key}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(other), path
        for place, (first, second) in enumerate(zip(one, other, strict=True)):
            assert_same(first, second, f"{path}/{place}")
    elif isinstance(one, torch.Tensor):
        assert (one.shape, one.dtype) == (other.shape, other.dtype), path
        assert one.numpy().tobytes() == other.numpy().tobytes(), path
    else:
        assert one == other, path


# --- phases ------------------------------------------------------------------------------------------------

STILL = {  # nothing ever improves, so that phases last `patience` epochs
    "optimizer": {"name": "sgd", "lr": 0.0},
    "pruning": {"name": "norm", "threshold": 1.0, "strength": 0.0, "patience": 1},
    "epochs": 20,
}


def test_a_run_is_pruned_then_fine_tuned_and_answers_with_the_best_of_that(tmp_path, capsys):
    summary, said, found, attributes = train(tmp_path, capsys, **STILL)
    assert (summary["ended_by"], attributes["ended_by"]) == ("pruned", b"pruned")
    assert summary["epochs"] == 6
    phases = [b"pruning"] * 2 + [b"fine_tuning"] * 4
    assert found["structure/phase"].tolist() == phases
    assert (summary["answer_epoch"], attributes["answer_epoch"]) == (3, 3)
    for key in ("test_accuracy", "test_loss", "valid_accuracy"):
        assert summary[key] == found[f"epochs/{key}"][2]
    assert "pruning is over, with" in said
    assert "the run ends, with the network of epoch 3" in said


def test_the_learning_rate_falls_twice_in_fine_tuning(tmp_path, capsys):
    sections = {**STILL, "optimizer": {"name": "sgd", "lr": 1e-30}}  # too small to change anything
    _, _, found, _ = train(tmp_path, capsys, **sections)
    np.testing.assert_allclose(found["epochs/lr"], 1e-30 * np.array([1, 1, 1, 1, 0.1, 0.01]), rtol=1e-12)


@pytest.mark.parametrize("stopped", [1, 2, 3, 4, 5])
def test_the_answer_outlives_a_stop_in_any_phase(stopped, tmp_path):
    whole = engine_of(tmp_path / "whole", **STILL)
    assert whole.run(Silent()) == "done"
    stop = StopRequest()
    first = engine_of(tmp_path / "broken", stop, **STILL)
    steps = first.parts.feed.steps_per_epoch

    def after_step(step):
        stop.requested = step > stopped * steps

    first.parts.watch.after_step = after_step
    assert first.run(Silent()) == "stopped"
    second = engine_of(tmp_path / "broken", **STILL)
    assert second.place.epoch == stopped
    assert second.run(Silent()) == "done"
    assert_same(whole._state()[0], second._state()[0])
    loaded = second.parts.checkpoints.load().shared
    assert_same({**loaded["answer"]}, {**loaded["pruning"]["best"]})


def test_a_run_whose_epochs_end_first_answers_with_the_best_of_its_fine_tuning_so_far(tmp_path, capsys):
    summary, _, found, _ = train(tmp_path, capsys, **{**STILL, "epochs": 5})
    assert (summary["ended_by"], summary["answer_epoch"]) == ("epochs", 3)
    assert found["structure/phase"].tolist()[-1] == b"fine_tuning"


SHORT = {**STILL, "pruning": {**STILL["pruning"], "patience": 3}}
TOO_FEW = "fine-tuning begins after 4 epochs at the earliest, and this run has"
ADVICE = "the run ended while it was still pruning: raise epochs or lower pruning.patience (3)"


@pytest.mark.parametrize("epochs", [3, 4, 5])
def test_a_run_that_cannot_come_to_fine_tuning_says_so_before_and_after(epochs, tmp_path, capsys):
    summary, said, found, _ = train(tmp_path, capsys, **{**SHORT, "epochs": epochs})
    phase = found["structure/phase"][-1].decode()
    assert phase == summary["phase"] == ("pruning" if epochs < 5 else "fine_tuning")
    assert (f"{TOO_FEW} {epochs}" in said) == (ADVICE in said) == (epochs < 5)
    assert ("pruning is over" in said) == (epochs == 5)
    (row,) = [line for line in said.splitlines() if line.split()[:1] == ["phase"]]
    assert row.split()[1] == phase.replace("_", "-")
    _, again, _, _ = train(tmp_path, capsys, **{**SHORT, "epochs": epochs})
    assert TOO_FEW not in again  # it is done


def test_early_stopping_counts_nothing_while_the_network_is_pruned(tmp_path, capsys):
    sections = {**SHORT, "early_stopping": {"patience": 2}}
    summary, _, found, _ = train(tmp_path, capsys, **sections)
    assert summary["ended_by"] == "early_stopping"
    assert found["structure/phase"].tolist() == [b"pruning"] * 4 + [b"fine_tuning"] * 3
    assert summary["answer_epoch"] == 5


def test_a_regression_is_judged_by_its_loss(tmp_path, capsys):
    generator = np.random.default_rng(0)
    x = generator.normal(size=(400, 5))
    np.savez(tmp_path / "points.npz", x=x, y=x @ generator.normal(size=(5, 2)))
    data = {"name": "tabular", "root": str(tmp_path / "points.npz"), "task": "regression"}
    pruning = {**STILL["pruning"], "threshold": 0.0}
    summary, _, found, _ = train(tmp_path, capsys, **{**STILL, "data": data, "pruning": pruning})
    assert (summary["ended_by"], summary["answer_epoch"]) == ("pruned", 3)
    assert len(found["epochs/epoch"]) == 6


def test_it_is_cut_only_every_so_many_epochs(tmp_path, capsys):
    sections = {"pruning": {"name": "norm", "threshold": 0.7, "strength": 0.02, "every_epochs": 2}, "epochs": 4}
    _, said, found, _ = train(tmp_path, capsys, **sections)
    assert found["structure/widths"][0].sum() == 48
    changed = (np.diff(found["structure/widths"].sum(1), prepend=48) != 0).tolist()
    assert changed[:3] == [False, True, False]
    assert said.count("units are left") == sum(changed)


def test_a_layer_keeps_one_unit_and_the_record_says_so(tmp_path, capsys):
    _, said, found, _ = train(tmp_path, capsys, pruning={"name": "norm", "threshold": 1e3})
    assert said.count("2 layer(s) would lose all their units, and keep one") == 1
    assert found["structure/widths"].tolist() == [[1, 1]] * 3
    assert found["structure/floor"].tolist() == [2, 2, 2]


# --- what is absorbed --------------------------------------------------------------------------------------


def constant(layer, units):
    """Units that say the same whatever comes in."""
    with torch.no_grad():
        layer.weight[units] = 0.0
        layer.bias[units] = 0.5


@pytest.mark.parametrize("absorb", [True, False])
def test_what_a_constant_unit_said_is_absorbed_if_that_is_asked_for(absorb, tmp_path):
    pruning = {"name": "norm", "threshold": 1e-6, "strength": 0.0, "absorb": absorb}
    engine = engine_of(tmp_path / "run", pruning=pruning)
    parts = engine.parts
    first = next(module for module in parts.model.modules() if isinstance(module, nn.Linear))
    constant(first, slice(0, 8))
    parts.model.eval()
    inputs = parts.feed.some()
    before = parts.model(inputs)
    assert parts.pruning.cut(1, parts.exchange, parts.optimizer)
    assert first.out_features == 24
    assert torch.allclose(parts.model(inputs), before, atol=1e-5) == absorb


# --- what cannot be ----------------------------------------------------------------------------------------


def test_a_network_that_a_method_does_not_suit_is_refused_in_one_sentence(tmp_path):
    with pytest.raises(ConfigError, match=r"pruning\.name: bn_lasso does not suit this network: .* BatchNorm"):
        engine_of(tmp_path / "run", pruning={"name": "bn_lasso"})
    with pytest.raises(
        ConfigError, match=r"pruning\.name: norm does not suit this network: .* no unit that can be cut"
    ):
        engine_of(tmp_path / "other", pruning={"name": "norm"}, model={"name": "mlp", "widths": []})


def test_a_network_with_a_size_written_down_in_it_is_refused_before_it_is_trained(tmp_path, monkeypatch):
    (tmp_path / "rigid.py").write_text(
        "from torch import nn\n"
        "class Rigid(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.first, self.last = nn.Linear(64, 32), nn.Linear(32, 10)\n"
        "    def forward(self, x):\n"
        "        return self.last(self.first(x.flatten(1)).relu().view(-1, 32))\n"
        "def build(input_shape, outputs):\n"
        "    return Rigid()\n"
    )
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"pruning\.name: norm does not suit this network: .* written down in it"):
        engine_of(tmp_path / "run", pruning={"name": "norm"}, model={"name": "rigid:build"})


def test_scalings_and_switches_follow_from_the_seed(tmp_path):
    for place, name in enumerate(("scala", "shrinknets")):
        models = [
            engine_of(tmp_path / f"{place}{number}", pruning={"name": name}, seed=seed).parts.model.state_dict()
            for number, seed in enumerate((3, 3, 4))
        ]
        assert all(torch.equal(value, models[1][key]) for key, value in models[0].items())
        assert not all(torch.equal(value, models[2][key]) for key, value in models[0].items())


def test_a_run_that_does_not_prune_has_no_structure_in_its_record(tmp_path, capsys):
    _, said, found, attributes = train(tmp_path, capsys, pruning={"name": "scala"}, optimizer=ROOM)
    assert not [name for name in found if name.startswith("structure")]
    assert "units are left" not in said
    assert attributes["answer_epoch"] == 3
    shutil.rmtree(tmp_path / "run")


class Written(nn.Module):
    """A network with the size of its hidden layer written down in its forward pass."""

    def __init__(self, input_shape, outputs):
        super().__init__()
        self.first, self.head = nn.Linear(64, 12), nn.Linear(12, outputs)

    def forward(self, x):
        return self.head(self.first(x.flatten(1)).relu().view(-1, 12))


def test_a_network_that_cannot_be_cut_is_found_before_it_is_trained(tmp_path):
    config = validate(
        {
            **DIGITS, "run_dir": str(tmp_path / "run"), "model": {"name": f"{__name__}:Written"},
            "pruning": {"name": "norm"},
        }
    )  # fmt: skip
    freeze(config)
    with pytest.raises(ConfigError, match=r"pruning.name: norm does not suit this network: .* take sizes from tensors"):
        assemble(config, Alone(), StopRequest(), lambda _: None)


# --- which steps a penalty takes ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pruned", "optimizer", "wanted"),
    [
        ({"name": "norm"}, "sgd", True),
        ({"name": "norm", "penalty": "l2"}, "sgd", False),
        ({"name": "norm"}, "adam", False),
        ({"name": "norm"}, "alrao", False),
        ({"name": "norm", "proximal": False}, "sgd", False),
        ({"name": "bn_lasso"}, "sgd", True),
        ({"name": "bn_lasso"}, "rmsprop", False),
        ({"name": "scalp"}, "sgd", False),
        ({"name": "scalp", "penalty": "l1", "proximal": True}, "sgd", True),
        ({"name": "shrinknets"}, "sgd", False),
    ],
)
def test_proximal_steps_are_taken_where_they_are_right_unless_something_is_said(pruned, optimizer, wanted):
    config = validate({"pruning": pruned, "optimizer": {"name": optimizer}})
    assert proximal(config.pruning, config.optimizer) is wanted
