"""The heads of files say, before anything is read, exactly what reading them will find, or nothing."""

import gzip
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpc.config.data import Augment, DataConfig, Digits, ImageFiles, Tabular, TextFiles
from hpc.config.files import locate
from hpc.config.peek import Heads, peek
from hpc.config.sizes import divide, steps_per_epoch
from hpc.errors import ConfigError


def idx(folder: Path, counts: dict[str, int], shape: tuple[int, int], *, packed: bool = False) -> ImageFiles:
    """MNIST's four files."""
    for stem, count in counts.items():
        images = struct.pack(">4I", 0x803, count, *shape) + bytes(count * shape[0] * shape[1])
        labels = struct.pack(">2I", 0x801, count) + bytes(place % 10 for place in range(count))
        for kind, content in (("images-idx3", images), ("labels-idx1", labels)):
            path = folder / f"{stem}-{kind}-ubyte{'.gz' if packed else ''}"
            path.write_bytes(gzip.compress(content, mtime=0) if packed else content)
    return ImageFiles(name="mnist", root=str(folder))


def cifar(folder: Path, name: str) -> ImageFiles:
    stems, record = (
        ([f"data_batch_{number}" for number in range(1, 6)], 3073) if name == "cifar10" else (["train"], 3074)
    )
    for stem in stems:
        (folder / f"{stem}.bin").write_bytes(bytes(record * 4))
    (folder / ("test_batch.bin" if name == "cifar10" else "test.bin")).write_bytes(bytes(record * 3))
    return ImageFiles(name=name, root=str(folder))


def svhn(folder: Path) -> ImageFiles:
    savemat = pytest.importorskip("scipy.io", reason="scipy is not installed").savemat
    for stem, count in (("train", 9), ("test", 4)):
        labels = np.ones((count, 1), np.uint8)
        images = np.zeros((32, 32, 3, count), np.uint8)
        savemat(folder / f"{stem}_32x32.mat", {"X": images, "y": labels}, do_compression=True)
    return ImageFiles(name="svhn", root=str(folder))


def texts(folder: Path) -> TextFiles:
    """With a byte order mark, lines of all kinds, and letters of several bytes."""
    (folder / "train.txt").write_bytes(b"\xef\xbb\xbf" + "aé\r\nb\rc\n".encode() * 7)
    (folder / "valid.txt").write_bytes("é\r\n".encode() * 5)
    (folder / "test.txt").write_bytes(b"abc\n")
    return TextFiles(root=str(folder), length=3)


def tables(folder: Path) -> Tabular:
    for stem, rows in (("train", 12), ("valid", 5), ("test", 4)):
        np.savez(folder / f"{stem}.npz", x=np.eye(rows, 3), y=np.arange(rows) % 2)
    return Tabular(root=str(folder))


def one_table(folder: Path) -> Tabular:
    np.savez_compressed(folder / "all.npz", x=np.eye(20, 3), y=np.arange(20) % 2)
    return Tabular(root=str(folder / "all.npz"))


MADE = {
    "plain": lambda folder: idx(folder, {"train": 30, "t10k": 7}, (6, 5)),
    "packed": lambda folder: idx(folder, {"train": 30, "t10k": 7}, (6, 5), packed=True),
    "cifar10": lambda folder: cifar(folder, "cifar10"),
    "cifar100": lambda folder: cifar(folder, "cifar100"),
    "svhn": svhn,
    "text": texts,
    "tables": tables,
    "one table": one_table,
}
FOUND = {
    "plain": Heads((30, None, 7), (6, 5)),
    "packed": Heads((30, None, 7), (6, 5)),
    "cifar10": Heads((20, None, 3), (32, 32)),
    "cifar100": Heads((4, None, 3), (32, 32)),
    "svhn": Heads((9, None, 4), (32, 32)),
    "text": Heads((16, 3, 1)),
    "tables": Heads((12, 5, 4)),
    "one table": Heads((20, None, None)),
}


def looked(config: DataConfig) -> Heads:
    return peek(config, locate(config))


@pytest.mark.parametrize("kind", MADE)
def test_heads_are_read(kind: str, tmp_path: Path) -> None:
    assert looked(MADE[kind](tmp_path)) == FOUND[kind]


@pytest.mark.parametrize("kind", MADE)
def test_what_is_read_is_what_the_heads_said(kind: str, tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="torch is not installed")
    from hpc.data import load

    config = replace(MADE[kind](tmp_path), validation=0.2)
    heads, data = looked(config), load(config, seed=0)
    assert heads.samples is not None
    assert divide(config, *heads.samples) == (len(data.train), len(data.valid), len(data.test))
    if heads.image is not None:
        assert heads.image == data.input_shape[1:]


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-5])


def emptied(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("damage", [truncated, emptied])
@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("plain", "train-images-idx3-ubyte"),
        ("plain", "t10k-labels-idx1-ubyte"),
        ("packed", "train-images-idx3-ubyte.gz"),
        ("packed", "train-labels-idx1-ubyte.gz"),
        ("cifar10", "data_batch_3.bin"),
        ("cifar100", "test.bin"),
        ("svhn", "train_32x32.mat"),
        ("tables", "valid.npz"),
        ("one table", "all.npz"),
    ],
)
def test_of_a_damaged_file_nothing_is_said(
    kind: str, name: str, damage: Callable[[Path], None], tmp_path: Path
) -> None:
    config = MADE[kind](tmp_path)
    if (kind, damage) == ("svhn", truncated):  # its end is not looked at
        (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:140])
    damage(tmp_path / name)
    assert looked(config) == Heads()


def test_of_what_a_reader_refuses_nothing_is_said(tmp_path: Path) -> None:
    config = idx(tmp_path, {"train": 30, "t10k": 7}, (6, 5))
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(struct.pack(">2I", 0x801, 29) + bytes(29))
    assert looked(config) == Heads()
    assert looked(idx(tmp_path, {"train": 0, "t10k": 7}, (6, 5))) == Heads()
    text = texts(tmp_path)
    assert looked(replace(text, length=4)) == Heads()  # the test has 4 characters, and a sample takes 5
    (tmp_path / "valid.txt").write_bytes(b"\xff")
    assert looked(text) == Heads()
    table = one_table(tmp_path)
    np.savez(tmp_path / "all.npz", x=np.array([[{}]], dtype=object), y=np.zeros(1))
    assert looked(table) == Heads()
    np.savez(tmp_path / "all.npz", x=np.zeros(9), y=np.zeros(9))
    assert looked(table) == Heads()


def test_the_rows_of_a_csv_file_are_not_counted(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("a,b\n1,2\n")
    assert looked(Tabular(root=str(tmp_path / "t.csv"))) == Heads()


# --- the early answer is the late one ------------------------------------------------------------------


def early(config: DataConfig, ranks: int) -> int | str:
    """Samples to train on, or the complaint, from heads alone."""
    samples = looked(config).samples
    assert samples is not None
    try:
        train, _, _ = divide(config, *samples)
        steps_per_epoch(train, config.batch_size, ranks)
    except ConfigError as error:
        return str(error)
    return train


def late(config: DataConfig, ranks: int) -> int | str:
    """The same from the samples themselves."""
    import torch

    from hpc.data import Feed, load

    try:
        data = load(config, seed=0)
        Feed(data, config, torch.device("cpu"), seed=0, rank=0, world_size=ranks)
    except ConfigError as error:
        return str(error)
    return len(data.train)


SHARES = st.sampled_from([0.0, 0.001, 0.1, 0.25, 0.5, 0.99])


@given(
    st.integers(1, 60), st.integers(1, 9), st.integers(1, 40), SHARES, st.none() | st.integers(1, 60), st.integers(1, 5)
)
@settings(deadline=None, max_examples=40)
def test_idx_early_and_late(
    train: int, test: int, batch_size: int, validation: float, size: int | None, ranks: int
) -> None:
    pytest.importorskip("torch", reason="torch is not installed")
    with TemporaryDirectory() as folder:
        config = idx(Path(folder), {"train": train, "t10k": test}, (3, 3))
        config = replace(config, batch_size=batch_size, validation=validation, train_size=size)
        assert early(config, ranks) == late(config, ranks)


@given(st.integers(1, 1500), SHARES, st.none() | st.integers(1, 1797), st.integers(1, 5))
@settings(deadline=None, max_examples=25)
def test_digits_early_and_late(batch_size: int, validation: float, size: int | None, ranks: int) -> None:
    pytest.importorskip("torch", reason="torch is not installed")
    config = Digits(batch_size=batch_size, validation=validation, train_size=size, augment=Augment(flip=True))
    assert early(config, ranks) == late(config, ranks)
