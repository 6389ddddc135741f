"""IDX, the format of MNIST and Fashion-MNIST, gzipped or not.

A big-endian 32-bit magic number (its third byte the type, its fourth the number of axes), one 32-bit length
for each axis, then the values. Source: http://yann.lecun.com/exdb/mnist, "The IDX file format".
"""

import gzip
import math
import struct
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from hpc.data.dataset import Part, Source
from hpc.errors import RunError

LABELS: Final = {
    "mnist": tuple("0123456789"),
    "fashion-mnist": (
        "T-shirt/top",
        "Trouser",
        "Pullover",
        "Dress",
        "Coat",
        "Sandal",
        "Shirt",
        "Sneaker",
        "Bag",
        "Ankle boot",
    ),
}


def read(name: str, files: Mapping[str, Path]) -> Source:
    """A data set in MNIST's form: images uint8 (N, 1, H, W), classes int64 (N,).

    Args:
        name: ``mnist`` or ``fashion-mnist``.
        files: as ``hpc.config.files.locate`` returns them.

    Raises:
        RunError: a file is not what it should be.
    """
    train, test = _part(files, "train"), _part(files, "test")
    ours, theirs = tuple(train.inputs.shape[2:]), tuple(test.inputs.shape[2:])
    if ours != theirs:
        raise RunError(
            f"{files['test_images']}: images of {theirs} pixels, but those of {files['train_images']} have "
            f"{ours}; get all files from the same source"
        )
    return Source(train, None, test, LABELS[name])


def _part(files: Mapping[str, Path], part: str) -> Part:
    images = read_array(files[f"{part}_images"], axes=3)
    path = files[f"{part}_labels"]
    labels = read_array(path, axes=1)
    if len(images) != len(labels):
        raise RunError(
            f"{path}: {len(labels)} labels, but {files[f'{part}_images']} holds {len(images)} images; "
            f"get both files from the same source"
        )
    if len(labels) == 0:
        raise RunError(f"{path}: no samples at all; download it again")
    if labels.max() > 9:
        raise RunError(f"{path}: label {int(labels.max())}, but labels go from 0 to 9; download it again")
    return Part(images.unsqueeze(1), labels.long())


def read_array(path: Path, axes: int) -> Tensor:
    """The unsigned bytes of an IDX file as a uint8 tensor with so many axes.

    Raises:
        RunError: truncated, too long, or not an IDX file of bytes with so many axes.
    """
    data = _content(path)
    start, expected = 4 * (1 + axes), 0x0800 + axes
    if len(data) < start:
        raise RunError(f"{path}: {len(data)} bytes, but an IDX header takes {start}; download it again")
    magic, *shape = struct.unpack(f">{1 + axes}I", data[:start])
    if magic != expected:
        raise RunError(
            f"{path}: magic number {magic:#010x}, but {expected:#010x} is expected (IDX, unsigned bytes, "
            f"{axes} axes); this is another file: check its name, or download it again"
        )
    if len(data) - start != math.prod(shape):
        raise RunError(
            f"{path}: {len(data) - start} bytes of values, but its header says {' x '.join(map(str, shape))} "
            f"= {math.prod(shape)}; download it again"
        )
    if math.prod(shape) == 0:
        return torch.zeros(shape, dtype=torch.uint8)
    return torch.frombuffer(data, dtype=torch.uint8, offset=start).view(*shape)


def _content(path: Path) -> bytearray:
    """The file's bytes, unpacked where they begin like gzip, whatever the file is called."""
    data = path.read_bytes()
    if data[:2] != b"\x1f\x8b":
        return bytearray(data)
    try:
        return bytearray(gzip.decompress(data))
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise RunError(f"{path}: truncated or damaged gzip ({error}); download it again") from error
