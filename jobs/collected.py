"""The records of a sweep in one HDF5 file, which is laid out like the sweep's folder.

/ID/record.h5                       a group: the run's record, copied whole, with its attributes
/ID/config.yaml, status.json,       texts, an element a line, of each run that has them
    attempts.jsonl
/sweep/runs                         a table of all runs, also of those that have no record: columns of one length
/sweep/runs.json, submissions.jsonl texts

What a run's group says beside (as attributes): label, state, error, record ("here", "missing" or "unreadable"), reason;
sha256 and bytes of the record's file.
h5py is imported where it is needed: on a login node every command would wait for it.
"""

import errno
import hashlib
import io
import os
import secrets
import stat
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from hpc.config.folder import CONFIG, RECORD, STATUS, sync_folder
from hpc.errors import RunError
from jobs.attempts import ATTEMPTS
from jobs.states import State
from jobs.sweepfolder import OWN, RUNS, SUBMISSIONS, SweepFolder

MARK: Final = "collected_version"
"""The attribute by which the file is known."""
VERSION: Final = 1
TABLE: Final = "runs"
_TEXTS: Final = (CONFIG, STATUS, ATTEMPTS)
_AT_ONCE: Final = 64
"""So many runs' files are read ahead: each waits for a server on a network file system, and records take memory."""
_NONE: Final = "no record"
_DAMAGED: Final = (OSError, RuntimeError, KeyError, ValueError, TypeError)
"""All of them are how h5py says that a file is damaged."""


@dataclass(frozen=True)
class Part:
    """A run in the file.

    Attributes:
        state: how it is doing.
        record: is it in the file? Else there is none, or it cannot be read.
        reason: what is missing, and why; empty: the run is done, and its record is in the file.
    """

    state: State
    record: Literal["here", "missing", "unreadable"]
    reason: str


@dataclass(frozen=True)
class _Files:
    """What there is of a run: its small files, and its record as it was read (None: there is none)."""

    texts: dict[str, bytes]
    record: bytes | None
    problem: str


def is_collected(path: Path) -> bool:
    """Is it a file that was made here?"""
    import h5py

    try:
        with h5py.File(path, "r", locking=False) as file:
            return MARK in file.attrs
    except _DAMAGED:
        return False


def write(out: Path, folder: SweepFolder, states: Sequence[State]) -> list[Part]:
    """Write the file, at once: whoever reads it sees the old one or the new.

    Args:
        out: the file; one that is there is replaced.
        folder: of the sweep; nothing in it is changed.
        states: of its runs, in their order. They must be older than this call: a run that is said to be done then has
            its last record.

    Returns:
        What is in it of each run.

    Raises:
        RunError: it cannot be written. One that was there is as it was.
    """
    from hpc.hdf5 import new_file

    temporary = out.with_name(f".{out.name}.{secrets.token_hex(4)}.tmp")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        # A copied object stays in the format in which it was written, which may be newer than that of our records.
        with new_file(temporary, "latest") as file:
            parts = _fill(file, folder, states)
        temporary.replace(out)
        sync_folder(out.parent)
    except OSError as error:
        raise RunError(
            f"{out} cannot be written ({error.strerror or error}); make room there, or choose another --out"
        ) from None
    finally:
        with suppress(OSError):  # it has its name, or was never made
            temporary.unlink()
    return parts


def _fill(file: Any, folder: SweepFolder, states: Sequence[State]) -> list[Part]:
    file.attrs[MARK] = VERSION
    file.attrs["folder"] = _text(str(folder.path.absolute()))
    file.attrs["time"] = time.time()
    parts = []
    with ThreadPoolExecutor(_AT_ONCE // 4) as pool:
        for start in range(0, len(states), _AT_ONCE):
            some = states[start : start + _AT_ONCE]
            found = pool.map(lambda state: _read(folder.run_dir(state.id)), some)
            parts += [
                _put(file, folder.run_dir(state.id), state, each) for state, each in zip(some, found, strict=True)
            ]
    own = file.create_group(OWN)
    for name in (RUNS, SUBMISSIONS):
        try:
            _put_lines(own, name, _content(folder.own / name))
        except OSError:  # never submitted
            continue
    _put_table(own.create_group(TABLE), parts)
    return parts


def _read(run_dir: Path) -> _Files:
    texts: dict[str, bytes] = {}
    for name in _TEXTS:
        try:
            texts[name] = _content(run_dir / name)
        except OSError:
            continue
    try:
        return _Files(texts, _content(run_dir / RECORD), "")
    except FileNotFoundError:
        return _Files(texts, None, _NONE)
    except OSError as error:
        return _Files(texts, None, f"{RECORD} cannot be read ({error.strerror or error})")


def _content(path: Path) -> bytes:
    """All of a file. Raises OSError, also for what is no plain file: a pipe would keep us waiting."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    with os.fdopen(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "no plain file", str(path))
        return file.read()


def _put(file: Any, run_dir: Path, state: State, found: _Files) -> Part:
    """One run's group."""
    group, problem, content = file.create_group(state.id), found.problem, found.record or b""
    for name, text in found.texts.items():
        _put_lines(group, name, text)
    if found.record is not None:
        try:
            with _at_rest(run_dir / RECORD, found.record) as (record, content):
                _check(record)
                record.file.copy(record, group, name=RECORD)
        except _DAMAGED as error:
            problem = f"{RECORD} cannot be read ({' '.join(str(error).split())})"
            if RECORD in group:  # what was copied before the copy failed
                del group[RECORD]
    there: Literal["here", "missing", "unreadable"] = (
        "here" if RECORD in group else "missing" if problem == _NONE else "unreadable"
    )
    part = Part(state, there, _reason(state, problem))
    for name in ("label", "error"):
        group.attrs[name] = _text(getattr(state, name))
    group.attrs["state"] = _text(state.kind)
    group.attrs["record"] = _text(part.record)
    group.attrs["reason"] = _text(part.reason)
    group.attrs["sha256"] = _text(hashlib.sha256(content).hexdigest() if content else "")
    group.attrs["bytes"] = len(content)
    return part


@contextmanager
def _at_rest(path: Path, content: bytes) -> Iterator[tuple[Any, bytes]]:
    """A record that nobody writes to, in memory: (open, its bytes).

    A run replaces its record in one step. One that somebody has open for writing in HDF5's mode for a single writer
    and many readers (SWMR) is copied by HDF5 itself, which sees each column as it was at one moment; where the writer
    has not chosen that mode, HDF5 refuses.
    """
    import h5py

    if content[8:9] >= b"\x03" and content[11:12] != b"\0":  # since HDF5 1.10 files say that they are being written
        memory = io.BytesIO()
        with (
            h5py.File(path, "r", libver="latest", swmr=True, locking=False) as live,
            h5py.File(memory, "w", libver=("v110", "latest")) as still,
        ):
            live.copy(live["/"], still, name=RECORD)
            still.flush()
            yield still[RECORD], memory.getvalue()
        return
    with h5py.File(io.BytesIO(content), "r") as still:
        yield still["/"], content


def _check(record: Any) -> None:
    """Read all there is: a copy takes over damaged columns as they are. Raises one of _DAMAGED."""
    import h5py

    if "schema_version" not in record.attrs:
        raise ValueError("an HDF5 file of something else, without the attribute schema_version")

    def look(_: str, node: Any) -> None:
        list(node.attrs.values())
        if isinstance(node, h5py.Dataset):
            node[()]

    look("/", record)
    record.visititems(look)


def _reason(state: State, problem: str) -> str:
    """What is missing of a run, and why."""
    why = [problem] if problem else []
    if state.kind != "done" and not problem:
        why = [f"as far as epoch {state.epoch}" + (f" of {state.epochs}" if state.epochs else "")]
    return ": ".join([*why, state.error] if state.error else why)


def _put_lines(group: Any, name: str, content: bytes) -> None:
    """A text file, an element a line."""
    import numpy as np

    lines = content.removesuffix(b"\n").split(b"\n")
    group.create_dataset(name, data=np.array(lines, "S"), compression="gzip", fletcher32=True)


def _put_table(group: Any, parts: Sequence[Part]) -> None:
    """All runs, in their order."""
    import numpy as np

    states = [part.state for part in parts]
    texts = {"id": [state.id for state in states], "label": [state.label for state in states]}
    texts |= {"state": [state.kind for state in states], "reason": [part.reason for part in parts]}
    texts |= {"record": [part.record for part in parts]}
    numbers = {name: [getattr(state, name) for state in states] for name in ("epoch", "epochs", "starts", "stops")}
    columns = {name: np.array([text.encode() for text in column], "S") for name, column in texts.items()}
    columns |= {name: np.array(column, np.int64) for name, column in numbers.items()}
    for name, column in columns.items():
        group.create_dataset(name, data=column, fletcher32=len(column) > 0)


def _text(text: str) -> Any:
    """As the records have it: of fixed length, in UTF-8."""
    import numpy as np

    return np.bytes_(text.encode())
