"""CIFAR-10 and CIFAR-100 in their binary version.

Records of one label byte (CIFAR-100: a coarse one, then the fine one, which is used) and 3,072 bytes: 32 x 32
pixels in red, green, blue planes. Source: https://www.cs.toronto.edu/~kriz/cifar.html, "Binary version".
"""

from collections.abc import Mapping
from pathlib import Path

import torch

from hpc.data.dataset import Part, Source
from hpc.errors import RunError

PIXELS = 3 * 32 * 32


def read(name: str, files: Mapping[str, Path]) -> Source:
    """A CIFAR data set: images uint8 (N, 3, 32, 32), classes int64 (N,).

    The classes' names are read where their file lies beside the others; else they are numbers.

    Args:
        name: ``cifar10`` or ``cifar100``.
        files: as ``hpc.config.files.locate`` returns them.

    Raises:
        RunError: a file is not what it should be.
    """
    classes, label_bytes = (10, 1) if name == "cifar10" else (100, 2)
    parts = {
        key: _records(path, label_bytes, classes)
        for key, path in sorted(files.items())  # data_batch_1 to 5 in order
        if key != "labels"
    }
    test = parts.pop("test_batch" if name == "cifar10" else "test")
    train = Part(
        torch.cat([part.inputs for part in parts.values()]),
        torch.cat([part.targets for part in parts.values()]),
    )
    return Source(train, None, test, _labels(files.get("labels"), classes))


def _records(path: Path, label_bytes: int, classes: int) -> Part:
    size, record = path.stat().st_size, label_bytes + PIXELS
    if size == 0 or size % record:
        raise RunError(
            f"{path}: {size} bytes, but records of {record} bytes are expected; it is truncated or of "
            f"another version: unpack the archive of the binary version again"
        )
    records = torch.frombuffer(bytearray(path.read_bytes()), dtype=torch.uint8).view(-1, record)
    labels = records[:, label_bytes - 1].long()
    if labels.max() >= classes:
        raise RunError(
            f"{path}: label {int(labels.max())}, but labels go from 0 to {classes - 1}; it is damaged or of "
            f"another version: unpack the archive of the binary version again"
        )
    return Part(records[:, label_bytes:].reshape(-1, 3, 32, 32), labels)


def _labels(path: Path | None, classes: int) -> tuple[str, ...]:
    if path is None:
        return tuple(map(str, range(classes)))
    labels = tuple(path.read_text(encoding="ascii", errors="replace").split())
    if len(labels) != classes:
        raise RunError(f"{path}: {len(labels)} names, but there are {classes} classes; unpack the archive again")
    return labels
