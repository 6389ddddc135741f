"""Whole runs in this process: every option of the configuration trains, and does what it says."""

import json
import math
import shutil
from pathlib import Path
from types import SimpleNamespace

import h5py
import numpy as np
import pytest
import torch

from hpc.alone import Alone
from hpc.config.folder import freeze
from hpc.config.read import validate
from hpc.engine import Engine
from hpc.rank import train as run
from hpc.run import assemble
from hpc.signals import StopRequest

DIGITS = {"epochs": 2, "model": {"name": "mlp", "widths": [64]}, "data": {"name": "digits"}}


@pytest.fixture(autouse=True)
def _torch_as_before():
    """A run sets torch's threads and determinism for its process, which here goes on."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(False)


def train(tmp_path, capsys, **sections):
    """Train digits with some sections replaced; (the JSON summary, the columns of /epochs)."""
    config = validate({**DIGITS, **sections, "run_dir": str(tmp_path / "run")})
    assert run(config, StopRequest(), progress="none", as_json=True) == 0
    summary = json.loads(capsys.readouterr().out.splitlines()[-1])
    with h5py.File(tmp_path / "run" / "record.h5") as file:
        return summary, {name: column[()] for name, column in file["epochs"].items()}


IMAGES = {"name": "resnet18", "width": 0.125}
OPTIONS = {
    "sgd nesterov": {"optimizer": {"name": "sgd", "nesterov": True, "weight_decay": 1e-4}},
    "adam": {"optimizer": {"name": "adam"}},
    "adamw": {"optimizer": {"name": "adam", "decoupled": True, "weight_decay": 0.01}},
    "adagrad": {"optimizer": {"name": "adagrad", "lr": 0.05}},
    "rmsprop": {"optimizer": {"name": "rmsprop"}},
    "clipped": {"optimizer": {"name": "sgd", "clip_norm": 1.0}},
    "bfloat16": {"compute": {"precision": "bfloat16"}},
    "deterministic": {"compute": {"deterministic": True, "threads": 1}},
    "channels last": {"compute": {"channels_last": True}, "model": IMAGES},
    "host": {"data": {"name": "digits", "placement": "host", "augment": {"pad": 1}}},
    "no normalisation": {"data": {"name": "digits", "normalize": "none"}, "optimizer": {"name": "sgd", "lr": 0.005}},
    "no validation": {"data": {"name": "digits", "validation": 0.0}},
}


@pytest.mark.parametrize("sections", OPTIONS.values(), ids=OPTIONS)
def test_an_option_trains(sections, tmp_path, capsys):
    summary, epochs = train(tmp_path, capsys, **sections)
    assert summary["state"] == "done"
    assert summary["test_accuracy"] > 0.8
    assert epochs["train_loss"][1] < epochs["train_loss"][0]
    assert np.isnan(epochs["valid_loss"]).all() == (sections.get("data", {}).get("validation") == 0)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler, and there is no g++")
@pytest.mark.filterwarnings("default")  # torch's compiler warns of its own doings
@pytest.mark.timeout(600)
def test_a_compiled_model_trains_as_the_plain_one(tmp_path, capsys):
    _, plain = train(tmp_path / "plain", capsys)
    _, compiled = train(tmp_path / "compiled", capsys, compute={"compile": True})
    np.testing.assert_allclose(compiled["train_loss"], plain["train_loss"], rtol=1e-3)


SCHEDULES = {
    "constant": ({"name": "constant"}, [1.0, 1.0, 1.0, 1.0]),
    "step": ({"name": "step", "milestones": [1, 3], "factor": 0.1}, [1.0, 0.1, 0.1, 0.01]),
    "cosine": ({"name": "cosine"}, [(1 + math.cos(math.pi * epoch / 4)) / 2 for epoch in range(4)]),
    "exponential": ({"name": "exponential", "factor": 0.5}, [1.0, 0.5, 0.25, 0.125]),
    "plateau": ({"name": "plateau", "patience": 0, "min_delta": 1e9, "factor": 0.5}, [1.0, 1.0, 0.5, 0.25]),
}


@pytest.mark.parametrize(("schedule", "factors"), SCHEDULES.values(), ids=SCHEDULES)
def test_the_record_shows_the_schedule(schedule, factors, tmp_path, capsys):
    """The plateau's first loss is an improvement on nothing; none after it is one, by so large a min_delta."""
    _, epochs = train(tmp_path, capsys, epochs=4, schedule=schedule, optimizer={"name": "sgd", "lr": 0.02})
    np.testing.assert_allclose(epochs["lr"], 0.02 * np.array(factors))


def test_early_stopping_ends_the_run(tmp_path, capsys):
    summary, epochs = train(tmp_path, capsys, epochs=50, early_stopping={"patience": 3, "min_delta": 1e9})
    assert summary["epochs"] == len(epochs["epoch"]) == 4
    with h5py.File(tmp_path / "run" / "record.h5") as file:
        assert file.attrs["ended_by"].decode() == "early_stopping"


def test_a_run_that_diverges_ends_and_says_so(tmp_path, capsys):
    summary, epochs = train(tmp_path, capsys, epochs=50, optimizer={"name": "sgd", "lr": 1e6})
    assert summary["epochs"] < 50
    assert not np.isfinite(epochs["train_loss"][-1])
    assert "Infinity" not in json.dumps(summary)
    assert "NaN" not in json.dumps(summary)


def test_regression_reaches_the_noise(tmp_path, capsys):
    """y = A x + noise: the mean squared error of a linear network comes down to the noise's variance."""
    generator = np.random.default_rng(0)
    x = generator.normal(size=(2000, 5))
    y = x @ generator.normal(size=(5, 2)) + 0.1 * generator.normal(size=(2000, 2))
    np.savez(tmp_path / "rows.npz", x=x.astype(np.float32), y=y.astype(np.float32))
    data = {"name": "tabular", "root": str(tmp_path / "rows.npz"), "task": "regression"}
    summary, epochs = train(tmp_path, capsys, epochs=5, data=data, model={"name": "mlp", "widths": []})
    assert summary["test_accuracy"] is None
    assert epochs["test_loss"][-1] == pytest.approx(0.01, rel=0.3)


def test_a_character_model_learns_a_pattern(tmp_path, capsys):
    folder = tmp_path / "text"
    folder.mkdir()
    for part in ("train", "valid", "test"):
        (folder / f"{part}.txt").write_text("abcd" * 2000, encoding="utf-8")
    data = {"name": "text", "root": str(folder), "length": 20}
    model = {"name": "lstm", "hidden": 16, "embedding": 8, "dropout": 0.0}
    summary, _ = train(tmp_path, capsys, data=data, model=model, optimizer={"name": "adam", "lr": 0.02})
    assert summary["test_accuracy"] > 0.9  # all but the first character of a window can be known


@pytest.mark.parametrize("name", ["sgd", "adam"])
@pytest.mark.parametrize("channels_last", [False, True])
def test_a_restored_engine_steps_as_the_one_that_went_on(name, channels_last, tmp_path):
    """Also where the memory's order is not the file's: fused kernels go by memory."""
    config = validate({
        **DIGITS, "run_dir": str(tmp_path), "model": {"name": "cnn", "width": 0.25}, "optimizer": {"name": name},
        "compute": {"channels_last": channels_last},
    })  # fmt: skip
    freeze(config)
    went_on, restored = (Engine(assemble(config, Alone(), SimpleNamespace(requested=False), print)) for _ in range(2))
    went_on._train_epoch()
    went_on._save()
    loaded = restored.parts.checkpoints.load()
    assert loaded is not None
    restored.restore(loaded)
    for engine in (went_on, restored):
        engine.place.epoch = 1
        engine._train_epoch()
    for one, other in zip(went_on.parts.model.parameters(), restored.parts.model.parameters(), strict=True):
        assert torch.equal(one, other)


def test_the_last_checkpoint_holds_the_network_that_the_run_ends_with(tmp_path):
    config = validate({**DIGITS, "run_dir": str(tmp_path / "run")})
    assert run(config, StopRequest(), progress="none") == 0
    parts = assemble(config, Alone(), StopRequest(), print)
    loaded = parts.checkpoints.load()
    engine = Engine(parts)
    engine.restore(loaded)
    expected = parts.model.state_dict()
    assert loaded.shared["answer"].keys() == expected.keys()
    assert all(torch.equal(loaded.shared["answer"][name], value) for name, value in expected.items())


def test_a_folder_that_was_moved_goes_on(tmp_path, capsys):
    config = validate({**DIGITS, "run_dir": str(tmp_path / "before")})
    assert run(config, StopRequest(), progress="none") == 0
    (tmp_path / "before").rename(tmp_path / "after")
    moved = validate({**DIGITS, "run_dir": str(tmp_path / "after")})
    assert run(moved, StopRequest(), progress="none", as_json=True) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["run_dir"] == str(Path(tmp_path / "after"))
