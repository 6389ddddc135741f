"""The tables and the figure of this experiment, from what ``run.py`` wrote.

python experiments/alrao_sensitivity/figure.py [--results DIR] [--out DIR]
"""

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import FixedLocator, NullLocator

from analysis.experiment import folders, publish
from analysis.style import GREY, WIDTH, style

HERE = Path(__file__).parent
KNOWS_NOTHING = np.log(10)  # the loss of ten classes all alike
BEYOND = 13.0  # from here on a loss is one that has diverged: Alrao's says no higher one (4 (1 + ln 10) is 13.2)


def read(path: Path) -> pd.DataFrame:
    """One row for each width and interval: the mean loss over seeds; infinite if a run has diverged."""
    runs = pd.read_csv(path)
    runs["loss"] = runs.loss.where((runs.state == "done") & (runs.loss < BEYOND), np.inf)
    keys = ["width", "lr_min", "lr_max"]
    counts = runs.groupby("seed").side.transform("size")
    runs = runs[counts == counts.max()]  # whole seeds only
    return runs.groupby(keys).agg(loss=("loss", "mean"), lost=("lost", "mean"), units=("units", "first")).reset_index()


def grid(means: pd.DataFrame, width: float) -> pd.DataFrame:
    """The losses of a width: a row for each upper end, a column for each lower end."""
    return means[means.width == width].pivot_table(index="lr_max", columns="lr_min", values="loss", dropna=False)


def table(means: pd.DataFrame) -> pd.DataFrame:
    """One row for each width and kind of interval: how many intervals come how far."""
    rows = []
    for width, mine in means.groupby("width"):
        sgd = mine[mine.lr_min == mine.lr_max].set_index("lr_min").loss
        best = sgd.min()
        good = sgd.index[sgd <= 1.5 * best]
        alrao = mine[mine.lr_min < mine.lr_max]
        contains = pd.Series(
            [any(low <= rate <= high for rate in good) for low, high in zip(alrao.lr_min, alrao.lr_max, strict=True)],
            index=alrao.index,
        )
        kinds = {
            "SGD, one rate": sgd,
            "Alrao, a good rate for SGD within": alrao[contains].loss,
            "Alrao, none within": alrao[~contains].loss,
        }
        for kind, losses in kinds.items():
            rows.append(
                {
                    "width": f"×{width:g}",
                    "kind": kind,
                    "settings": f"{len(losses)}",
                    "diverged": f"{np.isinf(losses).sum()}",
                    "at most half of knowing nothing": f"{(losses <= KNOWS_NOTHING / 2).sum()}",
                    "at most twice SGD's best": f"{(losses <= 2 * best).sum()}",
                    "median loss": f"{losses.median():.3g}",
                    "lowest": f"{losses.min():.3g}",
                    "highest": f"{losses.max():.3g}".replace("inf", "∞"),
                }
            )
    return pd.DataFrame(rows)


def figure(means: pd.DataFrame) -> Figure:
    """One map for each width, on one scale of colours."""
    widths = sorted(means.width.unique())
    finite = means[np.isfinite(means.loss)].loss
    colours = colormaps["viridis_r"].copy()
    colours.set_bad(GREY)
    norm = LogNorm(finite.min(), KNOWS_NOTHING * 1.2, clip=True)
    with style():
        made = Figure(figsize=(WIDTH, 3.2), layout="constrained")
        panels = made.subplots(1, len(widths), squeeze=False)[0]
        for axes, width in zip(panels, widths, strict=True):
            found = grid(means, width)
            rates = [f"$10^{{{np.log10(rate):.0f}}}$" for rate in found.columns]
            drawn = axes.imshow(
                np.ma.masked_invalid(np.where(np.isinf(found), np.nan, found)), origin="lower", cmap=colours, norm=norm
            )
            below = np.tri(len(found), k=-1, dtype=bool).T  # lr_min above lr_max: no interval
            axes.imshow(np.ma.masked_where(~below, below), origin="lower", cmap="Greys_r", vmin=0, vmax=1)
            for place in range(len(found)):
                axes.add_patch(Rectangle((place - 0.5, place - 0.5), 1, 1, fill=False, edgecolor="#000000"))
            axes.set_xticks(range(len(rates)), rates)
            axes.set_yticks(range(len(rates)), rates)
            axes.grid(visible=False)
            axes.set(xlabel="lr_min", ylabel="lr_max", title=f"width ×{width:g}")
        bar = made.colorbar(drawn, ax=list(panels), extend="max")
        ticks = [value for value in (0.1, 0.2, 0.5, 1.0, 2.0) if value >= finite.min()]
        bar.ax.yaxis.set_major_locator(FixedLocator(ticks))
        bar.ax.yaxis.set_major_formatter("{x:g}")
        bar.ax.yaxis.set_minor_locator(NullLocator())
        bar.set_label("training loss, last epoch")
        made.legend(
            handles=[
                Patch(facecolor=GREY, label="diverged"),
                Patch(fill=False, edgecolor="#000000", label="one rate: SGD"),
            ],
            loc="outside upper center", ncols=2,
        )  # fmt: skip
    return made


def main() -> None:
    results, out = folders(__doc__, HERE)
    means = read(results / "runs.csv")
    tables = {"table": table(means)}
    for width in sorted(means.width.unique()):
        shown = grid(means, width).map(lambda loss: "" if np.isnan(loss) else f"{loss:.3g}".replace("inf", "∞"))
        shown = shown[::-1].rename(columns="{:g}".format)
        shown.insert(0, "lr_max \\ lr_min", [f"{rate:g}" for rate in shown.index])
        tables[f"table-width-{width:g}"] = shown
    publish(tables, {"figure": figure(means)}, out)


if __name__ == "__main__":
    main()
