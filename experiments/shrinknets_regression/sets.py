"""The data: scikit-learn's embedded sets as regressions on several targets at once, and tables from files."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from sklearn import datasets
from torch import Tensor

from hpc.data.splits import hold_out
from hpc.data.tables import read_table
from hpc.seeding import generator

Array = npt.NDArray[Any]
HELD_OUT = 0.2  # of all rows, for validation; and as many for the test


class Rows(NamedTuple):
    """A set as it comes: inputs [rows, columns] and targets, floats [rows, targets] or classes [rows]."""

    inputs: Array
    targets: Array
    alike: bool = False
    """Have all columns one unit, as pixels do? Then they keep one scale: a pixel that is hardly ever set has little
    variance, and scaled by itself it would be huge where it is set."""


class Part(NamedTuple):
    """Rows that are fitted, or that a fit is judged by."""

    inputs: Tensor
    """[rows, columns]: on the training part each has mean 0, and variance 1 (those that are alike: on average)."""
    targets: Tensor
    """[rows, targets], scaled as the inputs are; or int64 [rows]."""


class Split(NamedTuple):
    """One seed's parts of a set."""

    train: Part
    valid: Part
    test: Part


def digits_halves() -> Rows:
    """The 32 pixels of a digit's lower half, from those of its upper half."""
    pixels = datasets.load_digits().data
    return Rows(pixels[:, :32], pixels[:, 32:], alike=True)


def breast_cancer_worst() -> Rows:
    """The worst values of ten measures of a tumour's cells, from their means and standard errors."""
    values = datasets.load_breast_cancer().data
    return Rows(values[:, :20], values[:, 20:])


def diabetes_serum() -> Rows:
    """Six measures of blood serum and the disease's progress, from age, sex, bmi and blood pressure.

    And from the products of any two of these, and the squares of all but the sex, which has two values.
    """
    found = datasets.load_diabetes()
    values = found.data[:, :4] / found.data[:, :4].std(0)
    pairs = [(i, j) for i in range(4) for j in range(i, 4) if (i, j) != (1, 1)]
    products = [values[:, i] * values[:, j] for i, j in pairs]
    return Rows(np.column_stack([values, *products]), np.column_stack([found.data[:, 4:], found.target]))


def classes(load: Any, *, alike: bool = False) -> Rows:
    found = load()
    return Rows(found.data, found.target.astype(np.int64), alike)


EMBEDDED = {
    "digits_halves": digits_halves,
    "breast_cancer_worst": breast_cancer_worst,
    "diabetes_serum": diabetes_serum,
    "digits": lambda: classes(datasets.load_digits, alike=True),
    "breast_cancer": lambda: classes(datasets.load_breast_cancer),
    "wine": lambda: classes(datasets.load_wine),
}


def read(config: dict[str, Any]) -> Rows:
    """A set by its section of the settings.

    Either `embedded`, a key of `EMBEDDED`; or `file`, an npz file with arrays x and y, with `task` (linear or logistic)
    and `alike` (have all columns one unit?).
    """
    if "embedded" in config:
        return EMBEDDED[config["embedded"]]()
    table = read_table(Path(config["file"]), None, numeric=config["task"] == "linear")
    targets = table.targets
    if config["task"] == "logistic":
        targets = np.unique(targets[:, 0], return_inverse=True)[1].astype(np.int64)
    return Rows(table.inputs, targets, config["alike"])


def split(rows: Rows, seed: int) -> Split:
    """Three parts, drawn from the seed; classes keep their shares.

    A column that is the same in all training rows says nothing: it becomes zeros, and is dead for every method.
    """
    strata = rows.targets if rows.targets.ndim == 1 else np.zeros(len(rows.targets), np.int64)
    count = round(HELD_OUT * len(strata))
    kept, test = hold_out(strata, count, generator(seed, "split", 0))
    train, valid = hold_out(strata[kept], count, generator(seed, "split", 1))
    places = kept[train], kept[valid], test
    inputs = scaled(rows.inputs, places[0], alike=rows.alike)
    targets = torch.from_numpy(rows.targets)
    if rows.targets.ndim > 1:
        targets = scaled(rows.targets, places[0], alike=rows.alike)
    return Split(*(Part(inputs[place], targets[place]) for place in places))


def scaled(values: Array, train: Array, *, alike: bool) -> Tensor:
    """Float32, with mean 0 and variance 1 over the rows `train`; columns that are alike have it on average."""
    part = values[train].astype(np.float64)
    variance = part.var(0)
    if alike:
        variance = np.full_like(variance, variance.mean())
    found = (values - part.mean(0)) / np.sqrt(np.where(variance > 0, variance, np.inf))
    return torch.from_numpy(found.astype(np.float32))
