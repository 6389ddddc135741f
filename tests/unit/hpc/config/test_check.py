"""What can be known before a rank starts is said before a rank starts, all of it at once."""

import struct
import sys
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from hpc.config import check as module
from hpc.config.check import check
from hpc.config.read import validate
from hpc.errors import ConfigError
from structlearn.models import build


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(module, "cuda_devices", lambda: 0)
    (tmp_path / "table.csv").touch()


def problems(values: dict[str, Any], local_ranks: int = 1, world_size: int = 1) -> tuple[str, ...]:
    try:
        check(validate(values), local_ranks, world_size)
    except ConfigError as error:
        return error.problems
    return ()


TABLE = {"name": "tabular", "root": "table.csv"}
FIT = {**TABLE, "task": "regression"}
NORMED = {"name": "mlp", "batch_norm": True}
BN_STEPS = {"name": "bn_lasso", "proximal": True}


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"optimizer": {"nesterov": True}},
        {"schedule": {"name": "plateau"}, "early_stopping": {}},
        {"schedule": {"name": "step", "milestones": [3, 6]}},
        {"epochs": 3, "schedule": {"name": "cosine", "warmup_epochs": 3}},
        {"data": TABLE},
        {"compute": {"channels_last": True}, "model": {"name": "resnet18"}},
        {"compute": {"device": "cpu"}},
        {"data": {"train_size": 1294, "batch_size": 1294, "augment": {"pad": 7}}},
        {"model": {"name": "densenet121"}},
        {"model": {"name": "alexnet", "kernel": 5, "pool": 2}},
        {"pruning": {"name": "scala"}, "data": {"validation": 0}},
        {"pruning": {"name": "scalp", "proximal": True}},
        {"pruning": {"name": "norm", "penalty": "sparse_group_lasso", "mix": 0.25}},
        {"pruning": {"name": "norm"}, "optimizer": {"name": "alrao"}},
        {"pruning": {"name": "bn_lasso", "proximal": False}, "optimizer": {"name": "alrao-adam"}},
        {"pruning": {"name": "norm", "penalty": "l2"}, "optimizer": {"weight_decay": 1e-4}},
        {"pruning": {"name": "norm"}, "exchange": {"name": "none"}},
        {"pruning": {"name": "norm"}, "early_stopping": {}},
        {"pruning": {"name": "shrinknets", "rule": "threshold", "threshold": 0.01}, "epochs": 5},
        {"pruning": {"name": "shrinknets", "gamma": 0.99}},
        {"penalties": [{"name": "l2"}], "optimizer": {"weight_decay": 1e-4}},
        {
            "penalties": [{"name": "l1", "proximal": True}, {"name": "l2"}, {"name": "bn_lasso", "proximal": True}],
            "model": NORMED,
        },
        {"penalties": [{"name": "bn_lasso"}], "pruning": {"name": "scala"}},
        {"penalties": [{"name": "bn_lasso"}], "pruning": {"name": "bn_lasso", "scaling": "inverse"}},
        {"penalties": [{"name": "bn_lasso"}], "model": {"name": "resnet18"}},
        {"penalties": [BN_STEPS], "pruning": {"name": "bn_lasso", "proximal": False}, "model": NORMED},
        {"regularizers": [{"name": "dropout", "layers": ["head"]}, {"name": "variational", "layers": ["head"]}]},
        {"regularizers": [{"name": "label_noise", "rate": 0.2}, {"name": "reve"}]},
        {"data": FIT, "regularizers": [{"name": "label_noise", "deviation": 0.2}]},
        {"penalties": [{"name": "l1", "proximal": True}], "pruning": {"name": "norm", "proximal": False}},
        {"penalties": [{"name": "l1", "proximal": True}], "pruning": {"name": "norm", "penalty": "l2"}},
        {"penalties": [{"name": "l1", "proximal": True}], "pruning": {"name": "bn_lasso"}},
        {"penalties": [{"name": "l1"}], "pruning": {"name": "norm"}, "optimizer": {"name": "adam"}},
        {"model": {"name": "alexnet", "kernel": 5, "stem": "cifar"}},
        {"model": {"name": "resnet18", "pooling": "weldon", "regions": 4}},
    ],
)
def test_what_goes_together_passes(values: dict[str, Any]) -> None:
    assert problems(values) == ()


@pytest.mark.parametrize(
    ("values", "key"),
    [
        ({"optimizer": {"nesterov": True, "momentum": 0}}, "optimizer.nesterov"),
        ({"data": {"validation": 0}, "schedule": {"name": "plateau"}}, "schedule.name"),
        ({"data": {"validation": 0}, "early_stopping": {}}, "early_stopping"),
        ({"data": {"validation": 0}, "pruning": {"name": "bn_lasso"}}, "pruning.name"),
        ({"epochs": 3, "pruning": {"name": "norm", "every_epochs": 4}}, "pruning.every_epochs"),
        ({"pruning": {"name": "norm", "proximal": True}, "optimizer": {"name": "alrao"}}, "pruning.proximal"),
        ({"pruning": {"name": "bn_lasso", "proximal": True}, "optimizer": {"name": "adam"}}, "pruning.proximal"),
        ({"pruning": {"name": "norm", "penalty": "l2", "proximal": True}}, "pruning.proximal"),
        ({"pruning": {"name": "scalp", "penalty": "l2", "proximal": True}}, "pruning.proximal"),
        ({"pruning": {"name": "shrinknets"}, "optimizer": {"weight_decay": 1e-4}}, "optimizer.weight_decay"),
        ({"pruning": {"name": "norm", "mix": 0.25}}, "pruning.mix"),
        ({"penalties": [{"name": "l1", "proximal": True}], "optimizer": {"name": "adam"}}, "penalties.0.proximal"),
        ({"penalties": [{"name": n, "proximal": True} for n in ("l1", "group_lasso")]}, "penalties.1.proximal"),
        ({"penalties": [{"name": "l1", "proximal": True}], "pruning": {"name": "norm"}}, "penalties.0.proximal"),
        (
            {"penalties": [BN_STEPS], "pruning": {"name": "bn_lasso", "proximal": True}, "model": NORMED},
            "penalties.0.proximal",
        ),
        ({"penalties": [BN_STEPS], "pruning": {"name": "bn_lasso"}, "model": NORMED}, "penalties.0.proximal"),
        ({"penalties": [{"name": "bn_lasso"}]}, "penalties.0.name"),
        ({"penalties": [{"name": "bn_lasso"}], "model": {"name": "cnn"}}, "penalties.0.name"),
        ({"penalties": [{"name": "bn_lasso"}], "pruning": {"name": "scala", "batch_norm": False}}, "penalties.0.name"),
        ({"regularizers": [{"name": "dropout", "layers": ["head", "head"]}]}, "regularizers.0.layers"),
        (
            {"regularizers": [{"name": "shade"}, {"name": "variational", "layers": ["a", "b", "a"]}]},
            "regularizers.1.layers",
        ),
        ({"regularizers": [{"name": "label_noise", "deviation": 0.1}]}, "regularizers.0.deviation"),
        ({"regularizers": [{"name": "label_noise", "rate": 0.1, "deviation": 0.1}]}, "regularizers.0.deviation"),
        (
            {"data": FIT, "regularizers": [{"name": "label_noise", "rate": 0.1}]},
            "regularizers.0.rate",
        ),
        ({"data": FIT, "regularizers": [{"name": "reve"}]}, "regularizers.0.name"),
        ({"pruning": {"name": "shrinknets", "threshold": 0.01}}, "pruning.threshold"),
        ({"pruning": {"name": "shrinknets", "rule": "sign_change", "gamma": 0.5}}, "pruning.gamma"),
        ({"schedule": {"name": "step", "milestones": [6, 3]}}, "schedule.milestones"),
        ({"schedule": {"name": "step", "milestones": [3, 3]}}, "schedule.milestones"),
        ({"epochs": 3, "schedule": {"name": "cosine", "warmup_epochs": 3.5}}, "schedule.warmup_epochs"),
        ({"model": {"name": "lstm"}}, "model.name"),
        ({"data": TABLE, "model": {"name": "cnn"}}, "model.name"),
        ({"data": TABLE, "model": {"name": "lstm"}}, "model.name"),
        ({"data": TABLE, "compute": {"channels_last": True}}, "compute.channels_last"),
        ({"compute": {"device": "cuda"}}, "compute.device"),
        ({"data": {"name": "cifar10", "root": "nowhere"}}, "data.root"),
        ({"model": {"name": "nowhere.at.all:build"}}, "model.name"),
        ({"data": {"train_size": 1295}}, "data.train_size"),
        ({"data": {"batch_size": 1295}}, "data.batch_size"),
        ({"data": {"train_size": 96, "batch_size": 97}}, "data.batch_size"),
        ({"data": {"validation": 0.9999}}, "data.validation"),
        ({"data": {"augment": {"pad": 8}}}, "data.augment.pad"),
        ({"model": {"name": "vgg11"}}, "model.name"),
        ({"model": {"name": "lenet"}}, "model.name"),
        ({"model": {"name": "densenet121", "stem": "imagenet"}}, "model.name"),
        ({"model": {"name": "alexnet", "kernel": 4}}, "model.kernel"),
        ({"model": {"name": "wideresnet28_10", "regions": 2}}, "model.regions"),
    ],
)
def test_what_does_not_is_told_by_its_key(values: dict[str, Any], key: str) -> None:
    (problem,) = problems(values)
    assert problem.startswith(f"{key}:")


@pytest.mark.parametrize("name", ["scalp", "norm", "bn_lasso", "shrinknets"])
def test_ranks_that_never_meet_are_not_pruned_together(name: str) -> None:
    values = {"pruning": {"name": name}, "exchange": {"name": "none"}}
    (problem,) = problems(values, world_size=2)
    assert problem.startswith("pruning.name:")
    assert "exchange.name: none" in problem
    assert problems({**values, "pruning": {"name": "scala"}}, world_size=2) == ()
    assert problems(values) == ()


def test_all_problems_are_told_at_once() -> None:
    Path("taken").touch()
    wrong = {
        "run_dir": "taken",
        "data": {"name": "mnist", "root": "nowhere", "validation": 0},
        "early_stopping": {},
        "model": {"name": "lstm"},
        "compute": {"device": "cuda"},
    }
    assert [problem.partition(":")[0] for problem in problems(wrong)] == [
        "early_stopping",
        "model.name",
        "compute.device",
        "data.root",
        "run_dir",
    ]


def test_all_problems_of_the_data_are_told_at_once() -> None:
    wrong = {"data": {"train_size": 5000, "augment": {"pad": 9}}, "model": {"name": "vgg16"}}
    assert [problem.partition(":")[0] for problem in problems(wrong)] == [
        "data.train_size",
        "data.augment.pad",
        "model.name",
    ]


@pytest.mark.parametrize(
    ("devices", "ranks", "more", "fine"),
    [
        (0, 8, {}, True),  # the CPU has room for any number
        (2, 1, {}, True),
        (2, 2, {}, True),
        (2, 3, {}, False),
        (2, 3, {"share_devices": True}, True),
        (2, 3, {"device": "cpu"}, True),
        (2, 3, {"device": "cuda"}, False),
        (1, 1, {"device": "cuda"}, True),
    ],
)
def test_every_rank_needs_a_device(
    devices: int, ranks: int, more: dict[str, Any], fine: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "cuda_devices", lambda: devices)
    found = problems({"compute": more}, ranks)
    assert (found == ()) is fine
    assert fine or f"{ranks} ranks on this machine, but {devices} CUDA device(s)" in found[0]


@pytest.mark.parametrize(("ranks", "fine"), [(1, True), (13, True), (14, False)])
def test_all_ranks_together_need_samples(ranks: int, fine: bool) -> None:
    found = problems({"data": {"batch_size": 99}}, world_size=ranks)
    assert (found == ()) is fine
    assert fine or found[0].startswith("data.batch_size: 99 on each of 14 rank(s) needs 1386 training samples, but")


def test_options_of_the_other_form_are_told_where_images_are_large(tmp_path: Path) -> None:
    images = struct.pack(">4I", 0x803, 100, 96, 100) + bytes(100 * 96 * 100)
    for stem in ("train", "t10k"):
        (tmp_path / f"{stem}-images-idx3-ubyte").write_bytes(images)
        (tmp_path / f"{stem}-labels-idx1-ubyte").write_bytes(struct.pack(">2I", 0x801, 100) + bytes(100))
    data = {"name": "mnist", "root": str(tmp_path)}
    assert problems({"data": data, "model": {"name": "alexnet"}}) == ()
    (problem,) = problems({"data": data, "model": {"name": "alexnet", "kernel": 5}})
    assert problem.startswith("model: kernel: 5 and pool: 3 belong to alexnet's form for small images")


@pytest.mark.parametrize("name", ["mine:build", "mine.deeper:build", "pack.mine:build", "json:loads"])
def test_a_model_of_ones_own_may_lie_here_or_be_installed(name: str) -> None:
    Path("mine.py").touch()
    Path("pack").mkdir()
    before = set(sys.modules)
    assert problems({"model": {"name": name}}) == ()
    assert not {"mine", "pack"} & (set(sys.modules) - before), "it is looked for, not imported"


@pytest.mark.parametrize("name", ["mlp", "cnn", "cvnn", "lenet", "alexnet"])
@pytest.mark.parametrize("norm", [False, True])
def test_networks_that_are_said_to_have_no_batch_norm_have_none(name: str, norm: bool) -> None:
    more = {"batch_norm": norm} if name == "mlp" else {}
    net = build(name, (64,) if name == "mlp" else (1, 64, 64), 10, **more)
    has = any(isinstance(each, nn.modules.batchnorm._BatchNorm) for each in net.modules())
    told = problems({"model": {"name": name, **more}, "penalties": [{"name": "bn_lasso"}]})
    assert any("penalties.0.name" in each for each in told) is not has


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"regularizers": [{"name": "dropout", "layers": []}]}, "regularizers.0.layers: got "),
        ({"regularizers": [{"name": "reve", "modes": True}]}, "regularizers.0.modes: got true; allowed: 1, 2"),
        ({"pruning": {"name": "shrinknets", "power": True}}, "pruning.power: got true; allowed: 1, 2"),
    ],
)
def test_values_that_look_like_others_are_refused(values: dict[str, Any], message: str) -> None:
    (problem,) = problems(values)
    assert problem.startswith(message)
