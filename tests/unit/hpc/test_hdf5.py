"""A new HDF5 file, and the OSError that a failing disk must become."""

import errno
import io
import os
import sys

import h5py
import numpy as np
import pytest

from hpc import hdf5
from hpc.hdf5 import new_file


@pytest.fixture
def path(tmp_path):
    return tmp_path / "file.h5"


def fill(path):
    with new_file(path) as file:
        file.attrs["name"] = "a file"
        for count in (0, 1, 100, 100_000):
            file[f"group/{count}"] = np.arange(count)


def test_what_was_written_is_read_by_hdf5s_own_driver(path):
    fill(path)
    with h5py.File(path) as file:
        assert file.attrs["name"] == "a file"
        for count in (0, 1, 100, 100_000):
            assert np.array_equal(file[f"group/{count}"][()], np.arange(count))


def test_data_written_in_pieces_and_read_back_while_writing_is_right(path):
    with new_file(path) as file:
        dataset = file.create_dataset("x", 50_000, "f8")
        for start in range(0, 50_000, 7):
            dataset[start : start + 3] = start
        assert dataset[7:11].tolist() == [7, 7, 7, 0]
    with h5py.File(path) as file:
        expected = np.zeros(50_000)
        for start in range(0, 50_000, 7):
            expected[start : start + 3] = start
        assert np.array_equal(file["x"][()], expected)


def test_it_is_on_the_disk_when_the_block_ends(path, monkeypatch):
    waited = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: waited.append(os.fstat(descriptor).st_size))
    fill(path)
    assert waited == [path.stat().st_size]


def test_an_existing_file_is_refused(path):
    path.write_text("precious")
    with pytest.raises(FileExistsError):
        fill(path)
    assert path.read_text() == "precious"


class Failing(io.FileIO):
    """A file that takes so many bytes, and no more; it writes in small pieces, as the kernel may."""

    room = 0
    failure = OSError(errno.ENOSPC, "No space left on device")

    def write(self, data):
        if self.room <= 0:
            raise self.failure
        written = super().write(memoryview(data)[: min(self.room, 1000)])
        self.room -= written
        return written

    def truncate(self, size=None):
        if size > self.tell() + self.room:
            raise self.failure
        return super().truncate(size)


@pytest.fixture
def disk(monkeypatch):
    """Path.open gives files with so much room."""

    def limit(room):
        def opened(path, mode, buffering):
            file = Failing(path, mode)
            file.room = room
            return file

        monkeypatch.setattr(hdf5.Path, "open", opened)

    return limit


def test_short_writes_are_completed(path, disk, monkeypatch):
    disk(10**9)
    fill(path)
    monkeypatch.undo()
    with h5py.File(path) as file:
        assert np.array_equal(file["group/100000"][()], np.arange(100_000))


def test_running_out_of_room_anywhere_is_the_error_of_the_system(path, disk, monkeypatch):
    """At whichever write it happens, HDF5 itself never fails: nothing is printed, nothing is ignored."""
    ignored = []
    monkeypatch.setattr(sys, "unraisablehook", ignored.append)
    fill(path)
    size = path.stat().st_size
    for room in [0, 1, 100, 1000, 2000, 3000, 5000, 10_000, 500_000, size - 2000, size - 1]:
        path.unlink()
        disk(room)
        with pytest.raises(OSError, match="No space left") as caught:
            fill(path)
        assert caught.value is Failing.failure
        assert not ignored
