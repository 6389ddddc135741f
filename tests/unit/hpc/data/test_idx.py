"""MNIST's format: read as written, and every way of being broken named."""

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from hpc.config.data import ImageFiles
from hpc.config.files import DEBIAN, locate
from hpc.data import idx
from hpc.errors import RunError


def idx_bytes(values: np.ndarray, magic: int | None = None) -> bytes:
    head = struct.pack(f">{1 + values.ndim}I", magic or 0x0800 + values.ndim, *values.shape)
    return head + values.astype(np.uint8).tobytes()


@pytest.fixture(params=["", ".gz"])
def files(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, Path]:
    """Twelve training and four test images of 5 x 4 pixels, plain and gzipped."""
    chance = np.random.default_rng(0)
    found = {}
    for part, count in (("train", 12), ("test", 4)):
        for kind, values in (
            ("images", chance.integers(0, 256, (count, 5, 4))),
            ("labels", np.arange(count) % 10),
        ):
            path = tmp_path / f"{part}-{kind}{request.param}"
            content = idx_bytes(values)
            path.write_bytes(gzip.compress(content) if request.param else content)
            found[f"{part}_{kind}"] = path
    return found


def test_values_come_back(files: dict[str, Path]) -> None:
    source = idx.read("fashion-mnist", files)
    chance = np.random.default_rng(0)
    assert source.train.inputs.dtype == torch.uint8
    assert torch.equal(source.train.inputs[:, 0], torch.from_numpy(chance.integers(0, 256, (12, 5, 4))).byte())
    assert source.train.targets.tolist() == [*range(10), 0, 1]
    assert source.test.inputs.shape == (4, 1, 5, 4)
    assert source.valid is None
    assert source.labels[9] == "Ankle boot"


def test_truncated_gzip(files: dict[str, Path]) -> None:
    path = files["train_images"]
    path.write_bytes(gzip.compress(idx_bytes(np.zeros((12, 5, 4))))[:-12])
    with pytest.raises(RunError, match=rf"{path.name}: truncated or damaged gzip .* download it again"):
        idx.read("mnist", files)


@pytest.mark.parametrize(
    ("key", "content", "message"),
    [
        (
            "train_images",
            idx_bytes(np.zeros((12, 5, 4)))[:-1],
            "239 bytes of values, but its header says 12 x 5 x 4 = 240",
        ),
        ("train_images", idx_bytes(np.zeros((12, 5, 4))) + b"x", "241 bytes of values"),
        ("train_images", b"\0\0\10", "3 bytes, but an IDX header takes 16"),
        ("train_images", idx_bytes(np.zeros(40)), "magic number 0x00000801, but 0x00000803 is expected"),
        ("train_labels", idx_bytes(np.zeros(12), magic=0x0D01), "magic number 0x00000d01, but 0x00000801"),
        ("train_labels", idx_bytes(np.zeros(11)), "11 labels, but .*train-images.* holds 12 images"),
        ("test_labels", idx_bytes(np.full(4, 10)), "label 10, but labels go from 0 to 9"),
        ("test_images", idx_bytes(np.zeros((4, 5, 5))), r"images of \(5, 5\) pixels, but .* have \(5, 4\)"),
    ],
)
def test_broken_files_are_named(files: dict[str, Path], key: str, content: bytes, message: str) -> None:
    files[key].write_bytes(content)
    with pytest.raises(RunError, match=message) as caught:
        idx.read("mnist", files)
    assert str(files[key]) in str(caught.value)


def test_no_samples(files: dict[str, Path]) -> None:
    files["train_images"].write_bytes(idx_bytes(np.zeros((0, 5, 4))))
    files["train_labels"].write_bytes(idx_bytes(np.zeros(0)))
    with pytest.raises(RunError, match="no samples at all"):
        idx.read("mnist", files)


@pytest.mark.skipif(
    not Path(DEBIAN["fashion-mnist"]).is_dir(),
    reason="Debian's package dataset-fashion-mnist is not installed",
)
def test_debian_fashion_mnist() -> None:
    source = idx.read("fashion-mnist", locate(ImageFiles(name="fashion-mnist", root=str(DEBIAN["fashion-mnist"]))))
    assert source.train.inputs.shape == (60000, 1, 28, 28)
    assert source.test.inputs.shape == (10000, 1, 28, 28)
    assert source.train.targets.bincount().tolist() == [6000] * 10
    assert source.train.inputs.double().mean().item() == pytest.approx(0.2860 * 255, abs=0.05)  # as published
