"""The pieces of a figure: one line, one panel's axes, one legend."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib import colormaps
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullFormatter

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from analysis.curves import Curve, Looks
    from analysis.style import Look

LOSSES = {"train_loss": "training loss", "valid_loss": "validation loss", "test_loss": "test loss"}
ACCURACIES = {"valid_accuracy": "validation accuracy (%)", "test_accuracy": "test accuracy (%)"}
TITLES = {**LOSSES, **ACCURACIES, "parameters": "parameters"}
_STEEP = 50  # a loss that spans more than this factor is shown on a logarithmic scale


def line(axes: Axes, metric: str, curve: Curve, own: Look, label: str, *, thin: bool, band: bool) -> None:
    """One line, with the band around a mean, and a cross at the end of a failed run."""
    scale = 100.0 if metric in ACCURACIES else 1.0
    last = len(curve.epoch) - 1
    axes.plot(
        curve.epoch,
        scale * curve.middle,
        color=own.colour,
        linestyle=own.dash,
        linewidth=0.7 if thin else 1.3,
        # A line of one point has no length: only its marker can be seen.
        marker=own.marker or "o" if last == 0 or not thin else "",
        markevery=max(1, round(last / 8)),
        label=label,
        zorder=3,
    )
    if band and curve.runs > 1:
        low, high = scale * curve.low, scale * curve.high
        axes.fill_between(curve.epoch, low, high, color=own.colour, alpha=0.18, linewidth=0)
    if curve.failed:
        end = (curve.epoch[-1:], scale * curve.middle[-1:])
        cross: dict[str, Any] = {"marker": "x", "markersize": 6, "markeredgewidth": 1.4, "linestyle": "none"}
        axes.plot(*end, color=own.colour, label="_", zorder=4, **cross)


def finish(axes: Axes, epochs: pd.DataFrame, metrics: list[str]) -> None:
    """Scale, ticks and label of a panel that shows these measures."""
    axes.set_xlabel("epoch")
    last = int(epochs["epoch"].max())
    axes.xaxis.set_major_locator(MaxNLocator(integer=True) if last > 1 else FixedLocator([1]))
    # From the first epoch to the last, with a little room; a single epoch stands in the middle.
    axes.set_xlim(1 - 0.04 * last if last > 1 else 0, last + 0.04 * last if last > 1 else 2)
    values = epochs[metrics].to_numpy(dtype="float64")
    values = values[np.isfinite(values)]
    if metrics[0] in LOSSES and values.min() > 0 and values.max() / values.min() > _STEEP:
        axes.set_yscale("log")
        axes.yaxis.set_minor_formatter(NullFormatter())
    if metrics == ["parameters"]:
        axes.set_ylim(bottom=0)
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: short(value)))


def plain(text: str) -> str:
    """A text from a config as it stands: a dollar sign would start a formula."""
    return text.replace("$", r"\$")


def short(value: float) -> str:
    """A large number in a few letters: 1.2M."""
    for unit, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= unit:
            return f"{value / unit:.3g}{letter}"
    return f"{value:.3g}"


def legend(figure: Figure, free: Axes | None, looks: Looks, panels: list[Axes]) -> None:
    """The legend in a free cell of the grid if it fits there, otherwise below the figure."""
    if looks.scale:
        low = colormaps["viridis"](np.linspace(0, 0.9, 256))
        colours = ScalarMappable(looks.norm, ListedColormap(low))
        figure.colorbar(colours, ax=panels, label=plain(looks.heading), aspect=40, fraction=0.03, pad=0.01)
        return
    # In a cell a label may take two lines, between one setting and the next; below there is room for one.
    broken = {label: wrap(label, 30) for label, _ in looks.legend}
    lines = [part for label in broken.values() for part in label.split("\n")]
    fits = free is not None and max(map(len, lines)) <= 34 and len(lines) <= 11
    handles = [
        Line2D(
            [],
            [],
            color=own.colour,
            linestyle=own.dash,
            marker=own.marker,
            linewidth=1.3,
            label=plain(broken[label] if fits else label),
        )
        for label, own in looks.legend
    ]
    heading = plain(looks.heading)
    if free is not None and fits:
        free.legend(handles=handles, title=heading, loc="center left", alignment="left")
        return
    longest = max(len(label) for label, _ in looks.legend)
    columns = max(1, min(len(handles), 110 // (longest + 8)))
    figure.legend(handles=handles, title=heading, loc="outside lower center", ncols=columns)


def wrap(label: str, width: int) -> str:
    """A label in lines of about this width, broken between its settings only."""
    # textwrap takes a no-break space for a letter.
    whole = ", ".join(part.replace(" ", "\u00a0") for part in label.split(", "))
    text = textwrap.fill(whole, width, break_long_words=False, break_on_hyphens=False)
    return text.replace("\u00a0", " ")
