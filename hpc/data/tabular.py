"""Tables as data sets: classification into the distinct values of a target, or regression on targets.

Targets of a regression keep the values of the file: losses are in the units of the target.
"""

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from hpc.config.data import Tabular
from hpc.data.dataset import Part, Source
from hpc.data.tables import Table, read_table
from hpc.errors import RunError


def read(config: Tabular, files: Mapping[str, Path]) -> Source:
    """A table, or one each for training, (validation) and test.

    Inputs float32 (N, F); targets int64 (N,) for classification: places in the sorted distinct values of the
    training target (numbers by size; 1 and 1.0 are one class), or float32 (N, D) for regression.

    Args:
        config: the section ``data``.
        files: as ``hpc.config.files.locate`` returns them.

    Raises:
        ConfigError: there is no such target column.
        RunError: a file is not what it should be, or the files do not go together.
    """
    targets = (config.target,) if isinstance(config.target, str) else config.target
    regression = config.task == "regression"
    tables = {part: read_table(path, targets, numeric=regression) for part, path in files.items()}
    main = tables["train" if "train" in tables else "all"]
    for table in tables.values():
        _same_columns(main, table)
    if regression:
        labels = main.target_names
        encoded = {part: torch.from_numpy(np.ascontiguousarray(t.targets)) for part, t in tables.items()}
    else:
        labels = _classes(main)
        encoded = {part: _encode(table, labels, main.path) for part, table in tables.items()}
    parts = {part: Part(torch.from_numpy(table.inputs), encoded[part]) for part, table in tables.items()}
    return Source(parts["train" if "train" in parts else "all"], parts.get("valid"), parts.get("test"), labels)


def _same_columns(one: Table, other: Table) -> None:
    ours, theirs = one.names + one.target_names, other.names + other.target_names
    if ours != theirs:
        raise RunError(
            f"{other.path}: its columns are {', '.join(theirs)}, but those of {one.path} are "
            f"{', '.join(ours)}; give both files the same columns in the same order"
        )


def _classes(table: Table) -> tuple[str, ...]:
    """The distinct values of the target as text, in order: numbers by size, else by the alphabet."""
    found = set(_distinct(table)[0])
    numbers = [number for name in found if (number := _number(name)) is not None]
    target = f"{table.path}: the target {table.target_names[0]!r}"
    if len(found) < 2:
        raise RunError(f"{target} is {found.pop()!r} in every row; name a column with two classes or more")
    if len(found) > len(table.inputs) / 2 and any(number % 1 for number in numbers):
        raise RunError(
            f"{target} has {len(found)} distinct values in {len(table.inputs)} rows, such as {found.pop()}: "
            f"these are no classes; set data.task: regression"
        )
    return tuple(sorted(found, key=float if len(numbers) == len(found) else None))


def _encode(table: Table, classes: tuple[str, ...], training: Path) -> Tensor:
    names, places = _distinct(table)
    if unknown := [name for name in names if name not in classes]:
        raise RunError(
            f"{table.path}: class {unknown[0]!r} does not occur in {training}; "
            f"remove its rows, or add some of them to the training file"
        )
    number = {name: i for i, name in enumerate(classes)}
    return torch.from_numpy(np.array([number[name] for name in names], dtype=np.int64)[places])


def _distinct(table: Table) -> tuple[list[str], npt.NDArray[np.intp]]:
    """The target's distinct values as text (one text may come twice), and which of them each row has."""
    name, column = table.target_names[0], table.targets[:, 0]
    if len(table.target_names) > 1:
        raise RunError(
            f"{table.path}: a classification has one target, but {len(table.target_names)} columns were "
            f"found ({', '.join(table.target_names)}); give the classes as one column, "
            f"or set data.task: regression"
        )
    if column.dtype.kind not in "biufU":
        raise RunError(f"{table.path}: {name} is of type {column.dtype}; classes are numbers or text: convert it")
    values, places = np.unique(column, return_inverse=True)
    texts = [_text(str(value)) for value in values]
    if "" in texts:
        row = 1 + int(np.argmax(places == texts.index("")))
        raise RunError(f"{table.path}: the target {name!r} is missing in row {row}; fill it in or remove the row")
    return texts, places


def _text(value: str) -> str:
    """A class's name: numbers in their shortest form, so that 1 and 1.0 are one class; "" if missing."""
    number = _number(value)
    if number is None:
        return value.strip()
    if not math.isfinite(number):
        return ""
    return str(int(number)) if number.is_integer() else repr(number)


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
