"""SVHN's MATLAB files, written by scipy."""

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from scipy.io import savemat

from hpc.data import svhn
from hpc.errors import RunError

CHANCE = np.random.default_rng(0)
IMAGES = CHANCE.integers(0, 256, (32, 32, 3, 11), dtype=np.uint8)
LABELS = (np.arange(11, dtype=np.uint8) % 10 + 1)[:, None]


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    found = {"train": tmp_path / "train_32x32.mat", "test": tmp_path / "test_32x32.mat"}
    for path in found.values():
        savemat(path, {"X": IMAGES, "y": LABELS}, do_compression=True)
    return found


def test_ten_means_zero(files: dict[str, Path]) -> None:
    source = svhn.read(files)
    assert source.train.targets.tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1]
    assert source.train.inputs.shape == (11, 3, 32, 32)
    assert source.train.inputs.is_contiguous()
    assert torch.equal(source.test.inputs[4, 2], torch.from_numpy(IMAGES[:, :, 2, 4]))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"X": IMAGES}, "holds no variable y"),
        ({"X": IMAGES.astype(float), "y": LABELS}, r"X is float64 \(32, 32, 3, 11\), but uint8"),
        ({"X": IMAGES[:28], "y": LABELS}, r"X is uint8 \(28, 32, 3, 11\)"),
        ({"X": IMAGES, "y": LABELS[1:]}, "11 images, but 10 labels"),
        ({"X": IMAGES, "y": LABELS - 1}, "label 0, but labels go from 1 to 10"),
        ({"X": IMAGES, "y": LABELS + 0.5}, "label 1.5, but labels go from 1 to 10"),
    ],
)
def test_wrong_content(files: dict[str, Path], content: dict[str, Any], message: str) -> None:
    savemat(files["test"], content)
    with pytest.raises(RunError, match=rf"test_32x32.mat: .*{message}"):
        svhn.read(files)


def test_version_7_3(files: dict[str, Path]) -> None:
    with h5py.File(files["train"], "w", userblock_size=512) as file:
        file["X"] = IMAGES
    header = b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM"
    files["train"].write_bytes(header + files["train"].read_bytes()[128:])
    with pytest.raises(RunError, match=r"train_32x32.mat: saved in MATLAB's version 7.3"):
        svhn.read(files)


@pytest.mark.parametrize("length", [0, 3, 100, 130, 200, 5000, -1])
def test_truncated(files: dict[str, Path], length: int) -> None:
    files["train"].write_bytes(files["train"].read_bytes()[:length])
    with pytest.raises(RunError, match=r"train_32x32.mat: "):
        svhn.read(files)


def test_another_file(files: dict[str, Path]) -> None:
    files["train"].write_bytes(b"<html>not found</html>" * 20)
    with pytest.raises(RunError, match=r"train_32x32.mat: not a readable MATLAB file"):
        svhn.read(files)
