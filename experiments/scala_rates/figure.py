"""The tables and the figure of this experiment, from what ``run.py`` wrote.

python experiments/scala_rates/figure.py [--results DIR] [--out DIR]
"""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator

from analysis.experiment import folders, publish
from analysis.style import PALETTE, WIDTH, style

HERE = Path(__file__).parent
CHANCE = 10.0  # percent: ten classes
RATE = 1.0  # of all scaled networks
ACTIVATIONS = {"identity": "linear", "relu": "ReLU"}
SCALINGS = {"uniform": "scaled, uniform", "sqrt_log": "scaled, 1/(√k log k)", "inverse": "scaled, 1/k"}


def read(path: Path) -> pd.DataFrame:
    """The runs of whole seeds; one that was not finite within its first epoch has chance's accuracy, in percent."""
    runs = pd.read_csv(path)
    counts = runs.groupby("seed").units.transform("size")
    runs = runs[counts == counts.max()].copy()
    runs["accuracy"] = (100 * runs.valid_accuracy).fillna(CHANCE)
    curves = runs.valid_accuracies.astype(str).str.split()
    runs["first"] = (100 * curves.str[0].astype(float)).fillna(CHANCE)
    scaled = runs.scaling.map(SCALINGS)
    runs["side"] = scaled.fillna("plain, rate " + runs.rate.map("{:.0e}".format).str.replace("e-0", "e-"))
    return runs


def compared(runs: pd.DataFrame, activation: str) -> pd.DataFrame:
    """Those of one activation, without the search for another rate."""
    return runs[(runs.activation == activation) & ((runs.scaling == "none") | (runs.rate == RATE))]


def cell(mine: pd.DataFrame) -> str:
    """Accuracy and epochs, means over seeds."""
    lost = (mine.state != "done").sum()
    if lost == len(mine):
        return "not finite"
    return f"{mine.accuracy.mean():.1f} ({mine.best_epoch.mean():.0f})" + (f", {lost} not finite" if lost else "")


def table(runs: pd.DataFrame) -> pd.DataFrame:
    """One row for each activation and side, one column for each width."""
    rows = []
    for activation, title in ACTIVATIONS.items():
        mine = compared(runs, activation)
        means = mine.pivot_table(index="side", columns="units", values="accuracy", sort=False)
        epochs = mine.pivot_table(index="side", columns="units", values="best_epoch", sort=False)
        best = means.max()
        for side in means.index:
            row: dict[str, Any] = {"network": title, "side": side}
            for units in means.columns:
                row[f"N = {units}"] = cell(mine[(mine.side == side) & (mine.units == units)])
            row["accuracy: highest minus lowest"] = f"{means.loc[side].max() - means.loc[side].min():.1f}"
            row["farthest below the best side"] = f"{(best - means.loc[side]).max():.1f}"
            row["epochs: most over fewest"] = f"{epochs.loc[side].max() / max(1, epochs.loc[side].min()):.1f}"
            rows.append(row)
    return pd.DataFrame(rows)


def speed_table(runs: pd.DataFrame) -> pd.DataFrame:
    """The validation accuracy after the first epoch, and the training loss of the last; one row for each side."""
    rows = []
    for activation, title in ACTIVATIONS.items():
        mine = compared(runs, activation)
        first, last = (
            mine.pivot_table(index="side", columns="units", values=column, sort=False)
            for column in ("first", "train_loss")
        )
        for side in first.index:
            row = {"network": title, "side": side}
            row |= {f"first epoch, %: N = {units}": f"{each:.1f}" for units, each in first.loc[side].items()}
            row |= {f"last loss: N = {units}": f"{each:.2f}" for units, each in last.loc[side].items()}
            rows.append(row)
    return pd.DataFrame(rows)


def search_table(runs: pd.DataFrame) -> pd.DataFrame:
    """Scaled networks of one width at several rates."""
    scaled = runs[runs.scaling != "none"]
    widths = scaled[scaled.rate != RATE].units
    mine = scaled[scaled.units.isin(widths)]
    rows = []
    for (activation, side), part in mine.groupby(["activation", "side"], sort=False):
        rates = {f"{rate:g}": cell(each) for rate, each in part.groupby("rate")}
        rows.append({"network": ACTIVATIONS[activation], "side": side, **rates})
    return pd.DataFrame(rows)


def looks(sides: list[str]) -> dict[str, dict[str, Any]]:
    """Scaled ones are solid and coloured, plain ones dashed, the larger the rate the darker."""
    found: dict[str, dict[str, Any]] = {}
    plain = [side for side in sides if side.startswith("plain")]
    shades = colormaps["Greys"]
    for place, name in enumerate(SCALINGS.values()):
        found[name] = {"color": PALETTE[place], "marker": "os^"[place], "zorder": 3}
    for place, name in enumerate(plain):
        shade = shades(0.3 + 0.7 * place / max(1, len(plain) - 1))
        found[name] = {"color": shade, "marker": "DvPX*"[place % 5], "linestyle": (0, (1.5, 1.2)), "linewidth": 1.1}
    return found


def panel(axes: Axes, mine: pd.DataFrame, column: str) -> None:
    """Means over seeds against the width; bars from the lowest to the highest."""
    for side, look in looks(list(mine.side.unique())).items():
        found = mine[mine.side == side].groupby("units")[column]
        middle = found.mean()
        bars = [middle - found.min(), found.max() - middle]
        axes.errorbar(middle.index, middle, bars, label=side, elinewidth=0.6, **look)
    widths = sorted(mine.units.unique())
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(FixedLocator(widths))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter("{x:g}")


def by_errors(axes: Axes) -> None:
    """Accuracies so that equal ratios of errors are equally far apart."""
    axes.set_yscale("function", functions=(lambda a: -np.log(100.001 - a), lambda e: 100.001 - np.exp(-e)))
    axes.yaxis.set_major_locator(FixedLocator([30, 50, 60, 70, 75, 80, 85]))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.set_ylim(CHANCE, 87)


def figure(runs: pd.DataFrame) -> Figure:
    """W's figure 3.3: linear above, ReLU below; accuracy on the left, epochs on the right."""
    with style():
        made = Figure(figsize=(WIDTH, 5.0), layout="constrained")
        places = made.subplots(len(ACTIVATIONS), 2, squeeze=False)
        for (left, right), (activation, title) in zip(places, ACTIVATIONS.items(), strict=True):
            mine = compared(runs, activation)
            panel(left, mine, "accuracy")
            panel(right, mine, "best_epoch")
            left.set_ylabel(f"{title}: best validation accuracy, %")
            right.set_ylabel(f"{title}: epochs to reach it")
            by_errors(left)
            right.set_ylim(0, None)
        for axes in places[-1]:
            axes.set_xlabel("hidden units N")
        made.legend(*places[0][0].get_legend_handles_labels(), loc="outside upper center", ncols=4)
    return made


def main() -> None:
    results, out = folders(__doc__, HERE)
    runs = read(results / "runs.csv")
    tables = {"table": table(runs), "table-speed": speed_table(runs), "table-search": search_table(runs)}
    publish(tables, {"figure": figure(runs)}, out)


if __name__ == "__main__":
    main()
