"""The tables and the figure of this experiment, from what ``run.py`` wrote.

python experiments/maxmin/figure.py [--results DIR] [--out DIR]
"""

from pathlib import Path

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from analysis.experiment import folders, publish
from analysis.style import GREY, PALETTE, WIDTH, style

HERE = Path(__file__).parent
NAMES = {"relu": "ReLU", "maxmin": "MaxMin", "maxmin-wide": "MaxMin, as many filters"}
# B table 3.1, CIFAR-10, test accuracy in percent: parameters, MaxMin, ReLU. The first two as printed.
PUBLISHED = pd.DataFrame(
    [
        (15e3, 78.13, 74.44),
        (30e3, 73.81, 69.98),
        (60e3, 80.03, 77.01),
        (2e6, 81.68, 78.11),
        (5e6, 82.07, 79.48),
        (15e6, 82.69, 80.13),
        (45e6, 82.98, 80.41),
    ],
    columns=["size", "maxmin", "relu"],
)


def read(path: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The compared runs, all at one rate; and those of sizes that were tried at several rates. In percent."""
    runs = pd.read_csv(path)
    for part in ("valid", "test"):
        runs[f"{part}_accuracy"] *= 100
    equal = runs[runs.network != "maxmin-wide"]
    middle = equal[equal["size"] == equal.groupby("size").rate.nunique().idxmax()]
    best = middle.groupby("rate").valid_accuracy.mean().idxmax()
    tried = equal.groupby(["size", "network"]).rate.transform("nunique") > 1
    return runs[runs.rate == best], equal[tried]


def short(count: float) -> str:
    """A number of parameters: 15K, 2M."""
    return f"{count / 1000:g}K" if count < 1e6 else f"{count / 1e6:g}M"


def spread(values: pd.Series, digits: int = 2) -> str:
    """The mean, and the lowest and the highest over seeds."""
    return f"{values.mean():.{digits}f} ({values.min():.{digits}f} to {values.max():.{digits}f})"


def apart(runs: pd.DataFrame, network: str = "maxmin") -> pd.DataFrame:
    """Test accuracy with MaxMin minus that with ReLU: a row a size, a column a seed."""
    wide = runs.pivot_table(index="size", columns=["network", "seed"], values="test_accuracy")
    return (wide[network] - wide["relu"]).dropna(how="all")


def table(runs: pd.DataFrame) -> pd.DataFrame:
    """A row for each size; the last rows are MaxMin with as many filters."""
    rows = []
    for network in ("maxmin", "maxmin-wide"):
        for size, differences in apart(runs, network).iterrows():
            mine = {name: runs[(runs["size"] == size) & (runs.network == name)] for name in ("relu", network)}
            found = differences.dropna()
            row = {"parameters, about": short(size) if network == "maxmin" else f"{short(size)}, as many filters"}
            for name, part in mine.items():
                row[f"{NAMES[name] if name == 'relu' else 'MaxMin'}: parameters"] = f"{part.parameters.iloc[0]:,}"
                row[f"{NAMES[name] if name == 'relu' else 'MaxMin'}: filters"] = part.filters.iloc[0].replace(" ", ", ")
            row["ReLU: test accuracy, %"] = spread(mine["relu"].test_accuracy)
            row["MaxMin: test accuracy, %"] = spread(mine[network].test_accuracy)
            row["MaxMin minus ReLU"] = f"{found.mean():+.2f} ({found.min():+.2f} to {found.max():+.2f})"
            row["seeds"] = str(len(found))
            row["training loss: ReLU"] = f"{mine['relu'].train_loss.mean():.3f}"
            row["MaxMin"] = f"{mine[network].train_loss.mean():.3f}"
            rows.append(row)
    return pd.DataFrame(rows)


def search_table(search: pd.DataFrame) -> pd.DataFrame:
    """Validation accuracy at several rates."""
    rows = []
    for (size, network), part in search.groupby(["size", "network"], sort=False):
        rates = {f"rate {rate:g}": spread(each.valid_accuracy, 1) for rate, each in part.groupby("rate")}
        rows.append({"parameters, about": short(size), "network": NAMES[str(network)], **rates})
    return pd.DataFrame(rows).fillna("–")


def opposite_table(found: pd.DataFrame) -> pd.DataFrame:
    """For each layer of the ReLU network, before and after training: how near filters come to being opposite."""
    rows = []
    for layer, part in found.groupby("layer"):
        row = {"layer": str(layer), "filters": str(part.filters.iloc[0])}
        for when, mine in part.groupby("when", sort=False):
            row[f"{when}: mean"] = spread(mine["mean"], 3)
            row[f"{when}: lowest"] = f"{mine.least.min():.2f}"
        rows.append(row)
    return pd.DataFrame(rows)


def source_table() -> pd.DataFrame:
    """B table 3.1, with the differences."""
    return pd.DataFrame(
        {
            "B table 3.1: parameters, about": [short(size) for size in PUBLISHED["size"]],
            "ReLU, %": PUBLISHED.relu.map("{:.2f}".format),
            "MaxMin, %": PUBLISHED.maxmin.map("{:.2f}".format),
            "MaxMin minus ReLU": (PUBLISHED.maxmin - PUBLISHED.relu).map("{:+.2f}".format),
        }
    )


def with_bars(axes: Axes, x: pd.Series, found: pd.DataFrame, **look: object) -> None:
    """Means over seeds; bars from the lowest to the highest."""
    middle = found.mean(axis=1)
    axes.errorbar(
        x, middle, [middle - found.min(axis=1), found.max(axis=1) - middle], elinewidth=0.8, capsize=2, **look
    )


def figure(runs: pd.DataFrame) -> Figure:
    """Accuracy against parameters on the left; MaxMin minus ReLU, here and in B, on the right."""
    with style():
        made = Figure(figsize=(WIDTH, 2.9), layout="constrained")
        left, right = made.subplots(1, 2)
        for place, name in enumerate(("relu", "maxmin", "maxmin-wide")):
            mine = runs[runs.network == name]
            counts = mine.groupby("size").parameters.first()
            found = mine.pivot_table(index="size", columns="seed", values="test_accuracy")
            with_bars(left, counts, found, label=NAMES[name], color=PALETTE[place], marker="os^"[place])
        differences = apart(runs)
        with_bars(right, differences.index, differences, label="here, Fashion-MNIST", color=PALETTE[1], marker="s")
        right.plot(
            PUBLISHED["size"], PUBLISHED.maxmin - PUBLISHED.relu, color="black", linestyle=(0, (4, 2)), marker="D",
            markersize=3.5, label="B table 3.1, CIFAR-10",
        )  # fmt: skip
        right.axhline(0, color=GREY, linewidth=0.9)
        left.set(xscale="log", xlabel="parameters", ylabel="test accuracy, %")
        right.set(xscale="log", xlabel="parameters", ylabel="MaxMin minus ReLU, points")
        left.xaxis.set_major_locator(FixedLocator(sorted(runs["size"].unique())))
        left.xaxis.set_minor_locator(NullLocator())
        left.xaxis.set_major_formatter(FuncFormatter(lambda count, _: short(count)))
        left.legend(loc="lower right")
        right.legend(loc="best")
    return made


def main() -> None:
    results, out = folders(__doc__, HERE)
    runs, search = read(results / "runs.csv")
    tables = {
        "table": table(runs),
        "table-rates": search_table(search),
        "table-opposite": opposite_table(pd.read_csv(results / "opposite.csv")),
        "table-source": source_table(),
    }
    publish(tables, {"figure": figure(runs)}, out)


if __name__ == "__main__":
    main()
