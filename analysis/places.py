"""Where runs are: each in a folder of its own, or many together in one collected file."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

import h5py

from analysis.read import read, refused, taken
from analysis.schema import COLLECTED, COLLECTED_VERSIONS, RECORD, STATUS, RecordError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from analysis.read import Run


class Place(Protocol):
    """Where one run is."""

    @property
    def file(self) -> Path:
        """Its record; in a collected file the record's place in it, as if that file were a folder."""

    def read(self) -> Run:
        """What it holds. Raises RecordError where that cannot be read."""


@dataclass(frozen=True)
class InFolder:
    """A run in a folder of its own."""

    file: Path

    def read(self) -> Run:
        """What the record holds, and what the status file says. Raises RecordError."""
        if not self.file.exists():
            raise _no_record(self.file, self._status())
        return replace(read(self.file), status=self._status())

    def _status(self) -> tuple[str, str]:
        try:
            return said((self.file.parent / STATUS).read_bytes())
        except OSError:
            return "", ""


@dataclass(frozen=True)
class InCollection:
    """A run in a collected file."""

    collection: Path
    name: str

    @property
    def file(self) -> Path:
        """The record's place, as if the collected file were a folder."""
        return self.collection / self.name / RECORD

    def read(self) -> Run:
        """What the record holds, and what the status file said when it was collected. Raises RecordError."""
        with refused(self.file), opened(self.collection) as handle:
            group = handle[self.name]
            status = said(_text(group, STATUS))
            if RECORD in group:
                run = taken(self.file, group[RECORD], str(_plain(group, "sha256")), int(_plain(group, "bytes")))
                return replace(run, status=status)
            if _plain(group, "record") == "missing":
                raise _no_record(self.file, status)
            raise RecordError(
                self.file,
                f"left out when it was collected: {_plain(group, 'reason')}",
                "a complete record written by a run",
                "collect the sweep again once that is mended, or leave this run out",
            )


def find(path: Path) -> Iterator[Place]:
    """The runs at a path, sorted as a person would, run2 before run10.

    Args:
        path: A record, a collected file, a run folder, or a folder that holds run folders at any depth.

    Raises:
        RecordError: If there is none.
    """
    if path.is_file():
        yield from _collected(path) if is_collection(path) else [InFolder(path)]
        return
    # A run that ended before its first record has left its config and status: it must not go unseen.
    begun = {status.parent for status in path.rglob(STATUS) if (status.parent / "config.yaml").exists()}
    folders = {file.parent for file in path.rglob(RECORD)} | begun
    if not folders:
        raise RecordError(
            path,
            "a folder without any record" if path.is_dir() else "no such file or folder",
            f"a run folder, a {RECORD}, a folder that holds run folders, or a collected file",
            "give the run_dir of a run, the folder of a sweep, or what structlearn collect has written",
        )
    yield from (InFolder(folder / RECORD) for folder in sorted(folders, key=natural))


def is_collection(path: Path) -> bool:
    """Is it a file that holds the records of many runs?"""
    try:
        with opened(path) as handle:
            return COLLECTED in handle.attrs
    except (OSError, RuntimeError, KeyError):  # what is damaged, reading it says better
        return False


def opened(path: Path) -> Any:
    """A collected file, to read. No lock is taken: some file systems of clusters refuse them."""
    return h5py.File(path, "r", locking=False)


def said(status: bytes) -> tuple[str, str]:
    """State and error that the content of a status file names; empty where there is none."""
    try:
        values = json.loads(status)
    except ValueError:
        values = None
    if not isinstance(values, dict):
        return "", ""
    return str(values.get("state") or ""), " ".join(str(values.get("error") or "").split())


def natural(value: object) -> list[tuple[int, int, str]]:
    """A sorting key that takes digits in a text as numbers."""
    parts = re.split(r"(\d+)", str(value))
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in parts if part]


def _collected(path: Path) -> list[Place]:
    """The runs of a collected file; as of a folder, not those that never began."""
    with refused(path), opened(path) as handle:
        version = handle.attrs[COLLECTED]
        if version not in COLLECTED_VERSIONS:
            raise RecordError(
                path,
                f"{COLLECTED} {version}",
                ", ".join(map(str, COLLECTED_VERSIONS)),
                "read it with the version of this package that belongs to the one that wrote it",
            )
        runs = [name for name in handle if _is_run(handle, name)]
        names = [name for name in runs if _begun(handle, name)]
    if not names:
        raise RecordError(
            path,
            f"a collected file without any record; its table names {len(runs)} runs",
            "at least one run that has begun",
            "collect the sweep again when it has been made",
        )
    return [InCollection(path, name) for name in sorted(names, key=natural)]


def _is_run(handle: h5py.File, name: str) -> bool:
    """Does a group belong to a run, and not to the sweep? One that is damaged does: it must not go unseen."""
    try:
        return "record" in handle[name].attrs
    except (OSError, RuntimeError, KeyError):
        return True


def _begun(handle: h5py.File, name: str) -> bool:
    """Has a run left anything?"""
    try:
        return _plain(handle[name], "record") != "missing" or STATUS in handle[name]
    except (OSError, RuntimeError, KeyError):
        return True


def _no_record(file: Path, status: tuple[str, str]) -> RecordError:
    """The error of a run that has ended before its first record."""
    state, error = status
    words = f"status.json says: {state or 'nothing'}" + (f" ({error})" if error else "")
    return RecordError(file, f"no record; {words}", "a finished epoch or more", "read the run's logs")


def _text(group: h5py.Group, name: str) -> bytes:
    """A text file that was collected; empty where there was none."""
    return b"\n".join(group[name][()].tolist()) if name in group else b""


def _plain(group: h5py.Group, name: str) -> Any:
    """An attribute as an ordinary Python value."""
    value = group.attrs[name]
    return value.decode("utf-8", errors="replace") if isinstance(value, bytes) else value
