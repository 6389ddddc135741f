"""Record files as a run would write them, made with h5py alone."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
import pytest
import yaml

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

PHASES = ("data", "forward", "backward", "optimizer", "exchange", "evaluate", "checkpoint")


def config_of(**changes: Any) -> dict[str, Any]:
    config: dict[str, Any] = {
        "seed": 0,
        "run_dir": "runs/example",
        "epochs": 10,
        "data": {"name": "digits", "batch_size": 32, "train_size": None},
        "model": {"name": "mlp", "widths": [64, 32]},
        "optimizer": {"name": "sgd", "lr": 0.1, "momentum": 0.9},
        "schedule": {"name": "constant"},
        "penalties": [],
        "exchange": {"name": "sync"},
        "compute": {"device": "cpu", "threads": 1},
    }
    for key, value in changes.items():
        *parents, last = key.split("__")
        place = config
        for parent in parents:
            place = place.setdefault(parent, {})
        place[last] = value
    return config


def columns_of(epochs: int, seed: int, quality: float, world: int) -> dict[str, dict[str, np.ndarray]]:
    """The columns of a made-up run; a larger quality falls to a lower loss."""
    rng = np.random.default_rng(seed)
    epoch = np.arange(1, epochs + 1)
    fall = np.exp(-quality * epoch) + 0.02
    noise = 1 + 0.05 * rng.standard_normal((3, epochs))
    accuracy = 1 - 0.3 * fall * noise
    rank = np.arange(world)
    return {
        "epochs": {
            "epoch": epoch,
            "step": 40 * epoch,
            "seconds": 1.25 * epoch,
            "train_loss": 2 * fall * noise[0],
            "valid_loss": 2.2 * fall * noise[1],
            "valid_accuracy": accuracy[1],
            "test_loss": 2.3 * fall * noise[2],
            "test_accuracy": accuracy[2],
            "parameters": np.full(epochs, 6570),
            "lr": np.full(epochs, 0.1),
        },
        "exchange": {
            "rank": rank,
            "sent": 400 + rank,
            "received": 400 - rank,
            "skipped": rank,
            "bytes_sent": 10_512_000 + rank,
            "mass": np.full(world, 1.0),
            "seconds_blocked": 0.05 * (rank + 1.0),
        },
        "profile": {
            phase: np.full(epochs, share)
            for phase, share in zip(PHASES, (0.1, 0.3, 0.5, 0.1, 0.15, 0.05, 0.05), strict=True)
        },
    }


def write_run(
    folder: Path,
    *,
    epochs: int = 3,
    quality: float = 0.4,
    world: int = 2,
    config: dict[str, Any] | None = None,
    columns: dict[str, dict[str, np.ndarray]] | None = None,
    **attributes: Any,
) -> Path:
    """Writes a run folder and gives back its record file."""
    folder.mkdir(parents=True)
    config = {**(config or config_of()), "run_dir": str(folder)}
    seed = int(config["seed"])
    columns = columns or columns_of(epochs, seed, quality, world)
    integers = {"epoch", "step", "parameters", "rank", "sent", "received", "skipped", "bytes_sent"}
    (folder / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    (folder / "status.json").write_text(json.dumps({"state": attributes.get("state", "done")}), encoding="utf-8")
    with h5py.File(folder / "record.h5", "w") as file:
        file.attrs.update(
            {
                "schema_version": 1,
                "run_id": f"id-{folder.name}",
                "config": yaml.safe_dump(config, sort_keys=False),
                "versions": json.dumps({"structlearn": "0.1.0", "torch": "2.4.0"}),
                "world_size": world,
                "state": "done",
                "ended_by": "epochs",
                **attributes,
            }
        )
        for group, values in columns.items():
            for name, column in values.items():
                dtype = "i8" if name in integers else "f8"
                file.create_dataset(f"{group}/{name}", data=np.asarray(column, dtype=dtype))
    return folder / "record.h5"


@pytest.fixture(name="write_run")
def _write_run() -> Callable[..., Path]:
    return write_run


@pytest.fixture(name="config_of")
def _config_of() -> Callable[..., dict[str, Any]]:
    return config_of


@pytest.fixture(name="columns_of")
def _columns_of() -> Callable[..., dict[str, dict[str, np.ndarray]]]:
    return columns_of


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    """Four settings of three seeds each."""
    folder = tmp_path / "sweep"
    settings = [("sync", 2, 0.6), ("gossip", 2, 0.5), ("gossip", 4, 0.45), ("easgd", 2, 0.3)]
    for name, world, quality in settings:
        for seed in range(3):
            config = config_of(seed=seed, exchange__name=name, exchange__rho=None if name == "sync" else 0.1)
            write_run(folder / f"{name}-w{world}-s{seed}", epochs=10, quality=quality, world=world, config=config)
    return folder
