"""The keys that are free change no number: runs that differ in all of them end bit-identical."""

import os
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from hpc.config.read import NOT_IDENTITY

pytest.importorskip("torch", reason="torch is not installed")
pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[4]
FREE = {
    "run_dir": "two",
    "data.root": "moved",
    "data.placement": "host",
    "data.prefetch": 5,
    "checkpoint.every_epochs": 3,
    "checkpoint.every_steps": 3,
    "checkpoint.keep": 4,
    "compute.share_devices": True,
    "compute.deadline_s": 60,
    "compute.device_pointers": "never",
}
CONFIG = """
run_dir: one
seed: 5
epochs: 2
data: {name: mnist, root: here, batch_size: 10, augment: {pad: 1, flip: true}}
model: {name: cnn, channels: [4], dropout: 0.25}
optimizer: {name: adam}
compute: {device: cpu}
"""


def mnist(folder: Path) -> None:
    folder.mkdir()
    for stem, count in (("train", 90), ("t10k", 20)):
        images = bytes(place * place % 251 for place in range(count * 64))
        (folder / f"{stem}-images-idx3-ubyte").write_bytes(struct.pack(">4I", 0x803, count, 8, 8) + images)
        labels = bytes(place % 10 for place in range(count))
        (folder / f"{stem}-labels-idx1-ubyte").write_bytes(struct.pack(">2I", 0x801, count) + labels)


def python(folder: Path, *line: str) -> str:
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *line], cwd=folder, env=env, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_what_is_free_changes_no_number(tmp_path: Path) -> None:
    assert FREE.keys() == NOT_IDENTITY | {"data.root"}
    mnist(tmp_path / "here")
    mnist(tmp_path / "moved")
    (tmp_path / "config.yaml").write_text(CONFIG, encoding="utf-8")
    train = ("-m", "jobs", "train", "config.yaml", "--progress", "none")
    python(tmp_path, *train)
    python(tmp_path, *train, *(f"--{key}={value}" for key, value in FREE.items()))
    compare = str(ROOT / "tests" / "support" / "identical.py")
    assert python(tmp_path, compare, "one", "two") == "identical\n"


def test_a_moved_data_set_is_trained_on(tmp_path: Path) -> None:
    """Resumed with other free keys: nothing is refused, and what is in the folder is what was given last."""
    mnist(tmp_path / "here")
    (tmp_path / "config.yaml").write_text(CONFIG, encoding="utf-8")
    train = ("-m", "jobs", "train", "config.yaml", "--progress", "none")
    python(tmp_path, *train)
    (tmp_path / "here").rename(tmp_path / "moved")
    python(tmp_path, *train, "--data.root", "moved")
    assert "root: moved" in (tmp_path / "one" / "config.yaml").read_text(encoding="utf-8")
