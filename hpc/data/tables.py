"""Tables of numbers from csv and npz files, verified value by value.

csv: comma-separated, UTF-8. The first line is a header when none of its fields is a number; without one,
columns are named 0, 1, ... npz: the array ``x`` holds the inputs (N, F), the array ``y`` (or those that
``data.target`` names) the targets, (N,) or (N, D). Arrays of Python objects are refused: unpickling a
stranger's file would run a stranger's code.
"""

import csv
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from hpc.errors import ConfigError, RunError

Floats = npt.NDArray[np.float32]
ROWS = 65536  # csv rows converted at once: bounds the memory that their strings take


@dataclass(frozen=True, eq=False)
class Table:
    """The rows of one file.

    Attributes:
        path: the file.
        names: names of the input columns.
        inputs: float32 (N, F), finite.
        target_names: names of the target columns.
        targets: (N, D): float32 and finite where numbers were asked for, else the values as they are.
    """

    path: Path
    names: tuple[str, ...]
    inputs: Floats
    target_names: tuple[str, ...]
    targets: npt.NDArray[Any]


def read_table(path: Path, targets: tuple[str, ...] | None, *, numeric: bool) -> Table:
    """One csv or npz file.

    Args:
        path: the file; its ending says which of the two it is.
        targets: names of the target columns (npz: arrays); None: the last column (npz: ``y``).
        numeric: whether targets must be numbers.

    Raises:
        ConfigError: no column has the name of a target.
        RunError: the file is unreadable, or has a value that is no finite number where one is needed.
    """
    table = (_read_npz if path.suffix.lower() == ".npz" else _read_csv)(path, targets, numeric)
    if not table.inputs.size:
        what = "no rows" if not len(table.inputs) else f"no column besides the target {table.target_names[0]!r}"
        raise RunError(f"{path}: {what}; csv values are separated by commas, one row a line")
    return table


# --- csv -----------------------------------------------------------------------------------------------


def _read_csv(path: Path, targets: tuple[str, ...] | None, numeric: bool) -> Table:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            return _parse_csv(path, csv.reader(file), targets, numeric)
    except (csv.Error, UnicodeDecodeError) as error:
        raise RunError(f"{path}: not a readable csv file ({error}); save it as csv in UTF-8") from error


def _parse_csv(path: Path, reader: Any, targets: tuple[str, ...] | None, numeric: bool) -> Table:
    lines: Iterator[tuple[int, list[str]]] = ((reader.line_num, row) for row in reader if row)
    first = next(lines, None)
    if first is None:
        raise RunError(f"{path}: empty; give it one row a line")
    header = not any(map(_is_number, first[1]))
    names = tuple(name.strip() for name in first[1]) if header else tuple(map(str, range(len(first[1]))))
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise RunError(f"{path}: two columns are named {repeated[0]!r}; rename one")
    wanted = targets or names[-1:]
    if unknown := [name for name in wanted if name not in names]:
        raise ConfigError(f"data.target: {path} has no column {unknown[0]!r}; its columns are {', '.join(names)}")
    ins = [i for i, name in enumerate(names) if name not in wanted]
    outs = [names.index(name) for name in wanted]
    inputs: list[Floats] = [np.empty((0, len(ins)), np.float32)]
    values: list[npt.NDArray[Any]] = []
    if not header:
        lines = chain([first], lines)
    while block := list(islice(lines, ROWS)):
        cells = _cells(path, block, names)
        numbers = [number for number, _ in block]
        inputs.append(_floats(path, cells[:, ins], numbers, [names[i] for i in ins]))
        values.append(_floats(path, cells[:, outs], numbers, wanted) if numeric else cells[:, outs])
    columns = np.concatenate(values) if values else np.empty((0, len(outs)), np.float32)
    return Table(path, tuple(names[i] for i in ins), np.concatenate(inputs), wanted, columns)


def _cells(path: Path, block: list[tuple[int, list[str]]], names: tuple[str, ...]) -> npt.NDArray[np.str_]:
    for number, row in block:
        if len(row) != len(names):
            raise RunError(f"{path}: line {number} has {len(row)} values, but the first line has {len(names)}; mend it")
    return np.char.strip(np.array([row for _, row in block], dtype=np.str_))


def _floats(
    path: Path, cells: npt.NDArray[np.str_], lines: Sequence[int], names: Sequence[str]
) -> npt.NDArray[np.float32]:
    """Cells as float32; a cell that is no finite number is named by line and column."""
    try:
        values = to_float32(cells)
        bad = ~np.isfinite(values)
    except ValueError:  # says which value, but not where: look for it
        bad = ~np.vectorize(_is_finite, otypes=[bool])(cells)
    if bad.any():
        row, column = np.argwhere(bad)[0]
        what = f"{str(cells[row, column])!r}" if cells[row, column] else "a missing value"
        raise RunError(
            f"{path}: line {lines[row]}, column {names[column]!r}: {what} where a finite number is needed; "
            f"fill it in, or encode or remove the column"
        )
    return values


def to_float32(values: npt.NDArray[Any]) -> Floats:
    """Any numbers as float32; those beyond its range become infinite (and are refused as such)."""
    with np.errstate(over="ignore"):
        return values.astype(np.float64).astype(np.float32)


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _is_finite(cell: str) -> bool:
    return _is_number(cell) and bool(np.isfinite(to_float32(np.array(cell))))


# --- npz -----------------------------------------------------------------------------------------------


def _read_npz(path: Path, targets: tuple[str, ...] | None, numeric: bool) -> Table:
    wanted = targets or ("y",)
    arrays = _arrays(path, ("x", *wanted))
    inputs = arrays["x"]
    if inputs.ndim != 2:
        raise RunError(f"{path}: x is {inputs.shape}, but (rows, columns) is expected; reshape it")
    columns, names = [], []
    for name in wanted:
        target = arrays[name]
        if target.ndim not in {1, 2} or len(target) != len(inputs):
            raise RunError(
                f"{path}: {name} is {target.shape}, but x has {len(inputs)} rows: "
                f"({len(inputs)},) or ({len(inputs)}, targets) is expected"
            )
        columns.append(target.reshape(len(target), -1))
        width = columns[-1].shape[1]
        names += [name] if width == 1 else [f"{name}[{i}]" for i in range(width)]
    values = np.concatenate(columns, axis=1)
    return Table(
        path,
        tuple(map(str, range(inputs.shape[1]))),
        _finite(path, "x", inputs),
        tuple(names),
        _finite(path, ", ".join(wanted), values) if numeric else values,
    )


def _arrays(path: Path, wanted: tuple[str, ...]) -> dict[str, npt.NDArray[Any]]:
    try:
        with path.open("rb") as file, zipfile.ZipFile(file):
            pass  # np.load would try npy, then pickle, on anything else
        with np.load(path, allow_pickle=False) as archive:
            if lacking := [name for name in wanted if name not in archive.files]:
                message = f"{path} has no array {lacking[0]!r}; its arrays are {', '.join(archive.files) or 'none'}"
                if lacking[0] in {"x", "y"}:
                    raise RunError(f"{message}. Save it with numpy.savez(file, x=inputs, y=targets)")
                raise ConfigError(f"data.target: {message}")
            return {name: archive[name] for name in wanted}
    except (zipfile.BadZipFile, zlib.error, OSError, EOFError) as error:
        raise RunError(f"{path}: not a readable npz file ({error}); save it with numpy.savez") from error
    except ValueError as error:  # numpy's answer to Python objects inside
        raise RunError(
            f"{path}: holds Python objects, not plain arrays ({error}); save arrays of numbers with numpy.savez"
        ) from error


def _finite(path: Path, name: str, values: npt.NDArray[Any]) -> Floats:
    if values.dtype.kind not in "biuf":
        raise RunError(f"{path}: {name} is of type {values.dtype}, but numbers are needed; convert it")
    floats = to_float32(values)
    bad = ~np.isfinite(floats)
    if bad.any():
        row, column = np.argwhere(bad)[0]
        raise RunError(
            f"{path}: {name}[{row}, {column}] is {values[row, column]}, but a finite float32 is needed; "
            f"fill it in or remove the row"
        )
    return floats
