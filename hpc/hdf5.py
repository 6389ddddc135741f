"""A new HDF5 file on a disk that may be full.

The HDF5 library does not survive a write that fails: h5py raises RuntimeError where OSError is meant, complains
about every object that is open, and the process may crash when it ends (seen with HDF5 2.0). So HDF5 writes
through a file that never fails it; the first failure is kept, and raised as what it is once HDF5 is done.
This costs nothing: h5py hands over its buffers without a copy.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import h5py


@contextmanager
def new_file(path: Path, newest: str = "v110") -> Iterator[Any]:
    """A new HDF5 file to write into; after, it is on the disk.

    Args:
        path: of the file.
        newest: the version of HDF5 whose format may be needed to read it; what is made here needs 1.10, a copy of
            something may need a later one.

    Raises:
        OSError: it cannot be written (a full disk, for instance), or is there already. What there is of it stays.
    """
    with path.open("x+b", buffering=0) as raw:
        file = _Unfailing(raw)
        with h5py.File(file, "w", libver=("v110", newest)) as hdf5:
            yield hdf5
        if file.failure is not None:
            raise file.failure
        os.fsync(raw.fileno())


class _Unfailing:
    """What h5py asks of a Python file."""

    def __init__(self, raw: IO[bytes]) -> None:
        self._raw = raw
        self.failure: OSError | None = None

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return self._raw.seek(offset, whence)

    def tell(self) -> int:
        return self._raw.tell()

    def read(self, size: int) -> bytes:
        raise NotImplementedError  # h5py asks for it only to know a file by it; it reads with readinto

    def readinto(self, buffer: memoryview) -> int:
        """What was not written reads as zeros, as HDF5's own driver has it."""
        start = self._raw.tell()
        found = os.pread(self._raw.fileno(), len(buffer), start)
        buffer[:] = found + bytes(len(buffer) - len(found))
        return len(buffer)

    def write(self, data: memoryview) -> None:
        left = memoryview(data)
        try:
            while left and self.failure is None:
                left = left[self._raw.write(left) :]  # one call writes 2 GiB at most
        except OSError as error:
            self.failure = error

    def truncate(self, size: int) -> None:
        try:
            if self.failure is None:
                self._raw.truncate(size)
        except OSError as error:
            self.failure = error

    def flush(self) -> None:
        """There is no buffer."""
