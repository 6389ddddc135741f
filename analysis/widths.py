"""How wide the layers of networks are that are pruned, epoch by epoch."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from matplotlib import colormaps
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, Normalize, to_hex
from matplotlib.figure import Figure

from analysis.curves import FEW, averaged
from analysis.draw import finish, plain, wrap
from analysis.groups import grouped
from analysis.style import WIDTH, Look, look, style

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

PANELS = 12
"""Settings that are drawn; of more, the first ones."""
_ABREAST = 3
_STEEP = 20  # widths that span more than this factor are shown on a logarithmic scale


def layer_widths(structure: pd.DataFrame, runs: pd.DataFrame) -> Figure:
    """The units of each layer against epoch: a panel for each setting, the mean over its finished runs.

    Of a setting that has fewer than two finished runs, its first run. Layers are told apart by colour: few of them by
    name, many by their place in the network.

    Args:
        structure: The frame `structure` of `Records`, of one run or more.
        runs: The frame `runs` of `Records`.
    """
    drawn = grouped(runs[runs["run"].isin(structure["run"])])
    settings = [(str(group), members) for group, members in drawn.groupby("group", sort=False)][:PANELS]
    columns = min(_ABREAST, len(settings))
    rows = -(-len(settings) // columns)
    with style():
        figure = Figure(figsize=(WIDTH if columns > 1 else 4.2, 2.1 * rows + 0.4), layout="constrained")
        grid = figure.subplots(rows, columns, squeeze=False, sharey=True).ravel()
        tables = [widths(structure, members) for _, members in settings]
        for axes, (group, _), table in zip(grid, settings, tables, strict=False):
            _panel(axes, table)
            axes.set_title(wrap(plain(group), 36) if len(settings) > 1 else "units", loc="left")
        if max(table.to_numpy().max() for table in tables) > _STEEP * min(table.to_numpy().min() for table in tables):
            grid[0].set_yscale("log")  # of all panels: they share it
        else:
            grid[0].set_ylim(bottom=0)
        for axes in grid[len(settings) :]:
            axes.set_axis_off()
        _legend(figure, list(grid[: len(settings)]), tables)
        return figure


def widths(structure: pd.DataFrame, members: pd.DataFrame) -> pd.DataFrame:
    """Units of each layer, epochs in rows and layers in columns, in the order of the network.

    Args:
        structure: The frame `structure` of `Records`.
        members: Runs of one setting, as `grouped` gives them: the mean over those that finished, as far as all of them
            go; of the first one where fewer than two have.
    """
    together = averaged(members) or members["run"].tolist()[:1]
    own = structure[structure["run"].isin(together)]
    layers = list(dict.fromkeys(own["layer"]))
    means = own.pivot_table(index="epoch", columns="layer", values="width", aggfunc="mean")[layers]
    counts = own.pivot_table(index="epoch", columns="layer", values="width", aggfunc="count")[layers]
    return means[(counts == len(together)).all(axis=1)]


def _looks(count: int) -> list[Look]:
    """A look for each layer: of many, colours from the first to the last."""
    if count <= FEW:
        return [look(place) for place in range(count)]
    return [Look(to_hex(colormaps["viridis"](0.9 * place / (count - 1)))) for place in range(count)]


def _panel(axes: Axes, table: pd.DataFrame) -> None:
    """One setting."""
    epoch = table.index.to_numpy()
    for layer, own in zip(table.columns, _looks(table.shape[1]), strict=True):
        axes.plot(
            epoch,
            table[layer].to_numpy(),
            color=own.colour,
            linestyle=own.dash,
            linewidth=1.3 if own.marker else 0.8,
            marker=own.marker or ("o" if len(epoch) == 1 else ""),
            markevery=max(1, round(len(epoch) / 8)),
            label=plain(str(layer)),
        )
    finish(axes, table.reset_index(), [str(layer) for layer in table.columns])


def _legend(figure: Figure, panels: list[Axes], tables: list[pd.DataFrame]) -> None:
    """Once where all panels have the same layers; else in each. A scale of colours where there are many."""
    if max(table.shape[1] for table in tables) > FEW:
        colours = ListedColormap(colormaps["viridis"](np.linspace(0, 0.9, 256)))
        bar = figure.colorbar(ScalarMappable(Normalize(0, 1), colours), ax=panels, label="layer", aspect=40, pad=0.01)
        bar.set_ticks([0, 1], labels=["first", "last"])
    elif len({tuple(table.columns) for table in tables}) > 1:
        for axes in panels:
            axes.legend(loc="best")
    else:
        handles, labels = panels[0].get_legend_handles_labels()
        columns = max(1, min(len(labels), 100 // (max(map(len, labels)) + 8)))
        figure.legend(handles, labels, loc="outside lower center", ncols=columns)
