"""One nested state in one HDF5 file, every byte of it under a checksum.

The file is plain HDF5 that any reader opens: the tensors, contiguous and uncompressed (weights barely compress,
and it costs a factor of ten in speed), under /tensors, their skeleton as JSON text. HDF5 reads a flipped bit
without complaint, and its library may crash on damaged metadata; so the checks lie outside the file, in the
entry that :func:`write` returns and the checkpoint's manifest keeps: crc32 of each tensor, and one of all bytes
between the tensors. :func:`read` checks the latter before HDF5 sees the file.
"""

import json
import os
import zlib
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import h5py
import numpy as np
import torch

from hpc.hdf5 import new_file
from hpc.tree import flatten, unflatten

FORMAT: Final = "structlearn checkpoint"
VERSION: Final = 1

# numpy has no bfloat16 and HDF5 no bool: their bits are stored, exactly, as integers of the same size.
_AS_INTEGER: Final = {torch.bfloat16: torch.int16, torch.bool: torch.uint8}
_TYPES: Final = {
    str(kind).removeprefix("torch."): kind
    for kind in (
        torch.float64, torch.float32, torch.float16, torch.bfloat16,
        torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool,
    )
}  # fmt: skip


class DamagedFileError(Exception):
    """A file is not what its entry says: truncated, altered, foreign, or of another version."""


def write(path: Path, state: Any) -> dict[str, Any]:
    """Write a nested state to a new file and wait until it is on the disk.

    Returns:
        The entry that :func:`read` needs: size, checksums, place and shape of each tensor (plain JSON).

    Raises:
        OSError: the file cannot be written (a full disk, for instance).
        TypeError: the state holds something else than plain values and tensors.
    """
    skeleton, tensors = flatten(state)
    arrays = {name: _to_numpy(name, tensor) for name, tensor in tensors.items()}
    with ThreadPoolExecutor(1) as pool:  # zlib leaves the interpreter's lock: checksums while the disk writes
        checksums = pool.map(zlib.crc32, map(_bytes, arrays.values()))
        places = _write_hdf5(path, json.dumps(skeleton), arrays)
        entries = {
            name: {
                "offset": place,
                "bytes": arrays[name].nbytes,
                "crc32": checksum,
                "dtype": str(tensors[name].dtype).removeprefix("torch."),
                "shape": list(tensors[name].shape),
            }
            for (name, place), checksum in zip(places.items(), checksums, strict=True)
        }
    with path.open("rb") as file:
        rest = _rest_crc32(file.fileno(), path.stat().st_size, entries)
    return {"size": path.stat().st_size, "rest_crc32": rest, "tensors": entries}


def read(path: Path, entry: dict[str, Any]) -> Any:
    """The nested state in a file, checked against its entry.

    Raises:
        DamagedFileError: names what is wrong.
    """
    try:
        size = path.stat().st_size
        if size != entry["size"]:
            raise DamagedFileError(f"{path.name}: {size} bytes, but {entry['size']} were written")
        with path.open("rb") as file:
            if _rest_crc32(file.fileno(), size, entry["tensors"]) != entry["rest_crc32"]:
                raise DamagedFileError(f"{path.name}: altered since it was written (its structure's checksum differs)")
        return _read_hdf5(path, entry["tensors"])
    except FileNotFoundError:
        raise DamagedFileError(f"{path.name}: missing") from None
    except (OSError, RuntimeError, KeyError, ValueError, TypeError) as error:
        raise DamagedFileError(f"{path.name}: not a checkpoint file ({error})") from error


def _to_numpy(name: str, tensor: torch.Tensor) -> "np.ndarray[Any, Any]":
    if tensor.dtype not in _TYPES.values():
        raise TypeError(f"state {name}: a tensor of {tensor.dtype} cannot be written to a checkpoint")
    stored = _AS_INTEGER.get(tensor.dtype)
    tensor = tensor.cpu().contiguous()
    return (tensor if stored is None else tensor.view(stored)).numpy()


def _bytes(array: "np.ndarray[Any, Any]") -> memoryview:
    return array.reshape(-1).view(np.uint8).data


def _write_hdf5(path: Path, skeleton: str, arrays: "dict[str, np.ndarray[Any, Any]]") -> dict[str, int]:
    """Write the file; the offset of each tensor's bytes in it."""
    places: dict[str, int] = {}
    with new_file(path) as file:
        file.attrs["format"] = FORMAT
        file.attrs["version"] = VERSION
        file["skeleton"] = np.frombuffer(skeleton.encode(), np.uint8)
        group = file.create_group("tensors")
        for name, array in arrays.items():
            dataset = group.create_dataset(name, array.shape, array.dtype)
            if array.size:
                dataset.write_direct(array)
            places[name] = dataset.id.get_offset() or 0
    return places


def _read_hdf5(path: Path, entries: dict[str, Any]) -> Any:
    tensors: dict[str, torch.Tensor] = {}
    checksums: dict[str, Future[int]] = {}
    with h5py.File(path, "r", locking=False) as file, ThreadPoolExecutor(1) as pool:
        found = (file.attrs.get("format"), file.attrs.get("version"))
        if found != (FORMAT, VERSION):
            raise DamagedFileError(f"{path.name}: format {found[0]!r}, version {found[1]}; this reads {VERSION}")
        skeleton = json.loads(file["skeleton"][()].tobytes())
        for name, entry in entries.items():
            kind = _TYPES[entry["dtype"]]
            tensor = torch.empty(entry["shape"], dtype=_AS_INTEGER.get(kind, kind))
            array = tensor.numpy()
            if array.size:
                file["tensors"][name].read_direct(array)
            checksums[name] = pool.submit(zlib.crc32, _bytes(array))
            tensors[name] = tensor if kind not in _AS_INTEGER else tensor.view(kind)
    for name, checksum in checksums.items():
        if checksum.result() != entries[name]["crc32"]:
            raise DamagedFileError(f"{path.name}: tensor {name}: its checksum differs from the one written")
    return unflatten(skeleton, tensors)


def _rest_crc32(descriptor: int, size: int, entries: dict[str, Any]) -> int:
    """The checksum of all bytes that belong to no tensor."""
    checksum, position = 0, 0
    extents = sorted((entry["offset"], entry["bytes"]) for entry in entries.values() if entry["bytes"])
    for offset, length in [*extents, (size, 0)]:
        while position < offset:
            block = os.pread(descriptor, min(offset - position, 1 << 20), position)
            if not block:
                raise ValueError("it ends too early")
            checksum = zlib.crc32(block, checksum)
            position += len(block)
        position = max(position, offset + length)
    return checksum
