"""What the heads of a data set's files say: how many samples, and images of how many pixels.

Quick enough for a login node: neither pixels nor rows are read (a text's characters are counted). Nothing is
said of what cannot be known so, and nothing of a file that looks damaged: its reader in ``hpc.data`` says what is
wrong with it.
"""

import gzip
import math
import struct
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from hpc.config.data import DataConfig, Digits, ImageFiles, Tabular, TextFiles

_CIFAR_RECORD: Final = {"cifar10": 1 + 3072, "cifar100": 2 + 3072}
"""Bytes of a sample: its labels, and 3 x 32 x 32 pixels."""


@dataclass(frozen=True)
class Heads:
    """What is known of a data set before it is read.

    Attributes:
        samples: published samples to train, for validation (None: to be held out), for the test (None: to be
            held out); None: not known.
        image: height and width of the images; None: not known, or no images.
    """

    samples: tuple[int, int | None, int | None] | None = None
    image: tuple[int, int] | None = None


class _Unknown(Exception):  # noqa: N818 - no mistake of anybody's
    """A file's head does not say what it should."""


def peek(config: DataConfig, files: Mapping[str, Path]) -> Heads:
    """Look into the files that ``hpc.config.files.locate`` found."""
    try:
        match config:
            case Digits():
                return Heads((1797, None, None), (8, 8))
            case TextFiles():
                counts = {part: (_characters(path) - 1) // config.length for part, path in files.items()}
                return Heads(_some(counts["train"], counts["valid"], counts["test"]))
            case Tabular():
                rows = {part: _rows(path) for part, path in files.items()}
                train = rows["all"] if "all" in rows else rows["train"]
                return Heads(_some(train, rows.get("valid"), rows.get("test")))
            case ImageFiles():
                return _images(config.name, files)
    except (_Unknown, OSError, EOFError, ValueError, LookupError, struct.error, zlib.error, zipfile.BadZipFile):
        return Heads()


def _images(name: str, files: Mapping[str, Path]) -> Heads:
    match name:
        case "mnist" | "fashion-mnist":
            train, height, width = _idx(files, "train")
            return Heads(_some(train, None, _idx(files, "test")[0]), (height, width))
        case "svhn":
            return Heads(_some(_mat(files["train"]), None, _mat(files["test"])), (32, 32))
        case _:
            counts = {key: _records(path, name) for key, path in files.items() if key != "labels"}
            test = counts.pop("test_batch" if name == "cifar10" else "test")
            return Heads(_some(sum(counts.values()), None, test), (32, 32))


def _some(train: int, valid: int | None, test: int | None) -> tuple[int, int | None, int | None]:
    """The counts, unless a part is empty: its reader refuses that."""
    if any(count is not None and count < 1 for count in (train, valid, test)):
        raise _Unknown
    return train, valid, test


def _idx(files: Mapping[str, Path], part: str) -> tuple[int, int, int]:
    """Number, height and width of images, if there are as many labels."""
    count, height, width = _idx_shape(files[f"{part}_images"], 3)
    if _idx_shape(files[f"{part}_labels"], 1) != (count,):
        raise _Unknown
    return count, height, width


def _idx_shape(path: Path, axes: int) -> tuple[int, ...]:
    """The lengths in an IDX file's head, if its size, packed or not, is what they say."""
    start = 4 * (1 + axes)
    with path.open("rb") as file:
        packed = file.read(2) == b"\x1f\x8b"
        size = path.stat().st_size
        if packed:  # the size of what it holds, modulo 2^32, is at its end
            file.seek(-4, 2)
            (size,) = struct.unpack("<I", file.read())
        file.seek(0)
        head = gzip.GzipFile(fileobj=file).read(start) if packed else file.read(start)
    magic, *shape = struct.unpack(f">{1 + axes}I", head)
    if magic != 0x0800 + axes or (start + math.prod(shape)) % 2**32 != size % 2**32:
        raise _Unknown
    return tuple(shape)


def _records(path: Path, name: str) -> int:
    """Samples in one of CIFAR's files."""
    samples, rest = divmod(path.stat().st_size, _CIFAR_RECORD[name])
    if rest or not samples:
        raise _Unknown
    return samples


def _mat(path: Path) -> int:
    """Images in a MATLAB file."""
    try:
        from scipy.io import whosmat
        from scipy.io.matlab import MatReadError
    except ImportError as error:  # a login node may do without it
        raise _Unknown from error
    try:
        shapes: dict[str, tuple[int, ...]] = {name: shape for name, shape, _ in whosmat(path)}
    except (MatReadError, NotImplementedError, TypeError) as error:
        raise _Unknown from error
    if shapes["X"][:3] != (32, 32, 3) or shapes["X"][3] != math.prod(shapes["y"]):
        raise _Unknown
    return shapes["X"][3]


def _characters(path: Path) -> int:
    """Characters in a text, as Python reads it, without keeping it."""
    with path.open(encoding="utf-8-sig") as file:
        return sum(map(len, iter(lambda: file.read(1 << 20), "")))


def _rows(path: Path) -> int:
    """Rows of a table's array x. Those of a csv file are known only to who reads it all."""
    if path.suffix.lower() != ".npz":
        raise _Unknown
    from numpy.lib import format as npy

    with zipfile.ZipFile(path) as archive, archive.open("x.npy") as file:
        head: Any = npy.read_array_header_1_0 if npy.read_magic(file) == (1, 0) else npy.read_array_header_2_0
        shape, _, kind = head(file)
    if len(shape) != 2 or kind.hasobject:
        raise _Unknown
    return int(shape[0])
