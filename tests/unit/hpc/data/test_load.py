"""From the configuration to a data set that is split and measured."""

import dataclasses
import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from hpc.config.data import Augment, Digits, ImageFiles, Tabular, TextFiles
from hpc.data import Feed, Part, load
from hpc.errors import ConfigError


def keys(part: Part) -> list[bytes]:
    """Each sample as bytes, to compare sets of samples."""
    return [sample.numpy().tobytes() for sample in part.inputs]


@pytest.fixture
def mnist(tmp_path: Path) -> ImageFiles:
    """100 images of distinct content, 10 a class, and 20 for the test."""
    chance = np.random.default_rng(0)
    for stem, count in (("train", 100), ("t10k", 20)):
        images = chance.integers(0, 256, (count, 6, 6), dtype=np.uint8)
        head = struct.pack(">4I", 0x803, *images.shape)
        (tmp_path / f"{stem}-images-idx3-ubyte.gz").write_bytes(gzip.compress(head + images.tobytes()))
        labels = (np.arange(count) % 10).astype(np.uint8)
        (tmp_path / f"{stem}-labels.idx1-ubyte").write_bytes(struct.pack(">2I", 0x801, count) + labels.tobytes())
    return ImageFiles(name="mnist", root=str(tmp_path))


def test_digits() -> None:
    dataset = load(Digits(), seed=0)
    assert (len(dataset.train), len(dataset.valid), len(dataset.test)) == (1294, 144, 359)
    assert dataset.task == "classification"
    assert dataset.input_shape == (1, 8, 8)
    assert dataset.outputs == len(dataset.labels) == 10
    assert dataset.train.inputs.dtype == torch.uint8
    assert dataset.train.inputs.max() == 16
    shares = dataset.test.targets.bincount() / 359
    assert shares.tolist() == pytest.approx([0.1] * 10, abs=0.01)


def test_statistics_are_those_of_the_training_samples(mnist: ImageFiles) -> None:
    dataset = load(mnist, seed=1)
    exact = dataset.train.inputs.double()
    assert dataset.mean.shape == dataset.std.shape == (1, 1, 1)
    assert dataset.mean.item() == pytest.approx(exact.mean().item(), rel=1e-6)
    assert dataset.std.item() == pytest.approx(exact.std(correction=0).item(), rel=1e-6)
    plain = load(dataclasses.replace(mnist, normalize="none"), seed=1)
    assert (plain.mean.item(), plain.std.item()) == (0, 1)


def test_the_split_follows_from_the_seed(mnist: ImageFiles) -> None:
    one, again, other = load(mnist, 1), load(mnist, 1), load(mnist, 2)
    assert keys(one.valid) == keys(again.valid)
    assert keys(one.valid) != keys(other.valid)
    assert keys(one.test) == keys(other.test)  # the published one
    assert one.valid.targets.bincount().tolist() == [1] * 10
    assert len(set(keys(one.train)) | set(keys(one.valid))) == 100


def test_a_subset_leaves_validation_as_it_is(mnist: ImageFiles) -> None:
    full, few = load(mnist, 1), load(dataclasses.replace(mnist, train_size=30), 1)
    assert keys(few.valid) == keys(full.valid)
    assert set(keys(few.train)) < set(keys(full.train))
    assert few.train.targets.bincount().tolist() == [3] * 10


def test_no_validation(mnist: ImageFiles) -> None:
    config = dataclasses.replace(mnist, validation=0.0)
    dataset = load(config, 1)
    assert (len(dataset.train), len(dataset.valid)) == (100, 0)
    feed = Feed(dataset, config, torch.device("cpu"), seed=0, rank=0, world_size=1)
    assert not list(feed.evaluation("valid"))


def test_more_than_there_is(mnist: ImageFiles) -> None:
    with pytest.raises(ConfigError, match=r"data.train_size: got 91, but mnist has 90 training samples beside 10"):
        load(dataclasses.replace(mnist, train_size=91), 1)
    with pytest.raises(ConfigError, match=r"data.validation: 0.999 of 100 samples leaves none to train on"):
        load(dataclasses.replace(mnist, validation=0.999), 1)
    with pytest.raises(ConfigError, match=r"data.augment.pad: got 6, but images of 6 x 6 .* use 5 or less"):
        load(dataclasses.replace(mnist, augment=Augment(pad=6)), 1)


def test_tables(tmp_path: Path) -> None:
    chance = np.random.default_rng(0)
    x = chance.normal(3, 2, (200, 4))
    x[:, 2] = 0.1
    np.savez(tmp_path / "t.npz", x=x, y=x[:, :2] * 1000)
    dataset = load(Tabular(root=str(tmp_path / "t.npz"), task="regression"), 0)
    assert (len(dataset.train), len(dataset.valid), len(dataset.test)) == (144, 16, 40)
    assert dataset.task == "regression"
    assert (dataset.input_shape, dataset.outputs) == ((4,), 2)
    assert dataset.mean.numpy() == pytest.approx(dataset.train.inputs.numpy().mean(0), rel=1e-5)
    assert dataset.std[2] == 1  # a constant column
    assert dataset.std[0].item() == pytest.approx(dataset.train.inputs[:, 0].numpy().std(), rel=1e-5)
    assert set(keys(dataset.train)).isdisjoint(keys(dataset.test))
    untested = load(Tabular(root=str(tmp_path / "t.npz"), task="regression", test=0.0), 0)
    assert (len(untested.train), len(untested.test)) == (180, 0)


def test_files_that_bring_their_own_validation(tmp_path: Path) -> None:
    for part, text in (("train", "abcd " * 40), ("valid", "dcba " * 10), ("test", "bad cab ")):
        (tmp_path / f"{part}.txt").write_text(text)
    config = TextFiles(root=str(tmp_path), length=7)
    dataset = load(config, 0)
    assert dataset.task == "sequence"
    assert (len(dataset.train), len(dataset.valid), len(dataset.test)) == (28, 7, 1)
    assert (dataset.input_shape, dataset.outputs, dataset.labels) == ((7,), 5, tuple(" abcd"))
    assert len(load(dataclasses.replace(config, validation=0.0), 0).valid) == 0
    assert len(load(dataclasses.replace(config, train_size=5), 0).train) == 5


@pytest.mark.parametrize("name", ["cifar10", "svhn"])
def test_other_readers_are_called(name: str, tmp_path: Path) -> None:
    chance = np.random.default_rng(0)
    if name == "cifar10":
        for stem in ("test_batch", *(f"data_batch_{i}" for i in range(1, 6))):
            records = chance.integers(0, 10, (10, 3073), dtype=np.uint8)
            (tmp_path / f"{stem}.bin").write_bytes(records.tobytes())
    else:
        from scipy.io import savemat

        for stem in ("train", "test"):
            images, labels = (
                chance.integers(0, 9, (32, 32, 3, 50), dtype=np.uint8),
                chance.integers(1, 11, (50, 1)),
            )
            savemat(tmp_path / f"{stem}_32x32.mat", {"X": images, "y": labels})
    dataset = load(ImageFiles(name=name, root=str(tmp_path)), 0)
    assert (len(dataset.train), len(dataset.valid)) == (45, 5)
    assert dataset.mean.shape == (3, 1, 1)
    assert dataset.input_shape == (3, 32, 32)
