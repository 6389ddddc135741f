"""Exported networks: what a fresh interpreter computes that has never heard of this package."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import h5py
import numpy as np
import pytest
import torch
from torch import nn

from hpc.config.folder import frozen
from hpc.config.read import validate
from hpc.errors import ConfigError, RunError
from hpc.export import WRITERS, export, load, plain, widths
from hpc.rank import train
from hpc.signals import StopRequest
from structlearn.alrao import Alrao
from structlearn.models import build
from structlearn.scala import Scaled
from structlearn.scala import adopt as scale
from structlearn.shrinknets import Switch
from structlearn.shrinknets import adopt as switch

pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")
pytest.importorskip("safetensors")

RUNS = {
    "mlp": {"model": {"name": "mlp", "widths": [40, 30]}},
    "alrao": {"model": {"name": "mlp", "widths": [40]}, "optimizer": {"name": "alrao", "heads": 3}},
    "pruned": {
        "model": {"name": "mlp", "widths": [40, 30]},
        "pruning": {"name": "scalp", "threshold": 0.1},
        "optimizer": {"name": "sgd", "lr": 1.0, "momentum": 0},
    },
    "pruned, switches": {
        "model": {"name": "mlp", "widths": [40, 30]},
        "pruning": {"name": "shrinknets", "rule": "threshold", "threshold": 0.3},
    },
    "pruned, Alrao": {
        "model": {"name": "mlp", "widths": [40, 30]},
        "pruning": {"name": "norm", "threshold": 1.4},
        "optimizer": {"name": "alrao", "lr_max": 1.0},
    },
    "convolutions": {"model": {"name": "resnet18", "width": 0.125}},
    "weldon": {"model": {"name": "wideresnet28_10", "width": 0.0125, "pooling": "weldon", "regions": 2}},
    "weldon, pruned": {
        "model": {"name": "wideresnet28_10", "width": 0.0125, "pooling": "weldon"},
        "pruning": {"name": "norm", "threshold": 0.5},
    },
    "weldon, Alrao": {
        "model": {"name": "wideresnet28_10", "width": 0.0125, "pooling": "weldon"},
        "optimizer": {"name": "alrao", "heads": 3},
    },
    "maxmin": {"model": {"name": "cnn", "channels": [6, 8, 8], "hidden": [12], "activation": "maxmin"}},
    "lstm": {"model": {"name": "lstm", "hidden": 12, "embedding": 6}, "data": {"name": "text", "length": 9}},
    "regression": {"model": {"name": "mlp", "widths": [12]}, "data": {"name": "tabular", "task": "regression"}},
}

ALONE = """
import json
import sys

class Nothing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"structlearn", "hpc", "jobs", "analysis"}:
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Nothing())
import numpy as np
import torch

given = np.load("given.npz")
answers = {}
"""
LOADERS = {
    "pt2": """
program = torch.export.load("network.pt2").module()
answers |= {f"pt2 {batch}": program(torch.from_numpy(x)).detach().numpy() for batch, x in given.items()}
""",
    "onnx": """
import onnxruntime
session = onnxruntime.InferenceSession("network.onnx")
answers |= {f"onnx {batch}": session.run(None, {"input": x})[0] for batch, x in given.items()}
""",
}
CHECK = """
np.savez("answers.npz", **answers)
assert not {"structlearn", "hpc", "jobs", "analysis"} & sys.modules.keys()
try:
    import structlearn
except ModuleNotFoundError:
    print("alone")
"""


@pytest.fixture(scope="module")
def run_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a finished run; each is trained once."""
    known: dict[str, Path] = {}

    def find(name: str) -> Path:
        if name not in known:
            folder = tmp_path_factory.mktemp(name)
            known[name] = trained(folder, RUNS[name])
        return known[name]

    return find


def trained(folder: Path, sections: dict[str, object]) -> Path:
    """Train a small run in a folder; its run folder."""
    data = dict(sections.get("data", {"name": "digits", "train_size": 200}))
    if data["name"] == "text":
        for part in ("train", "valid", "test"):
            (folder / f"{part}.txt").write_text("the quick brown fox jumps over the lazy dog. " * 30)
        data["root"] = str(folder)
    if data["name"] == "tabular":
        rows = np.random.default_rng(0).normal(size=(80, 3))
        lines = [f"{a},{b},{c},{a - b}" for a, b, c in rows]
        (folder / "table.csv").write_text("\n".join(["a,b,c,y", *lines]) + "\n")
        data |= {"root": str(folder / "table.csv"), "target": "y"}
    config = validate({"epochs": 1, **sections, "data": data, "run_dir": str(folder / "run")})
    threads = torch.get_num_threads()
    try:
        assert train(config, StopRequest(), progress="none") == 0
    finally:
        torch.set_num_threads(threads)
    return folder / "run"


def inputs(run: Path, batch: int) -> torch.Tensor:
    """A batch as the run's network takes it."""
    example, chance = load(run).example, torch.Generator().manual_seed(0)
    if example.dtype == torch.int64:
        return torch.randint(0, load(run).about["data"]["outputs"], (batch, *example.shape[1:]), generator=chance)
    return torch.randn(batch, *example.shape[1:], generator=chance)


def original(run: Path, x: torch.Tensor) -> torch.Tensor:
    """What the network of the checkpoint answers, as it was trained, with all that is ours in it; of Alrao its best."""
    from hpc import export as module

    config = frozen(run)
    assert config is not None
    found = module.Checkpoints(run / "checkpoints", module.Alone(), module.run_id(config), 1, print).read_shared()
    assert found is not None
    shared, _ = found
    model = module.built(config, shared).eval()
    with torch.no_grad():
        return (model.best() if isinstance(model, Alrao) else model)(x)


def in_a_fresh_interpreter(program: str, batches: dict[str, torch.Tensor], folder: Path) -> dict[str, np.ndarray]:
    """What the files in a folder answer where nothing of ours can be imported."""
    np.savez(folder / "given.npz", **{name: x.numpy() for name, x in batches.items()})
    line = [sys.executable, "-c", ALONE + program + CHECK]
    done = subprocess.run(line, cwd=folder, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("alone\n")
    return dict(np.load(folder / "answers.npz"))


@pytest.mark.parametrize("name", [name for name in RUNS if name.startswith("pruned")])
def test_a_pruned_run_is_exported_as_small_as_it_has_become(name, run_of) -> None:
    run = run_of(name)
    with h5py.File(run / "record.h5") as file:
        recorded = file["structure/widths"][-1].tolist()
    model = load(run).model
    hidden = [module.out_features for module in model.modules() if isinstance(module, nn.Linear)][:-1]
    assert hidden == recorded
    assert sum(hidden) < 70
    assert not [module for module in model.modules() if isinstance(module, Scaled | Switch)]


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_files_compute_what_the_run_ended_with(name, run_of, tmp_path) -> None:
    run = run_of(name)
    for kind in LOADERS:
        export(run, kind, tmp_path / f"network.{kind}")
    batches = {str(size): inputs(run, size) for size in (1, 7)}
    answers = in_a_fresh_interpreter("".join(LOADERS.values()), batches, tmp_path)
    assert len(answers) == 4
    for key, answer in answers.items():
        expected = original(run, batches[key.split()[1]])
        np.testing.assert_allclose(answer, expected.numpy(), rtol=1e-5, atol=1e-5, err_msg=key)


@pytest.mark.parametrize("name", ["mlp", "pruned", "pruned, switches"])
def test_safetensors_hold_the_weights_and_how_they_are_put_together(name, run_of, tmp_path) -> None:
    """Loaded by the code in the README, word for word."""
    run = run_of(name)
    export(run, "safetensors", tmp_path / "network.safetensors")
    readme = (Path(__file__).parents[3] / "README.md").read_text(encoding="utf-8")
    (code,) = [
        text for text in re.findall(r"^```python\n(.*?)^```", readme, re.MULTILINE | re.DOTALL) if "safetensors" in text
    ]
    x = inputs(run, 5)
    ask = "\nanswers['y'] = network(torch.from_numpy(given['x'])).detach().numpy()"
    answers = in_a_fresh_interpreter(code + ask, {"x": x}, tmp_path)
    np.testing.assert_allclose(answers["y"], original(run, x).numpy(), rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_safetensors_names_are_those_of_the_plain_network(name, run_of, tmp_path) -> None:
    from safetensors import safe_open

    run, file = run_of(name), tmp_path / "network.safetensors"
    export(run, "safetensors", file)
    model = load(run).model
    with safe_open(str(file), "pt") as opened:
        about = json.loads(opened.metadata()["structlearn"])
        tensors = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118 -- not a dict
    assert tensors.keys() == model.state_dict().keys()
    for key, value in model.state_dict().items():
        assert torch.equal(tensors[key], value)
    assert about["widths"] == widths(model)
    assert about["model"]["name"] == RUNS[name]["model"]["name"]
    assert np.shape(about["data"]["mean"]) == np.shape(about["data"]["std"])
    assert about["data"]["outputs"] == len(about["data"]["labels"]) or name == "regression"


@pytest.mark.parametrize(("kind", "more"), [("pt2", 400_000), ("onnx", 120_000), ("safetensors", 30_000)])
def test_a_file_is_as_large_as_its_network(kind, more, run_of, tmp_path) -> None:
    """Four bytes a number and what describes them; the checkpoint holds the optimiser's state as well."""
    run, file = run_of("convolutions"), tmp_path / "network"
    done = export(run, kind, file)
    numbers = sum(value.numel() for value in load(run).model.state_dict().values())
    (shared,) = (run / "checkpoints").glob("*/shared.h5")
    assert done.bytes == file.stat().st_size
    assert 4 * done.parameters < done.bytes < 4 * numbers + more
    assert done.bytes < shared.stat().st_size


def test_each_format_says_what_the_network_is(run_of, tmp_path) -> None:
    onnx = pytest.importorskip("onnx")
    run = run_of("mlp")
    for kind in ("pt2", "onnx"):
        export(run, kind, tmp_path / kind)
    extra = {"structlearn.json": ""}
    torch.export.load(tmp_path / "pt2", extra_files=extra)
    of_pt2 = json.loads(extra["structlearn.json"])
    model = onnx.load(tmp_path / "onnx")
    (of_onnx,) = [json.loads(each.value) for each in model.metadata_props if each.key == "structlearn"]
    assert of_pt2 == of_onnx == json.loads(json.dumps(load(run).about))
    assert [each.name for each in model.graph.input] == ["input"]
    assert [each.name for each in model.graph.output] == ["output"]
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"
    assert of_pt2["widths"] == {"features.1": 40, "features.3": 30, "head": 10}
    assert of_pt2["data"]["input_shape"] == [1, 8, 8]


def test_nothing_of_ours_is_left_in_a_network() -> None:
    torch.manual_seed(0)
    x = torch.randn(4, 1, 28, 28)
    model = scale(switch(build("lenet", (1, 28, 28), 10), x))
    model = Alrao(model, heads=3)
    made = plain(model.eval())
    torch.testing.assert_close(made(x), model.best()(x), rtol=1e-5, atol=1e-5)
    assert {type(module) for module in made.modules() if next(module.children(), None) is None} <= {
        nn.Conv2d, nn.MaxPool2d, nn.ReLU, nn.Flatten, nn.Linear, nn.Identity,
    }  # fmt: skip
    assert not any(module._forward_hooks for module in made.modules())


def test_a_run_is_left_as_it_was(run_of, tmp_path) -> None:
    run = run_of("mlp")
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    export(run, "safetensors", tmp_path / "a" / "b" / "network")
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
    assert [path.name for path in (tmp_path / "a" / "b").iterdir()] == ["network"]


# --- what can go wrong ---------------------------------------------------------------------------------


def test_a_network_that_looks_at_its_values_is_told(run_of) -> None:
    class Moody(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x if x.sum() > 0 else -x

    answer = load(run_of("mlp"))._replace(model=Moody())
    for kind in ("pt2", "onnx"):
        with pytest.raises(RunError, match="take --format safetensors"):
            WRITERS[kind](answer, "{}")


def test_no_run(tmp_path) -> None:
    with pytest.raises(ConfigError, match="holds no run"):
        export(tmp_path, "pt2", tmp_path / "x")


def test_a_disk_that_is_full(run_of, tmp_path, monkeypatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("hpc.export.write_atomically", full)
    with pytest.raises(RunError, match=r"cannot be written \(No space left on device\)"):
        export(run_of("mlp"), "safetensors", tmp_path / "x")


def test_a_damaged_checkpoint_is_named(tmp_path) -> None:
    run = trained(tmp_path, {**RUNS["mlp"], "epochs": 2})
    newest = max((run / "checkpoints").iterdir())
    damaged = bytearray((newest / "shared.h5").read_bytes())
    damaged[len(damaged) // 2] ^= 1
    (newest / "shared.h5").write_bytes(damaged)
    with pytest.raises(RunError, match=rf"epoch 1 of 2(.|\n)*checkpoint {newest.name} is passed over"):
        export(run, "pt2", tmp_path / "x")
    assert newest.is_dir(), "readers set nothing aside"
    for folder in (run / "checkpoints").iterdir():
        (folder / "shared.h5").write_bytes(b"")
    with pytest.raises(RunError, match="none of 2 checkpoint"):
        export(run, "pt2", tmp_path / "x")


def test_what_a_layer_gives_is_its_width() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.LSTM(4, 5), nn.Linear(5, 2))
    assert widths(model) == {"0": 4, "2": 5, "3": 2}
    assert widths(SimpleNamespace(named_modules=list)) == {}
