"""One record file in, plain arrays out: everything that is checked about a file is checked here."""

from __future__ import annotations

import hashlib
import io
import json
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
import yaml

from analysis.schema import ANSWER, ATTRIBUTES, DTYPES, OPTIONAL, REQUIRED, STATES, VERSIONS, RecordError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from analysis.schema import Kind

Columns = dict[str, np.ndarray]


@dataclass(frozen=True)
class Run:
    """What one record holds, checked, as dictionaries of equal-length arrays.

    Attributes:
        file: where it is; of a record in a collected file: that file, with the record's place in it as if that were
            a folder.
        sha256: of the record's file, as the run has left it.
        size: of that file in bytes.
        status: state and error that the run's status file names; empty where there is none.
    """

    file: Path
    sha256: str
    size: int
    attributes: dict[str, Any]
    config: dict[str, Any]
    versions: dict[str, Any]
    groups: dict[str, Columns] = field(default_factory=dict)
    status: tuple[str, str] = ("", "")


def read(file: Path) -> Run:
    """Reads and checks one record file.

    Args:
        file: A record in HDF5.

    Raises:
        RecordError: If the file is missing, damaged, foreign, or of a version that this reader does not know.
    """
    with refused(file):
        # Read at once and opened in memory: the hash is of these very bytes, and no lock is taken, which
        # could stop a running job, and which some cluster file systems refuse.
        content = file.read_bytes()
        with h5py.File(io.BytesIO(content), "r") as handle:
            return taken(file, handle, hashlib.sha256(content).hexdigest(), len(content))


def taken(file: Path, handle: h5py.Group, sha256: str, size: int) -> Run:
    """Reads and checks what is a record's file, or a copy of one in a group of another file.

    Args:
        file: Where it is, for messages.
        handle: The record.
        sha256: Of the record's file.
        size: Of that file, in bytes.

    Raises:
        RecordError: If it is foreign, incomplete, or of a version that this reader does not know.
    """
    attributes = _attributes(file, handle)
    return Run(
        file=file,
        sha256=sha256,
        size=size,
        attributes=attributes,
        config=_mapping(file, "config", attributes["config"]),
        versions=_mapping(file, "versions", attributes["versions"]),
        groups=_groups(file, handle),
    )


@contextmanager
def refused(file: Path) -> Iterator[None]:
    """Turns whatever h5py says of a damaged file into a RecordError."""
    try:
        yield
    except RecordError:
        raise
    except (OSError, RuntimeError, KeyError, ValueError, TypeError) as error:  # all are how h5py says "damaged"
        reason = " ".join(str(error).split())
        raise RecordError(
            file,
            f"not readable as HDF5 ({reason})",
            "a complete record written by a run",
            "copy it again from where the run was, or leave this run out",
        ) from error


def _attributes(file: Path, handle: h5py.Group) -> dict[str, Any]:
    """A record's attributes as Python values; the version is looked at before all others."""
    found = {name: _plain(value) for name, value in handle.attrs.items()}
    if "schema_version" not in found:
        raise RecordError(
            file,
            "an HDF5 file without the attribute schema_version",
            "a record written by a run",
            "this file is something else; take it out of the folder",
        )
    if found["schema_version"] not in VERSIONS:
        raise RecordError(
            file,
            f"schema_version {found['schema_version']!r}",
            ", ".join(map(str, VERSIONS)),
            "read it with the version of this package that belongs to the one that wrote it",
        )
    for name, kind in ATTRIBUTES.items():
        if not isinstance(found.get(name), kind):
            got = f"{type(found[name]).__name__} {found[name]!r}" if name in found else "nothing"
            raise _broken(file, f"attribute {name}: {got}", f"a value of type {kind.__name__}")
    if found["state"] not in STATES:
        raise _broken(file, f"state {found['state']!r}", ", ".join(STATES))
    answer = found.get(ANSWER, 0)
    if not isinstance(answer, int) or answer < 0:
        raise _broken(file, f"attribute {ANSWER}: {answer!r}", "the number of an epoch, or 0")
    return {**{name: found[name] for name in ATTRIBUTES}, ANSWER: answer}


def _plain(value: Any) -> Any:
    """A numpy scalar or bytes, as h5py gives them, as an ordinary Python value."""
    if isinstance(value, bytes):
        return value.decode("utf-8", errors="replace")
    return value.item() if isinstance(value, np.generic) else value


def _mapping(file: Path, name: str, text: str) -> dict[str, Any]:
    """The mapping that an attribute spells out in YAML or JSON."""
    try:
        value = json.loads(text) if name == "versions" else yaml.safe_load(text)
    except (ValueError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise _broken(file, f"attribute {name} does not parse ({reason})", "YAML or JSON text") from error
    if not isinstance(value, dict):
        raise _broken(file, f"attribute {name} holds {type(value).__name__}", "a mapping")
    return value


def _groups(file: Path, handle: h5py.Group) -> dict[str, Columns]:
    """All groups of a file that the schema names."""
    groups = {name: _columns(file, handle, name, kinds) for name, kinds in REQUIRED.items()}
    groups |= {name: _columns(file, handle, name, kinds) for name, kinds in OPTIONAL.items() if name in handle}
    epoch = groups["epochs"]["epoch"]
    if np.any(np.diff(epoch) <= 0) or np.any(epoch < 1):
        raise _broken(file, "/epochs/epoch does not increase from row to row", "each epoch once, from 1")
    rows = len(epoch)
    # A job that was killed between two groups leaves the later one a row short; more rows than epochs are
    # rows of nothing.
    if len(groups["profile"]["data"]) > rows:
        raise _broken(file, f"/profile has more rows than the {rows} of /epochs", "one row an epoch")
    groups["profile"]["epoch"] = epoch[: len(groups["profile"]["data"])]
    if "structure" in handle:
        groups["structure"] = _structure(file, handle, epoch)
        if "phase" in handle["structure"]:
            groups["pruning"] = _pruning(file, handle, epoch)
    if "alrao" in handle:
        groups["alrao"], groups["heads_and_units"], groups["rates"] = _alrao(file, handle)
    return groups


def _columns(file: Path, parent: h5py.Group, group: str, kinds: dict[str, Kind]) -> Columns:
    """A group's columns, all of the same length and of the type that frames hold."""
    wanted = "the columns " + ", ".join(kinds)
    if not isinstance(parent.get(group), h5py.Group):
        raise _broken(file, f"no group /{group}", wanted)
    columns = {name: _array(file, parent, f"{group}/{name}", kind, 1) for name, kind in kinds.items()}
    lengths = {name: len(column) for name, column in columns.items()}
    if len(set(lengths.values())) > 1:
        got = ", ".join(f"{name} {length}" for name, length in lengths.items())
        raise _broken(file, f"/{group} has columns of unequal length ({got})", "as many rows in each")
    return columns


def _array(file: Path, parent: h5py.Group, name: str, kind: Kind, dimensions: int) -> np.ndarray:
    """One dataset, checked for being there, its number of dimensions and its type."""
    node = parent.get(name)
    allowed = f"a dataset of {dimensions} dimension{'s' * (dimensions > 1)} holding {kind}s"
    if not isinstance(node, h5py.Dataset):
        raise _broken(file, f"no dataset /{name}", allowed)
    kinds, dtype = DTYPES[kind]
    if node.dtype.kind not in kinds or node.ndim != dimensions:
        raise _broken(file, f"/{name} of shape {node.shape} and type {node.dtype}", allowed)
    return np.asarray(node[()]).astype(dtype)


def _structure(file: Path, handle: h5py.Group, epoch: np.ndarray) -> Columns:
    """The widths, one row for each epoch and layer."""
    widths = _array(file, handle, "structure/widths", "integer", 2)
    layers = _texts(handle, "structure/layers")
    rows, columns = widths.shape
    if columns != len(layers) or rows > len(epoch):
        got = f"/structure/widths of shape {widths.shape} with {len(layers)} layers and {len(epoch)} epochs"
        raise _broken(file, got, "[epochs, layers] and one name for each layer")
    return {
        "epoch": np.repeat(epoch[:rows], columns),
        "layer": np.tile(layers, rows),
        "width": widths.ravel(),
    }


def _pruning(file: Path, handle: h5py.Group, epoch: np.ndarray) -> Columns:
    """Beside the widths: the phase, the digest of all that was cut, and how many layers were held at one unit."""
    floor = _array(file, handle, "structure/floor", "integer", 1)
    texts = {name: _texts(handle, f"structure/{name}") for name in ("phase", "digest")}
    rows = {"floor": len(floor), **{name: len(column) for name, column in texts.items()}}
    if len(set(rows.values())) > 1 or len(floor) > len(epoch):
        got = ", ".join(f"/structure/{name} has {count} rows" for name, count in rows.items())
        raise _broken(file, f"{got}, and there are {len(epoch)} epochs", "as many rows in each, one an epoch")
    return {"epoch": epoch[: len(floor)], **texts, "floor": floor}


def _texts(handle: h5py.Group, name: str) -> np.ndarray:
    """A column of texts; empty where there is none."""
    node = handle.get(name)
    values = [_plain(text) for text in node[()]] if isinstance(node, h5py.Dataset) and node.ndim == 1 else []
    return np.array(values, dtype=object)


def _alrao(file: Path, handle: h5py.Group) -> tuple[Columns, Columns, Columns]:
    """The posterior over output layers, what is lost, and the rates of the units, one value a row."""
    posterior = _array(file, handle, "alrao/posterior", "float", 2)
    columns = {
        name: _array(file, handle, f"alrao/{name}", "integer", 1) for name in ("step", "heads_lost", "units_lost")
    }
    records, heads = posterior.shape
    for name, column in columns.items():
        if len(column) != records:
            got = f"/alrao/posterior has {records} rows, /alrao/{name} {len(column)}"
            raise _broken(file, got, "as many rows in each")
    rates: dict[str, np.ndarray] = {}

    def visit(name: str, node: Any) -> None:
        if isinstance(node, h5py.Dataset):
            rates[name] = _array(file, handle, f"alrao/rates/{name}", "float", 1)

    if isinstance(handle.get("alrao/rates"), h5py.Group):
        handle["alrao/rates"].visititems(visit)
    sizes = [len(rate) for rate in rates.values()]
    heads_of_rows = np.tile(np.arange(heads, dtype="int64"), records)
    return (
        {"step": np.repeat(columns["step"], heads), "head": heads_of_rows, "probability": posterior.ravel()},
        columns,
        {
            "layer": np.repeat(np.array(list(rates), dtype=object), sizes),
            "unit": np.concatenate([np.arange(size) for size in sizes] or [np.zeros(0, dtype="int64")]),
            "rate": np.concatenate([*rates.values()] or [np.zeros(0)]),
        },
    )


def _broken(file: Path, got: str, allowed: str) -> RecordError:
    """The error of a record that says it is ours and yet does not hold what it must."""
    return RecordError(file, got, allowed, "the file was cut off or changed: copy it again, or run again")
