"""What a learning curve is made of: which runs are averaged, and how each line looks."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib import colormaps
from matplotlib.colors import LogNorm, Normalize, to_hex

from analysis.groups import diverged, finished, keys, ordered, title, value_text
from analysis.style import GREY, Look, look

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd

FEW = 8
"""Up to so many settings each have a line of their own look; of more, the lines are coloured by one key."""


@dataclass(frozen=True)
class Curve:
    """One line: a run, or the mean of several, with the lowest and highest of them at each epoch."""

    epoch: np.ndarray
    middle: np.ndarray
    low: np.ndarray
    high: np.ndarray
    runs: int
    failed: bool


@dataclass(frozen=True)
class Looks:
    """The look of each setting, and what the legend says about it.

    Attributes:
        of: Look by group.
        legend: Label and look of each entry.
        heading: What the entries are values of; empty if they say so themselves.
        scale: Lowest and highest value, if colours stand for a number.
        log: Whether that scale is logarithmic.
    """

    of: dict[str, Look]
    legend: list[tuple[str, Look]]
    heading: str = ""
    scale: tuple[float, float] | None = None
    log: bool = False

    @property
    def norm(self) -> Normalize:
        """The scale from numbers to colours."""
        low, high = self.scale or (0.0, 1.0)
        return LogNorm(low, high) if self.log else Normalize(low, high)


def averaged(members: pd.DataFrame) -> list[str]:
    """The runs of a setting that are averaged: the finished ones, if there are two or more."""
    whole = members.loc[finished(members), "run"].tolist()
    return whole if len(whole) > 1 else []


def curves(epochs: pd.DataFrame, members: pd.DataFrame, metric: str) -> list[Curve]:
    """The lines of one setting: the mean of its finished runs first, then each other run alone.

    A mean goes as far as all of its runs go; otherwise it would jump where one ends.
    """
    together = averaged(members)
    lines = [_mean(epochs, together, metric)] if together else []
    broken = (members["state"] == "failed") | diverged(members)
    for run, failed in zip(members["run"], broken, strict=True):
        if run not in together:
            own = epochs[epochs["run"] == run]
            values = own[metric].to_numpy(dtype="float64")
            real = np.isfinite(values)
            epoch, values = own["epoch"].to_numpy()[real], values[real]
            lines.append(Curve(epoch, values, values, values, 1, failed=bool(failed)))
    return [line for line in lines if len(line.epoch)]


def _mean(epochs: pd.DataFrame, runs: Sequence[str], metric: str) -> Curve:
    own = epochs[epochs["run"].isin(runs)]
    table = own.pivot_table(index="epoch", columns="run", values=metric, dropna=False)
    values = table.reindex(columns=list(runs)).to_numpy(dtype="float64")
    real = np.isfinite(values).all(axis=1)
    values, epoch = values[real], table.index.to_numpy()[real]
    if not len(epoch):
        return Curve(epoch, epoch, epoch, epoch, len(runs), failed=False)
    return Curve(epoch, values.mean(axis=1), values.min(axis=1), values.max(axis=1), len(runs), failed=False)


def looks(runs: pd.DataFrame) -> Looks:
    """How the settings of these runs, as `grouped` gives them, are told apart."""
    groups = list(dict.fromkeys(runs["group"]))
    if len(groups) <= FEW:
        own = {group: look(place) for place, group in enumerate(groups)}
        return Looks(own, [(_counted(runs, group), own[group]) for group in groups])
    first = runs.drop_duplicates("group")
    candidates = {name: ordered(first[name]) for name in keys(runs)}
    for name, values in candidates.items():
        if len(values) <= FEW:
            return _by_name(first, name, values)
    for name, values in candidates.items():
        if all(_number(value) for value in values):
            return _by_number(first, name, values)
    return _by_name(first, next(iter(candidates)), next(iter(candidates.values()))[: FEW - 1])


def _counted(runs: pd.DataFrame, group: str) -> str:
    """The label of a setting, with the number of its runs if the line is a mean."""
    together = averaged(runs[runs["group"] == group])
    return f"{group} (n = {len(together)})" if together else group


def _by_name(first: pd.DataFrame, name: str, values: list[Any]) -> Looks:
    """A colour for each value of one key; grey for those beyond."""
    entries = [(value_text(value), look(place)) for place, value in enumerate(values)]
    by_text = {text: Look(own.colour, own.dash) for text, own in entries}
    other = Look(GREY, "-")
    own = {
        group: by_text.get(value_text(value), other) for group, value in zip(first["group"], first[name], strict=True)
    }
    legend = [(text, by_text[text]) for text, _ in entries]
    if other in own.values():
        legend.append(("other", other))
    return Looks(own, legend, heading=title(name))


def _by_number(first: pd.DataFrame, name: str, values: list[float]) -> Looks:
    """A colour on a scale for each value of one number."""
    log = values[0] > 0 and values[-1] / values[0] > 50
    scale = Looks({}, [], title(name), (float(values[0]), float(values[-1])), log)
    # The last tenth of the map is a yellow that is lost on white.
    own = {
        group: Look(to_hex(colormaps["viridis"](0.9 * float(scale.norm(value)))))
        for group, value in zip(first["group"], first[name], strict=True)
    }
    return Looks(own, [], scale.heading, scale.scale, log)


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
