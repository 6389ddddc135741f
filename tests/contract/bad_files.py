"""Files with something wrong, each made in the current folder."""

import fcntl
import gzip
import json
import shutil
import struct
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np

held: list[Any] = []
"""Locks stay held as long as their files are open."""


def text(name: str, content: str) -> Callable[[], object]:
    """A text file."""
    return partial(Path(name).write_text, content, encoding="utf-8")


def mnist(damage: str = "") -> Callable[[], None]:
    """The four files of MNIST, 20 images of 8 x 8 each, in data/, one of them damaged."""

    def make() -> None:
        Path("data").mkdir()
        for part in ("train", "t10k"):
            images = struct.pack(">4I", 0x803, 20, 8, 8) + bytes(range(256)) * 5
            labels = struct.pack(">2I", 0x801, 20) + bytes(place % 10 for place in range(20))
            if part == "train" and damage == "magic":
                images = b"\x00\x00\x0d\x03" + images[4:]
            if part == "train" and damage == "labels":
                labels = struct.pack(">2I", 0x801, 19) + labels[8:-1]
            if part == "t10k" and damage == "short":
                images = images[:-64]
            packed = gzip.compress(images, mtime=0)
            Path(f"data/{part}-labels-idx1-ubyte").write_bytes(labels)
            if part == "train" and damage == "gzip":
                Path(f"data/{part}-images-idx3-ubyte.gz").write_bytes(packed[: len(packed) // 2])
            else:
                Path(f"data/{part}-images-idx3-ubyte").write_bytes(images)
        if damage == "missing":
            Path("data/t10k-labels-idx1-ubyte").unlink()

    return make


def cifar10() -> None:
    """CIFAR-10's files, one byte short of a sample."""
    Path("data").mkdir()
    for name in (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"):
        Path(f"data/{name}.bin").write_bytes(bytes(3073 * 4 - 1))


def table(header: str, *rows: str, count: int = 8) -> Callable[[], None]:
    """A csv file: good rows around the bad ones."""

    def make() -> None:
        good = [f"{number}.5,{number},{'ab'[number % 2]}" for number in range(count)]
        Path("table.csv").write_text("\n".join([header, *good, *rows, *good, ""]), encoding="utf-8")

    return make


def objects() -> None:
    """An npz file with pickled Python objects."""
    np.savez("table.npz", x=np.array([{}, {}], dtype=object), y=np.zeros(2))


def texts(*names: str) -> Callable[[], None]:
    """Text files in data/."""

    def make() -> None:
        Path("data").mkdir()
        for name in names:
            Path("data", name).write_text("to be or not to be\n" * 9, encoding="utf-8")

    return make


def folder(name: str, mode: int = 0o755) -> Callable[[], None]:
    """An empty folder."""
    return partial(Path(name).mkdir, mode)


def full_disk() -> None:
    """A folder in which the report's page finds no room."""
    Path("page").mkdir()
    Path("page/index.html").symlink_to("/dev/full")


def lock() -> None:
    """Another process trains in ``run``: to the kernel, another open file is another process."""
    Path("run").mkdir()
    held.append(Path("run/.lock").open("w"))  # noqa: SIM115 - stays open
    fcntl.flock(held[-1], fcntl.LOCK_EX)


# --- checkpoints of the finished run -------------------------------------------------------------------


def checkpoints(damage: Callable[[Path], object], name: str) -> Callable[[], None]:
    """Damage one file of every checkpoint."""

    def make() -> None:
        found = sorted(Path("run/checkpoints").glob(f"step-*/{name}"))
        assert found, "the finished run has checkpoints"
        for path in found:
            damage(path)

    return make


def not_begun() -> None:
    """The run has been frozen, and no more."""
    no_checkpoint(2)()
    Path("run/status.json").unlink()


def no_checkpoint(newest: int) -> Callable[[], None]:
    """The finished run without so many of its newest checkpoints."""

    def make() -> None:
        for path in sorted(Path("run/checkpoints").iterdir())[-newest:]:
            shutil.rmtree(path)

    return make


def last_checkpoint() -> None:
    """A bit of the finished run's last checkpoint is another one."""
    flip(max(Path("run/checkpoints").iterdir()) / "shared.h5")


def truncate(path: Path) -> None:
    """Half of a file."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def shorten(path: Path) -> None:
    """A manifest that ends within a word, the same one every time."""
    text = path.read_text(encoding="utf-8")
    path.write_text(text[: text.index("format") + 3], encoding="utf-8")


def flip(path: Path) -> None:
    """One bit in the last tensor's bytes."""
    manifest = json.loads(path.with_name("manifest.json").read_text(encoding="utf-8"))["manifest"]
    tensors = manifest["files"][path.name]["tensors"].values()
    place = next(tensor["offset"] for tensor in tensors if tensor["bytes"])
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def foreign(path: Path) -> None:
    """A file that is no checkpoint, of the same size."""
    path.write_bytes(bytes(path.stat().st_size))


def manifest(**changes: Any) -> Callable[[Path], None]:
    """A manifest that says something else, its checksum made right."""

    def damage(path: Path) -> None:
        content = json.loads(path.read_text(encoding="utf-8"))["manifest"] | changes
        checksum = zlib.crc32(json.dumps(content, sort_keys=True).encode())
        path.write_text(json.dumps({"crc32": checksum, "manifest": content}), encoding="utf-8")

    return damage


def version(number: int) -> Callable[[], None]:
    """A record that claims another version of its form."""

    def make() -> None:
        with h5py.File("run/record.h5", "r+") as file:
            file.attrs["schema_version"] = number

    return make


def other_record() -> None:
    """HDF5, but no record of a run."""
    Path("run").mkdir()
    with h5py.File("run/record.h5", "w") as file:
        file["values"] = np.arange(3)


def damaged_record(damage: Callable[[Path], object]) -> None:
    """The finished run's record, damaged."""
    damage(Path("run/record.h5"))
