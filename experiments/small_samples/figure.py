"""The tables and figures of this experiment, from what ``run.py`` wrote.

python experiments/small_samples/figure.py [--results DIR] [--out DIR]
"""

from pathlib import Path

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from analysis.experiment import folders, publish
from analysis.style import GREY, WIDTH, look, style

HERE = Path(__file__).parent
NAMES = {"none": "none", "weight_decay": "weight decay", "dropout": "dropout", "shade": "SHADE", "reve": "REVE"}
REGULARISED = [method for method in NAMES if method != "none"]


def read(path: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The runs that are compared, and those by which strengths were chosen (they are not tested). In percent."""
    runs = pd.read_csv(path)
    for column in runs.columns[runs.columns.str.endswith("_accuracy")]:
        runs[column] *= 100
    compared = runs.test_accuracy.notna()
    return runs[compared], runs[~compared]


def wide(compared: pd.DataFrame, column: str = "test_accuracy") -> pd.DataFrame:
    """A row a number of images and a seed, a column a method."""
    return compared.pivot_table(index=["samples", "seed"], columns="method", values=column)


def gains(compared: pd.DataFrame, column: str = "test_accuracy") -> pd.DataFrame:
    """Accuracy minus that without regularisation of the same seed, in points."""
    found = wide(compared, column)
    return found.sub(found.pop("none"), axis=0)


def spread(values: pd.Series, sign: str = "") -> str:
    """Mean and standard deviation."""
    return f"{values.mean():{sign}.2f} ± {values.std():.2f}"


def table(compared: pd.DataFrame) -> pd.DataFrame:
    """Accuracy of each method at each number of images, and how often it is above that without regularisation."""
    accuracies, apart = wide(compared), gains(compared)
    rows = []
    for samples, part in compared.groupby("samples"):
        for method, name in NAMES.items():
            mine = part[part.method == method]
            if mine.empty:
                continue
            row = {
                "images": f"{samples:,}",
                "method": name,
                "strength": f"{mine.strength.iloc[0]:g}" if method != "none" else "–",
                "test accuracy, %": spread(accuracies.loc[samples, method]),
                "minus none": "–",
                "better": "–",
                "training loss": f"{mine.train_loss.mean():.2g}",
            }
            if method != "none":
                found = apart.loc[samples, method]
                row |= {"minus none": spread(found, "+"), "better": f"{(found > 0).sum()} of {len(found)}"}
            rows.append(row)
    return pd.DataFrame(rows)


def last_table(compared: pd.DataFrame) -> pd.DataFrame:
    """The same for the last network of each run: the difference to none at each number of images."""
    accuracies, apart = (f(compared, "last_test_accuracy") for f in (wide, gains))
    rows = []
    for samples in compared.samples.unique():
        row = {"images": f"{samples:,}", "none, %": spread(accuracies.loc[samples, "none"])}
        row |= {f"{NAMES[method]} minus none": spread(apart.loc[samples, method], "+") for method in REGULARISED}
        rows.append(row)
    return pd.DataFrame(rows)


def strengths(choosing: pd.DataFrame) -> pd.DataFrame:
    """Mean validation accuracy at each strength; the best of a method and a number of images is bold."""
    means = choosing.pivot_table(index=["method", "strength"], columns="samples", values="valid_accuracy")
    rows = []
    for method, name in NAMES.items():
        mine = means.loc[method].sort_index()
        best = mine.idxmax()  # of equal ones the least, as in run.py
        for strength, values in mine[::-1].iterrows():
            row = {"method": name, "strength": f"{strength:g}" if method != "none" else "–"}
            for samples, value in values.items():
                bold = method != "none" and strength == best[samples]
                row[f"{samples:,} images"] = f"**{value:.1f}**" if bold else f"{value:.1f}"
            rows.append(row)
    return pd.DataFrame(rows)


def lines(axes: Axes, found: pd.DataFrame, methods: list[str]) -> None:
    """A line a method: means over seeds, bars of one standard deviation; a little apart, so that bars are seen."""
    for place, method in enumerate(NAMES):
        if method not in methods:
            continue
        groups, mine = found[method].groupby("samples"), look(place)
        middle = groups.mean()
        axes.errorbar(
            middle.index * 1.035 ** (place - 2), middle, groups.std(), label=NAMES[method], color=mine.colour,
            linestyle=mine.dash, marker=mine.marker, elinewidth=0.8, capsize=1.6,
        )  # fmt: skip


def figure(compared: pd.DataFrame) -> Figure:
    """Accuracy over the number of images on the left; how far it is from that without regularisation on the right."""
    sizes = sorted(compared.samples.unique())
    with style():
        made = Figure(figsize=(WIDTH, 3.0), layout="constrained")
        left, right = made.subplots(1, 2)
        lines(left, wide(compared), list(NAMES))
        right.axhline(0, color=GREY, linewidth=0.9)
        lines(right, gains(compared), REGULARISED)
        for axes in (left, right):
            axes.set_xscale("log")
            axes.set_xticks(sizes, [f"{size:,}" for size in sizes])
            axes.xaxis.set_minor_locator(NullLocator())
            axes.set_xlabel("training images")
        left.set_ylabel("test accuracy, %")
        right.set_ylabel("minus none, points")
        left.legend(loc="lower right")
    return made


def main() -> None:
    results, out = folders(__doc__, HERE)
    compared, choosing = read(results / "runs.csv")
    cluttered, choosing_cluttered = read(results / "cluttered" / "runs.csv")
    tables = {
        "table": table(compared),
        "table-last": last_table(compared),
        "table-strengths": strengths(choosing),
        "table-longer": table(read(results / "longer" / "runs.csv")[0]),
        "table-stronger": table(read(results / "stronger" / "runs.csv")[0]),
        "table-cluttered": table(cluttered),
        "table-cluttered-strengths": strengths(choosing_cluttered),
    }
    publish(tables, {"figure": figure(compared), "cluttered": figure(cluttered)}, out)


if __name__ == "__main__":
    main()
