"""CIFAR's binary version, written as it is published."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch

from hpc.data import cifar
from hpc.errors import RunError

Bytes = npt.NDArray[np.uint8]


def records(count: int, label_bytes: int, classes: int, seed: int = 0) -> tuple[Bytes, Bytes]:
    chance = np.random.default_rng(seed)
    labels = chance.integers(0, classes, (count, label_bytes), dtype=np.uint8)
    return labels, chance.integers(0, 256, (count, 3, 32, 32), dtype=np.uint8)


def write(path: Path, labels: Bytes, images: Bytes) -> Path:
    path.write_bytes(np.concatenate([labels, images.reshape(len(images), -1)], axis=1).tobytes())
    return path


@pytest.fixture
def ten(tmp_path: Path) -> dict[str, Path]:
    """CIFAR-10 with batches of 3; the files are given in no order."""
    return {
        key: write(tmp_path / f"{key}.bin", *records(3, 1, 10, seed))
        for seed, key in reversed(list(enumerate(["test_batch", *(f"data_batch_{i}" for i in range(1, 6))])))
    }


def test_cifar10(ten: dict[str, Path], tmp_path: Path) -> None:
    source = cifar.read("cifar10", ten)
    assert source.train.inputs.shape == (15, 3, 32, 32)
    for i in range(5):
        labels, images = records(3, 1, 10, i + 1)
        assert torch.equal(source.train.inputs[3 * i : 3 * i + 3], torch.from_numpy(images))
        assert torch.equal(source.train.targets[3 * i : 3 * i + 3], torch.from_numpy(labels[:, 0]).long())
    assert torch.equal(source.test.inputs, torch.from_numpy(records(3, 1, 10, 0)[1]))
    assert source.labels == tuple("0123456789")
    names = tmp_path / "batches.meta.txt"
    names.write_text("\n".join(f"class{i}" for i in range(10)) + "\n\n")
    assert cifar.read("cifar10", ten | {"labels": names}).labels[3] == "class3"
    names.write_text("cat dog")
    with pytest.raises(RunError, match="2 names, but there are 10 classes"):
        cifar.read("cifar10", ten | {"labels": names})


def test_cifar100_takes_the_fine_label(tmp_path: Path) -> None:
    fine = {key: write(tmp_path / f"{key}.bin", *records(4, 2, 20)) for key in ("train", "test")}
    source = cifar.read("cifar100", fine)
    labels, images = records(4, 2, 20)
    assert source.train.targets.tolist() == labels[:, 1].tolist()
    assert torch.equal(source.test.inputs, torch.from_numpy(images))
    assert len(source.labels) == 100


def test_truncated(ten: dict[str, Path]) -> None:
    path = ten["data_batch_2"]
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(RunError, match=r"data_batch_2.bin: 9218 bytes, but records of 3073 bytes are expected"):
        cifar.read("cifar10", ten)
    path.write_bytes(b"")
    with pytest.raises(RunError, match="0 bytes"):
        cifar.read("cifar10", ten)


def test_label_out_of_range(ten: dict[str, Path]) -> None:
    labels, images = records(3, 1, 10)
    write(ten["test_batch"], labels + 10, images)
    with pytest.raises(RunError, match=r"test_batch.bin: label 1\d, but labels go from 0 to 9"):
        cifar.read("cifar10", ten)
