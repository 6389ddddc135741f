"""The tables and the figure of this experiment, from what ``experiments/prune.py`` wrote.

python experiments/scalp_widths/figure.py [--results DIR] [--out DIR]
"""

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from analysis.experiment import folders, publish
from analysis.style import PALETTE, WIDTH, style

HERE = Path(__file__).parent
METHODS = {
    "scalp sqrt_log": "ScaLP, 1/(√k log k)",
    "scalp uniform": "ScaLP, uniform",
    "bn_lasso": "BN-Lasso",
}
LAYERS = {"first": "first layer", "second": "second layer"}


def read(path: Path) -> pd.DataFrame:
    """The runs of those seeds of a method that have every N."""
    runs = pd.read_csv(path)
    counts = runs.groupby(["method", "seed"]).units.transform("size")
    return runs[counts == runs.units.nunique()]


def ratio(mine: pd.DataFrame, layer: str) -> float:
    """The largest over the smallest mean width among all N."""
    means = mine.groupby("units")[layer].mean()
    return float(means.max() / means.min())


def cell(values: pd.Series) -> str:
    """The mean, and the single runs."""
    return f"{values.mean():.1f} ({', '.join(f'{value:g}' for value in values)})"


def table(runs: pd.DataFrame) -> pd.DataFrame:
    """One row for each method and layer, one column for each N."""
    rows = []
    for method, title in METHODS.items():
        mine = runs[runs.method == method].sort_values("seed")
        for layer, name in LAYERS.items():
            cells = {f"N = {units}": cell(part[layer]) for units, part in mine.groupby("units")}
            rows.append(
                {"method": title, "units left": name, **cells, "largest / smallest": f"{ratio(mine, layer):.2f}"}
            )
    return pd.DataFrame(rows)


def late(widths: str) -> int:
    """How many units went in the last ten epochs of pruning."""
    totals = [sum(map(int, each.split("/"))) for each in widths.split()]
    return totals[-11] - totals[-1]


def accuracies(runs: pd.DataFrame) -> pd.DataFrame:
    """Test accuracy in percent, and whether pruning was over."""
    rows = []
    for method, title in METHODS.items():
        mine = runs[runs.method == method]
        means = mine.groupby("units").test_accuracy.agg(["mean", "min", "max"]) * 100
        row = {"method": title}
        row |= {f"N = {n}": f"{one['mean']:.1f} ({one['min']:.1f} to {one['max']:.1f})" for n, one in means.iterrows()}
        row["ended by patience"] = f"{(mine.pruning_ended_by == 'patience').sum()} of {len(mine)}"
        row["units lost in the last 10 epochs"] = f"{mine.widths.map(late).mean():.1f}"
        rows.append(row)
    return pd.DataFrame(rows)


def bars(axes: Axes, mine: pd.DataFrame, layer: str) -> None:
    """A bar for each N, the mean; a point for each run."""
    for place, (units, part) in enumerate(mine.groupby("units")):
        axes.bar(place, part[layer].mean(), width=0.7, color=PALETTE[place], alpha=0.45, label=f"N = {units}")
        offsets = np.linspace(-0.2, 0.2, len(part)) if len(part) > 1 else np.zeros(1)
        axes.plot(place + offsets, part.sort_values("seed")[layer], "o", color=PALETTE[place], markeredgecolor="white",
                  markeredgewidth=0.4, markersize=4.2)  # fmt: skip
    axes.set_xticks(range(mine.units.nunique()), [str(units) for units in sorted(mine.units.unique())])
    axes.tick_params(axis="x", length=0)
    axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.set_ylim(0, 1.15 * mine[layer].max())
    axes.set_title(f"largest / smallest mean: {ratio(mine, layer):.2f}", fontsize=7, loc="right", pad=3)


def course(axes: Axes, mine: pd.DataFrame) -> None:
    """Units of both layers together, by epoch of pruning; a thin line for each run."""
    for place, (_, part) in enumerate(mine.groupby("units")):
        for widths in part.widths:
            total = [sum(map(int, each.split("/"))) for each in widths.split()]
            axes.plot(range(len(total)), total, color=PALETTE[place], linewidth=0.8, alpha=0.85)
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set_xlim(0, None)
    axes.set_xlabel("epoch of pruning")


def figure(runs: pd.DataFrame) -> Figure:
    """W's figures 3.6 and 3.7 in one: widths by N, a column for each method; below, how they came about."""
    with style():
        made = Figure(figsize=(WIDTH, 5.6), layout="constrained")
        places = made.subplots(3, len(METHODS), squeeze=False)
        for column, (method, title) in enumerate(METHODS.items()):
            mine = runs[runs.method == method]
            for row, layer in enumerate(LAYERS):
                bars(places[row][column], mine, layer)
            course(places[2][column], mine)
            places[0][column].annotate(
                title, (0.5, 1.2), xycoords="axes fraction", ha="center", va="bottom", fontsize=8.5, fontweight="bold"
            )
            places[1][column].set_xlabel("N, units at the start")
        places[0][0].set_ylabel("units left, first layer")
        places[1][0].set_ylabel("units left, second layer")
        places[2][0].set_ylabel("units in both layers")
        low = min(axes.get_ylim()[0] for axes in places[2])
        high = max(axes.get_ylim()[1] for axes in places[2])
        for axes in places[2]:
            axes.set_ylim(low, high)
        made.legend(*places[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return made


def main() -> None:
    results, out = folders(__doc__, HERE)
    runs = read(results / "runs.csv")
    strong = read(results / "strong" / "runs.csv")
    tables = {
        "table": table(runs),
        "table-accuracy": accuracies(runs),
        "table-strong": table(strong),
    }
    publish(tables, {"figure": figure(runs)}, out)


if __name__ == "__main__":
    main()
