"""The tables and the figure of this experiment, from what ``run.py`` wrote.

python experiments/alrao_pruning/figure.py [--results DIR] [--out DIR]
"""

import itertools
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import BoundaryNorm, ListedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import LogLocator, NullLocator

from analysis.experiment import folders, publish
from analysis.style import PALETTE, WIDTH, style

HERE = Path(__file__).parent
NAMES = {"zero": "zero", "noise": "Gaussian noise", "initial": "initial values"}
POINTS = (1, 5)  # of accuracy, that may be lost
# White to purple, as in the source; the lightness falls evenly, so that grey shows the same.
CLASSES = [0, 1, 2, 5, 10, 20, 40]
COLOURS = ("#F3F0F7", "#DCD3EA", "#BFAEDA", "#A088C6", "#8161B0", "#613A94", "#3F1269")

BOX = {"facecolor": "none", "edgecolor": PALETTE[1], "linewidth": 0.9}
CROSS = {"marker": "x", "color": PALETTE[1], "markersize": 4, "linestyle": "none"}


def drops(pruning: pd.DataFrame) -> pd.DataFrame:
    """With the points of accuracy that each interval loses against the whole network."""
    whole = pruning[pruning.step == 0].set_index(["seed", "place", "filling"]).performance
    before = whole.loc[list(pruning[["seed", "place", "filling"]].itertuples(index=False, name=None))].to_numpy()
    return pruning.assign(lost=100 * (before - pruning.performance))


def smallest(rows: pd.DataFrame, points: float) -> pd.Series:
    """The interval with the fewest units, among those that lose less than so many points; the narrowest with those."""
    fine = rows[rows.lost < points]
    return fine[fine.units == fine.units.min()].iloc[-1]


def shares(lost: pd.DataFrame) -> pd.DataFrame:
    """For each layer and filling the share of units, %, that is enough for less than so many points lost."""
    rows = []
    for (place, of), layer in lost.groupby(["place", "of"]):
        row = {"layer": f"{place}", "units": f"{of}"}
        for points in POINTS:
            for filling, name in NAMES.items():
                runs = [group for _, group in layer[layer.filling == filling].groupby("seed")]
                kept = [100 * smallest(run, points).units / of for run in runs]
                row[f"{name}, < {points}"] = f"{np.mean(kept):.0f}"
        rows.append(row)
    frame = pd.DataFrame(rows)
    numbers = frame.iloc[:, 2:].astype(float)
    last = {"layer": "mean", "units": ""} | {name: f"{value:.0f}" for name, value in numbers.mean().items()}
    return pd.concat([frame, pd.DataFrame([last])], ignore_index=True)


def summary(lost: pd.DataFrame) -> pd.DataFrame:
    """For each filling, over layers: how much of either end can go, and what half of the units and all of them cost."""
    rows = []
    for filling, name in NAMES.items():
        mine = lost[lost.filling == filling]
        runs = [group for _, group in mine.groupby(["seed", "place"])]
        intervals = [smallest(run, 1) for run in runs]
        gone = np.array([run.lost.iloc[-1] for run in runs])
        octaves = {"low": [], "high": []}
        for run, best in zip(runs, intervals, strict=True):
            octaves["low"].append(np.log10(best.low / run.low.iloc[0]))
            octaves["high"].append(np.log10(run.high.iloc[0] / best.high))
        rows.append(
            {
                "filling": name,
                "units kept, < 1 point lost, %": f"{np.mean([100 * each.units / each.of for each in intervals]):.0f}",
                "decades given up below": f"{np.mean(octaves['low']):.1f}",
                "decades given up above": f"{np.mean(octaves['high']):.1f}",
                "half of the units: points lost, median": f"{np.median([half(run) for run in runs]):.1f}",
                "no unit: points lost, median": f"{np.median(gone):.1f}",
                "layers that lose < 1 point without any unit": f"{(gone < 1).sum()} of {len(runs)}",
            }
        )
    return pd.DataFrame(rows)


def half(run: pd.DataFrame) -> float:
    """Points lost by the first interval on the way that keeps at most half of the units."""
    return float(run[run.units <= run.of / 2].lost.iloc[0])


def bars(axes: Axes, rows: pd.DataFrame, colours: ScalarMappable) -> None:
    """A bar for each layer. What a step cuts off has the colour of the accuracy that is lost from then on."""
    for place, layer in rows.groupby("place"):
        steps = list(layer.sort_values("step").itertuples())
        for before, after in itertools.pairwise(steps):
            rises = after.low > before.low
            low, high = (before.low, min(after.low, before.high)) if rises else (after.high, before.high)
            low = max(low, before.low)
            axes.barh(place, high - low, left=low, height=0.8, color=colours.to_rgba(after.lost), linewidth=0)
        best = smallest(layer, 1)
        if best.units:
            axes.barh(place, best.high - best.low, left=best.low, height=0.8, **BOX)
        else:
            axes.plot(np.sqrt(steps[0].low * steps[0].high), place, **CROSS)


def figure(lost: pd.DataFrame) -> Figure:
    """For each filling a panel: layers over learning rates."""
    lost = lost[lost.seed == lost.seed.min()]
    with style():
        made = Figure(figsize=(WIDTH, 3.35), layout="constrained")
        panels = made.subplots(1, len(NAMES), sharey=True, sharex=True)
        colours = ScalarMappable(BoundaryNorm(CLASSES, len(COLOURS), extend="max"), ListedColormap(COLOURS))
        for axes, (filling, name) in zip(panels, NAMES.items(), strict=True):
            bars(axes, lost[lost.filling == filling], colours)
            axes.set(
                xscale="log", title=name, xlabel="learning rate of the units", xlim=(lost.low.min(), lost.high.max())
            )
            axes.xaxis.set_major_locator(LogLocator(numticks=10))
            axes.xaxis.set_minor_locator(NullLocator())
            axes.grid(visible=False)
            axes.tick_params(axis="y", length=0)
            axes.spines["left"].set_visible(False)
        panels[0].set(ylabel="layer", yticks=sorted(lost.place.unique()), ylim=(0.4, lost.place.max() + 0.6))
        bar = made.colorbar(colours, ax=panels, label="accuracy lost, points", ticks=CLASSES, pad=0.015, aspect=30)
        bar.outline.set_visible(False)
        signs = {"less than 1 point lost with the fewest units": Patch(**BOX), "with none": Line2D([], [], **CROSS)}
        made.legend(signs.values(), signs.keys(), loc="outside lower center", ncols=2)
    return made


def main() -> None:
    results, out = folders(__doc__, HERE)
    lost = drops(pd.read_csv(results / "pruning.csv"))
    publish({"table-shares": shares(lost), "table-summary": summary(lost)}, {"figure": figure(lost)}, out)


if __name__ == "__main__":
    main()
