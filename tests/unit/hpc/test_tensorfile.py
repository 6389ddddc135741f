"""One state in one file: exact when it is whole, and never taken for whole when it is not."""

import json
import random
import shutil
import zlib
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from hpc import tensorfile
from hpc.tensorfile import DamagedFileError, read, write

FLOATS = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
INTEGERS = [torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool]
DTYPES = [*FLOATS, *INTEGERS]


def bits(tensor: torch.Tensor) -> bytes:
    """A tensor's content, so that nan equals nan and -0 does not equal 0."""
    return tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes()


def random_bits(dtype: torch.dtype, *shape: int) -> torch.Tensor:
    """Every bit pattern that a type has, nan and infinity among them."""
    generator = torch.Generator().manual_seed(1)
    if dtype == torch.bool:
        return torch.randint(0, 2, shape, generator=generator).bool()
    size = torch.empty((), dtype=dtype).element_size()
    noise = torch.randint(0, 256, (*shape[:-1], shape[-1] * size), dtype=torch.uint8, generator=generator)
    return noise.view(dtype)


def there_and_back(path: Path, state: Any) -> Any:
    entry = write(path, state)
    return read(path, json.loads(json.dumps(entry)))


def assert_same(found: torch.Tensor, expected: torch.Tensor) -> None:
    assert found.dtype == expected.dtype
    assert found.shape == expected.shape
    assert bits(found) == bits(expected)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "state.h5"


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> tuple[bytes, dict[str, Any], Any]:
    """A small file's bytes, its entry and its state."""
    state = {"weight": torch.arange(6.0).reshape(2, 3), "flag": torch.tensor([True, False]), "step": 3}
    path = tmp_path_factory.mktemp("small") / "state.h5"
    entry = write(path, state)
    return path.read_bytes(), entry, state


# --- what is whole comes back bit for bit ------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(33,), (4, 5), (2, 3, 2, 4), (1,)], ids=str)
def test_every_type_comes_back_bit_for_bit(path, dtype, shape):
    tensor = random_bits(dtype, *shape)
    assert_same(there_and_back(path, {"x": tensor})["x"], tensor)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_scalar_and_empty_tensors_keep_type_and_shape(path, dtype):
    state = {
        "scalar": torch.tensor(1, dtype=dtype),
        "empty": torch.empty(0, dtype=dtype),
        "hollow": torch.empty(3, 0, 2, dtype=dtype),
    }
    found = there_and_back(path, state)
    for name, tensor in state.items():
        assert_same(found[name], tensor)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.bool], ids=str)
def test_layout_in_memory_does_not_matter(path, dtype):
    base = random_bits(dtype, 4, 6, 5, 3)
    state = {
        "transposed": base.transpose(0, 3),
        "strided": base[::2, :, 1::2],
        "expanded": base[:1].expand(5, -1, -1, -1),
        "channels_last": base.to(memory_format=torch.channels_last),
        "view": base[1, 2],
        "parameter": torch.nn.Parameter(base.float()),
    }
    found = there_and_back(path, state)
    for name, tensor in state.items():
        assert_same(found[name], tensor.detach())


def test_awkward_keys_come_back(path):
    keys = ["", ".", "..", "a/b", "#1", "1", 1, "%2F", "%", "%00", "\0", "ä", " "]
    found = there_and_back(path, {key: torch.tensor(place) for place, key in enumerate(keys)})
    assert list(found) == keys
    assert [type(key) for key in found] == [type(key) for key in keys]
    assert [int(value) for value in found.values()] == list(range(len(keys)))


def test_a_state_without_tensors_comes_back(path):
    state = {"step": 3, "best": float("inf"), "nested": [(1, None), {"a": True}]}
    assert there_and_back(path, state) == state


def test_the_same_tensor_twice_comes_back_twice(path):
    tensor = torch.arange(3)
    found = there_and_back(path, {"a": tensor, "b": tensor})
    assert torch.equal(found["a"], tensor)
    assert torch.equal(found["b"], tensor)


def test_what_comes_back_can_be_written_to(path):
    found = there_and_back(path, {"x": torch.zeros(3), "y": torch.zeros(3, dtype=torch.bfloat16)})
    found["x"] += 1
    found["y"] += 1
    assert found["x"].sum() == found["y"].sum() == 3


def test_any_hdf5_reader_opens_the_file(path):
    write(path, {"model": {"weight": torch.arange(3.0)}})
    with h5py.File(path) as file:
        assert file["tensors/model/weight"][()].tolist() == [0, 1, 2]
        assert file["tensors/model/weight"].chunks is None
        assert json.loads(file["skeleton"][()].tobytes())["dict"]


def test_the_entry_is_plain_json(small):
    _, entry, _ = small
    assert json.loads(json.dumps(entry)) == entry


def test_an_existing_file_is_not_overwritten(path):
    path.write_text("precious")
    with pytest.raises(FileExistsError):
        write(path, {})
    assert path.read_text() == "precious"


@pytest.mark.parametrize("dtype", [torch.complex64, torch.float8_e4m3fn, torch.uint16], ids=str)
def test_a_type_that_cannot_be_held_is_named_with_its_path(path, dtype):
    with pytest.raises(TypeError, match=f"state model/w: a tensor of {dtype}"):
        write(path, {"model": {"w": torch.zeros(2, dtype=dtype)}})


# --- what is not whole is refused --------------------------------------------------------------------------


def refused(path: Path, entry: dict[str, Any], content: bytes) -> None:
    path.write_bytes(content)
    with pytest.raises(DamagedFileError):
        read(path, entry)


def test_one_flipped_bit_in_any_byte_is_noticed(path, small):
    """Every byte: in tensors, in HDF5's own structures, and in the gaps between them."""
    content, entry, state = small
    damaged = bytearray(content)
    for place in range(len(content)):
        damaged[place] ^= 1 << place % 8
        refused(path, entry, damaged)
        damaged[place] = content[place]
    path.write_bytes(damaged)
    assert torch.equal(read(path, entry)["weight"], state["weight"])  # whole again


def test_the_checksum_of_the_rest_is_of_every_byte_outside_the_tensors(path):
    draw = random.Random(0)
    content = draw.randbytes(3000)
    path.write_bytes(content)
    for _ in range(200):
        extents = [(draw.randrange(3000), draw.choice([0, 1, 50, 400])) for _ in range(draw.randrange(6))]
        extents = [(offset, min(length, 3000 - offset)) for offset, length in extents]
        inside = {place for offset, length in extents for place in range(offset, offset + length)}
        rest = bytes(byte for place, byte in enumerate(content) if place not in inside)
        entries = {str(n): {"offset": offset, "bytes": length} for n, (offset, length) in enumerate(extents)}
        with path.open("rb") as file:
            assert tensorfile._rest_crc32(file.fileno(), 3000, entries) == zlib.crc32(rest)


def test_any_flipped_bit_of_a_byte_is_noticed(path, small):
    content, entry, _ = small
    extents = [tensor["offset"] for tensor in entry["tensors"].values()]
    for place in {*extents, *range(0, len(content), 211)}:
        for bit in range(8):
            damaged = bytearray(content)
            damaged[place] ^= 1 << bit
            refused(path, entry, damaged)


@pytest.mark.parametrize("filler", [0x00, 0xFF])
def test_a_lost_sector_is_noticed(path, small, filler):
    content, entry, _ = small
    for start in range(0, len(content), 512):
        damaged = bytearray(content)
        damaged[start : start + 512] = bytes([filler]) * len(content[start : start + 512])
        if damaged != content:
            refused(path, entry, damaged)


def test_a_truncated_file_is_noticed_at_any_length(path, small):
    content, entry, _ = small
    for length in [*range(0, len(content), 13), len(content) - 1]:
        refused(path, entry, content[:length])


def test_a_longer_file_is_noticed(path, small):
    content, entry, _ = small
    refused(path, entry, content + b"\0")


def test_a_missing_file_is_named(path, small):
    with pytest.raises(DamagedFileError, match=r"state\.h5: missing"):
        read(path, small[1])


def test_a_folder_is_no_file(path, small):
    path.mkdir()
    with pytest.raises(DamagedFileError):
        read(path, small[1])


def test_a_foreign_hdf5_file_is_refused(path, small):
    with h5py.File(path, "w") as file:
        file["x"] = np.arange(10)
    with pytest.raises(DamagedFileError, match="bytes, but"):
        read(path, small[1])


def entry_of(path: Path) -> dict[str, Any]:
    """An entry that fits a file's bytes, whatever they are."""
    size = path.stat().st_size
    with path.open("rb") as file:
        return {"size": size, "rest_crc32": tensorfile._rest_crc32(file.fileno(), size, {}), "tensors": {}}


def test_a_foreign_hdf5_file_is_refused_by_what_it_says_it_is(path):
    with h5py.File(path, "w") as file:
        file["x"] = np.arange(10)
    with pytest.raises(DamagedFileError, match="format None"):
        read(path, entry_of(path))


def test_a_file_that_is_no_hdf5_is_refused(path):
    path.write_bytes(b"not at all" * 100)
    with pytest.raises(DamagedFileError, match="not a checkpoint file"):
        read(path, entry_of(path))


def test_another_version_is_refused_and_named(path, monkeypatch):
    monkeypatch.setattr(tensorfile, "VERSION", 99)
    entry = write(path, {"x": torch.zeros(2)})
    monkeypatch.undo()
    with pytest.raises(DamagedFileError, match="version 99; this reads 1"):
        read(path, entry)


def test_a_file_of_another_checkpoint_is_noticed(tmp_path):
    """Of the same size and structure: only the tensors differ."""
    one, other = tmp_path / "one.h5", tmp_path / "other.h5"
    entry = write(one, {"x": torch.zeros(100), "y": torch.ones(3)})
    write(other, {"x": torch.zeros(100), "y": torch.full((3,), 1.0000001)})
    assert one.stat().st_size == other.stat().st_size
    shutil.copy(other, one)
    with pytest.raises(DamagedFileError, match="tensor y: its checksum differs"):
        read(one, entry)


def test_a_tensor_swapped_with_another_is_noticed(path):
    entry = write(path, {"a": torch.zeros(4), "b": torch.ones(4)})
    a, b = entry["tensors"]["a"], entry["tensors"]["b"]
    content = bytearray(path.read_bytes())
    first, second = slice(a["offset"], a["offset"] + 16), slice(b["offset"], b["offset"] + 16)
    content[first], content[second] = content[second], content[first]
    refused(path, entry, content)


@pytest.mark.parametrize(
    "change",
    [
        {"size": None},
        {"tensors": {}},
        {"tensors": {"weight": {}}},
        {"tensors": {"weight": {"offset": 10**9, "bytes": 5}}},
        {"rest_crc32": "text"},
    ],
    ids=str,
)
def test_a_strange_entry_is_refused(path, small, change):
    content, entry, _ = small
    path.write_bytes(content)
    with pytest.raises(DamagedFileError):
        read(path, {**entry, **change})


@pytest.mark.parametrize(
    "change",
    [{"dtype": "qint8"}, {"dtype": "float64"}, {"shape": [7]}, {"shape": [2**40]}, {"shape": [-1]}, {"crc32": 0}],
    ids=str,
)  # fmt: skip
def test_a_strange_tensor_entry_is_refused(path, small, change):
    content, entry, _ = small
    path.write_bytes(content)
    weight = {**entry["tensors"]["weight"], **change}
    with pytest.raises(DamagedFileError):
        read(path, {**entry, "tensors": {**entry["tensors"], "weight": weight}})
