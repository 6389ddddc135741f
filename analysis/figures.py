"""Frames in, figures out. Nothing here saves or shows anything; `style.save` does the first."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from analysis.curves import FEW, curves, looks
from analysis.draw import ACCURACIES, LOSSES, TITLES, finish, legend, line, plain, wrap
from analysis.formats import duration
from analysis.groups import compact, finished, grouped
from analysis.schema import PHASES
from analysis.style import WIDTH, look, style

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from analysis.curves import Looks

_PARTS = {"train": "training", "valid": "validation", "test": "test", "parameters": "parameters"}
_COLOURS = ("#B9B9B9", "#56B4E9", "#0072B2", "#009E73", "#D55E00", "#F0C9A0", "#5B5B5B")  # one a phase
_MANY = 24  # of more runs than that, the profile shows the mean of each setting
_WIDE = 30  # letters; of settings longer than that, only the values are written beside a bar


def learning_curves(epochs: pd.DataFrame, runs: pd.DataFrame) -> Figure:
    """Loss and accuracy against epoch, on training, validation and test data.

    One run has its data sets together in a panel. Several runs have a panel for each, with a line for each
    setting: the mean of its finished runs and a band from the lowest to the highest. Runs that are not
    averaged are thin lines of their own, with a cross where a failed one ends. Where the number of
    parameters changes, a panel shows it.

    Args:
        epochs: The frame `epochs` of `Records`.
        runs: The frame `runs` of `Records`.
    """
    drawn = grouped(runs[runs["run"].isin(epochs["run"])])
    losses = [name for name in LOSSES if np.isfinite(epochs[name]).any()]
    others = [name for name in ACCURACIES if np.isfinite(epochs[name]).any()]
    sizes = epochs.groupby("run")["parameters"]
    if (sizes.min() < sizes.max()).any():
        others.append("parameters")
    with style():
        if not losses and not others:
            return _empty("no epoch has finished")
        if len(drawn) == 1:
            return _single(epochs, drawn, losses, others)
        return _several(epochs, drawn, [names for names in (losses, others) if names])


def time_profile(profile: pd.DataFrame, runs: pd.DataFrame) -> Figure:
    """Where the time went: seconds by phase on the left, and as a share of their sum on the right.

    Args:
        profile: The frame `profile` of `Records`.
        runs: The frame `runs` of `Records`.
    """
    seconds, heading = _phase_seconds(profile, runs)
    with style():
        if not len(seconds):
            return _empty("no epoch has finished")
        total = seconds.sum(axis=1)
        unit, name = next(
            (pair for pair in ((3600.0, "hours"), (60.0, "minutes")) if total.max() >= 3 * pair[0]),
            (1.0, "seconds"),
        )
        figure = Figure(
            figsize=(WIDTH, (0.27 if len(seconds) <= _MANY else 0.2) * len(seconds) + 0.95),
            layout="constrained",
        )
        left, right = figure.subplots(1, 2, sharey=True)
        _bars(left, seconds / unit)
        _bars(right, seconds.div(total.where(total > 0), axis=0).fillna(0.0) * 100)
        _bar_axes(left, right, seconds, name)
        left.annotate(
            wrap(plain(heading), _WIDE),
            (0, 1),
            (-4, 3),
            "axes fraction",
            textcoords="offset points",
            ha="right",
            va="bottom",
            color="#666666",
        )
        entries, labels = left.get_legend_handles_labels()
        figure.legend(entries, labels, loc="outside upper center", ncols=len(labels), handlelength=1)
        return figure


def _empty(text: str) -> Figure:
    figure = Figure(figsize=(WIDTH, 1.0))
    figure.text(0.5, 0.5, text, ha="center", va="center", color="#666666")
    return figure


def _single(epochs: pd.DataFrame, run: pd.DataFrame, losses: list[str], others: list[str]) -> Figure:
    """One run: a panel of losses, one of accuracies, one of parameters."""
    accuracies = [name for name in others if name in ACCURACIES]
    panels = {
        "loss": losses,
        "accuracy (%)": accuracies,
        "parameters": [n for n in others if n == "parameters"],
    }
    panels = {title: metrics for title, metrics in panels.items() if metrics}
    figure = Figure(figsize=(WIDTH if len(panels) > 1 else 4.2, 2.4), layout="constrained")
    cells = figure.subplots(1, len(panels), squeeze=False)[0]
    for axes, (title, metrics) in zip(cells, panels.items(), strict=True):
        for metric in metrics:
            part = metric.split("_")[0]
            own = look(list(_PARTS).index(part))
            for curve in curves(epochs, run, metric):
                line(axes, metric, curve, own, _PARTS[part], thin=False, band=False)
        axes.set_title(title, loc="left")
        finish(axes, epochs, metrics)
        if title != "parameters":
            axes.legend(loc="best")
    return figure


def _several(epochs: pd.DataFrame, runs: pd.DataFrame, rows: list[list[str]]) -> Figure:
    """Many runs: a panel for each measure, losses above, and the legend where there is room."""
    width = max(map(len, rows))
    figure = Figure(figsize=(WIDTH, 2.1 * len(rows) + 0.2), layout="constrained")
    grid = figure.subplots(len(rows), width, squeeze=False)
    appearance = looks(runs)
    free: Axes | None = None
    panels: list[Axes] = []
    for names, cells in zip(rows, grid, strict=True):
        spare = width - len(names) if "parameters" not in names else 0
        # Accuracies flush right, so that each is below the loss on the same data.
        for axes in [*cells[:spare], *cells[spare + len(names) :]]:
            axes.set_axis_off()
            free = free or axes
        own = list(cells[spare : spare + len(names)])
        _share(own, names)
        panels += own
        for axes, metric in zip(own, names, strict=True):
            _panel(axes, epochs, runs, metric, appearance)
    legend(figure, free, appearance, panels)
    return figure


def _share(cells: list[Axes], names: list[str]) -> None:
    """One scale for all losses and one for all accuracies, so that panels can be compared."""
    for axes, name in zip(cells[1:], names[1:], strict=True):
        if name != "parameters" and names[0] != "parameters":
            axes.sharey(cells[0])
            axes.tick_params(labelleft=False)


def _panel(axes: Axes, epochs: pd.DataFrame, runs: pd.DataFrame, metric: str, appearance: Looks) -> None:
    """One measure of all settings."""
    crowded = len(appearance.of) > FEW
    for group, members in runs.groupby("group", sort=False):
        for place, curve in enumerate(curves(epochs, members, metric)):
            thin = crowded or (curve.runs == 1 and len(members) > 1)
            label = str(group) if place == 0 else "_"
            line(axes, metric, curve, appearance.of[str(group)], label, thin=thin, band=not crowded)
    axes.set_title(TITLES[metric], loc="left")
    finish(axes, epochs, list(LOSSES) if metric in LOSSES else [metric])


def _phase_seconds(profile: pd.DataFrame, runs: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """Seconds by phase, one row a bar under its label, and what the labels are values of.

    Phases that never happened are left out.
    """
    frame = grouped(runs[runs["run"].isin(profile["run"])])
    sums = profile.groupby("run")[list(PHASES)].sum().reindex(frame["run"])
    labels, heading = frame["label"].tolist(), ""
    if folds(frame):
        # Of a setting that has a finished run, only finished ones count.
        counted = (finished(frame) | ~frame["group"].isin(frame.loc[finished(frame), "group"])).to_numpy()
        sums = sums[counted].groupby(frame["group"].to_numpy()[counted], sort=False).mean()
        frame = frame.drop_duplicates("group")
        labels = frame["group"].tolist()
    if labels and max(map(len, labels)) > _WIDE:
        short_heading, short_labels = compact(frame)
        if len(set(short_labels)) == len(labels):
            heading, labels = short_heading, short_labels
    sums.index = pd.Index(labels, name="label")
    return sums.loc[:, (sums > 0).any()], heading


def folds(runs: pd.DataFrame) -> bool:
    """Whether the profile of these runs, as `grouped` gives them, has one bar a setting and not one a run."""
    return len(runs) > _MANY and bool(runs["group"].duplicated().any())


def _bars(axes: Axes, values: pd.DataFrame) -> None:
    """Stacked bars, the first row on top."""
    places = np.arange(len(values))
    left = np.zeros(len(values))
    for phase in values.columns:
        widths = values[phase].to_numpy(dtype="float64")
        colour = _COLOURS[PHASES.index(str(phase))]
        axes.barh(places, widths, 0.72, left, color=colour, edgecolor="white", linewidth=0.4, label=str(phase))
        left = left + widths


def _bar_axes(left: Axes, right: Axes, seconds: pd.DataFrame, unit: str) -> None:
    """Labels, and the numbers that are wanted most: the sum, and the shares that are large enough."""
    labels = [wrap(plain(str(label)), _WIDE) for label in seconds.index]
    left.set_yticks(np.arange(len(seconds)), labels)
    left.set_ylim(len(seconds) - 0.4, -0.6)
    left.set_xlabel(unit)
    right.set_xlabel("share (%)")
    right.set_xlim(0, 100)
    for axes in (left, right):
        axes.grid(visible=False, axis="y")
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
    left.margins(x=0.18)
    for container in left.containers[-1:]:
        texts = [duration(value) for value in seconds.sum(axis=1)]
        left.bar_label(container, labels=texts, padding=3, fontsize=6.5, color="#444444")  # type: ignore[arg-type]
    for container, phase in zip(right.containers, seconds.columns, strict=True):
        widths = [bar.get_width() for bar in container]
        ink = "white" if phase in ("backward", "optimizer", "exchange", "checkpoint") else "black"
        texts = [f"{width:.0f}" if width >= 6 else "" for width in widths]
        right.bar_label(container, labels=texts, label_type="center", fontsize=6, color=ink)  # type: ignore[arg-type]
