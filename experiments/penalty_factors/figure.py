"""The tables and the figure of this experiment, from what ``run.py`` wrote.

python experiments/penalty_factors/figure.py [--results DIR] [--out DIR]
"""

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.experiment import folders, publish
from analysis.style import GREY, PALETTE, WIDTH, style

HERE = Path(__file__).parent
PENALTIES = {
    "l2": "L2",
    "l1": "L1",
    "group_lasso": "group Lasso",
    "reversed_group_lasso": "reversed group Lasso",
}
SIDES = {"usual": ("usual factors", PALETTE[1], "s"), "bayesian": ("Bayesian factors", PALETTE[0], "o")}
REPORTED = {
    "l2": ("88.00", "88.69", "88.25", "10^0.5"),
    "l1": ("88.36", "88.41", "87.48", "10^1"),
    "group_lasso": ("88.43", "88.67", "87.45", "10^2"),
    "reversed_group_lasso": ("88.04", "88.32", "85.49", "10^1.5"),
}
"""W table 4.2, the CVNN: best with usual factors, best with Bayesian ones, those at 1 / n, 1 / n over the best."""
BARS = ["valid", "accuracy", "parameters"]


def read(path: Path) -> pd.DataFrame:
    """All runs, with accuracies in percent. A run that was not finite counts as guessing."""
    runs = pd.read_csv(path)
    lost = runs.state != "done"
    runs["valid"] = (100 * runs.valid_accuracy).mask(lost, 10.0)
    runs["accuracy"] = (100 * runs.test_accuracy).mask(lost, 10.0)
    return runs


def points(runs: pd.DataFrame) -> pd.DataFrame:
    """Mean and standard deviation over seeds of each penalty, side and strength."""
    groups = runs[runs.factors.isin(SIDES)].groupby(["penalty", "factors", "exponent"])
    found = groups[BARS].mean().join(groups[BARS].std().add_suffix("_std"))
    found["strength"], found["runs"] = groups.strength.first(), groups.size()
    common = runs[runs.seed < found.runs.min()].groupby(["penalty", "factors", "exponent"])
    found = found.join(common[["valid", "accuracy"]].mean().add_suffix("_common"))
    found["widths"], found["rate"] = groups.widths.agg(" ".join), groups.rate.first()
    return found.reset_index()


def best(found: pd.DataFrame, penalty: str, side: str, by: str = "valid") -> pd.Series:
    """The strength with the best mean validation accuracy under those seeds that all strengths were run under.

    Of equal ones it is the largest.
    """
    mine = found[(found.penalty == penalty) & (found.factors == side)].sort_values("strength", ascending=False)
    return mine.loc[mine[f"{by}_common"].round(6).idxmax()]


def count(number: float) -> str:
    """A number of parameters, short."""
    return f"{number / 1e6:.3g}M" if number >= 1e6 else f"{number / 1e3:.3g}K"


def shown(point: pd.Series) -> str:
    """Accuracy with its spread, and what is left."""
    return f"{spread(point)} ({count(point.parameters)})"


def spread(point: pd.Series) -> str:
    """Test accuracy, and its standard deviation over seeds where there are several."""
    return f"{point.accuracy:.2f}" + (f" ± {point.accuracy_std:.2f}" if point.runs > 1 else "")


def comparison(found: pd.DataFrame) -> pd.DataFrame:
    """W's table 4.2."""
    rows = []
    for penalty, title in PENALTIES.items():
        usual, ours = best(found, penalty, "usual"), best(found, penalty, "bayesian")
        mine = found[(found.penalty == penalty) & (found.factors == "bayesian")]
        theory = mine.loc[mine.exponent.abs().idxmin()]
        assert theory.exponent == 0
        tested = best(found, penalty, "bayesian", "accuracy")
        reported = REPORTED[penalty]
        rows.append(
            {
                "penalty": title,
                "usual, best λ": shown(usual),
                "Bayesian, best λ": shown(ours),
                "Bayesian, λ_Th": shown(theory),
                "λ_Th / λ*": f"10^{-ours.exponent:g}",
                "λ_Th / λ*, by the test set": f"10^{-tested.exponent:g}",
                "best usual λ": f"10^{usual.exponent:g}",
                "W: usual, Bayesian, λ_Th": ", ".join(reported[:3]),
                "W: λ_Th / λ*": reported[3],
            }
        )
    return pd.DataFrame(rows)


def grid(found: pd.DataFrame) -> pd.DataFrame:
    """All strengths of all sides."""
    rows = []
    for penalty, title in PENALTIES.items():
        for side, (name, _, _) in SIDES.items():
            for point in found[(found.penalty == penalty) & (found.factors == side)].sort_values("exponent").iloc:
                widths = np.mean([[int(each) for each in run.split("/")] for run in point.widths.split()], axis=0)
                rows.append(
                    {
                        "penalty": title,
                        "factors": name.removesuffix(" factors"),
                        "λ": f"10^{point.exponent:g}{' / n' if side == 'bayesian' else ''}",
                        "validation, %": f"{point.valid:.2f}",
                        "test, %": spread(point),
                        "parameters": count(point.parameters),
                        "units": " + ".join(f"{each:.0f}" for each in widths),
                        "runs": str(point.runs),
                    }
                )
    return pd.DataFrame(rows)


def tuning(runs: pd.DataFrame) -> pd.DataFrame:
    """Validation accuracy in percent at each learning rate, and parameters."""
    rows = []
    for (penalty, factors), part in runs.fillna({"penalty": ""}).groupby(["penalty", "factors"], sort=False):
        name = PENALTIES.get(penalty, "none")
        row = {"penalty": name, "factors": SIDES[factors][0].removesuffix(" factors") if factors in SIDES else ""}
        for run in part.itertuples():
            row[f"rate {run.rate:g}"] = f"{run.valid:.1f} ({count(run.parameters)})"
        rows.append(row)
    return pd.DataFrame(rows)


def curve(axes: Axes, mine: pd.DataFrame, column: str, side: str) -> None:
    """One side: means, with bars of one standard deviation."""
    title, colour, marker = SIDES[side]
    mine = mine.sort_values("strength")
    axes.errorbar(
        mine.strength, mine[column], yerr=mine[f"{column}_std"], label=title, color=colour, marker=marker,
        markersize=3.4, linewidth=1.1, elinewidth=0.6, capsize=1.2, capthick=0.6,
    )  # fmt: skip


def figure(found: pd.DataFrame, runs: pd.DataFrame) -> Figure:
    """W's figure 4.1: accuracy over lambda, and what is left below it."""
    bare = runs[runs.factors == "none"]
    theory = found[(found.factors == "bayesian") & (found.exponent == 0)].strength.iloc[0]
    with style():
        made = Figure(figsize=(WIDTH, 3.6), layout="constrained")
        places = made.subplots(2, len(PENALTIES), sharex=True, sharey="row")
        for (accuracy, size), (penalty, title) in zip(places.T, PENALTIES.items(), strict=True):
            for axes, column, level in ((accuracy, "accuracy", bare.accuracy), (size, "parameters", bare.parameters)):
                axes.axvline(theory, color=GREY, linewidth=1.0)
                axes.axhline(level.mean(), color="black", linewidth=0.8, linestyle=(0, (1, 1.5)), label="no penalty")
                for side in SIDES:
                    mine = found[(found.penalty == penalty) & (found.factors == side)]
                    curve(axes, mine, column, side)
            chosen = best(found, penalty, "bayesian")
            accuracy.plot(chosen.strength, chosen.accuracy, "o", markersize=8, fillstyle="none", color=PALETTE[0])
            chosen = best(found, penalty, "usual")
            accuracy.plot(chosen.strength, chosen.accuracy, "s", markersize=8, fillstyle="none", color=PALETTE[1])
            accuracy.set_title(title)
            size.set_yscale("log")
            size.set_xscale("log")
            size.set_xlabel("λ")
        places[0, 0].set_ylabel("test accuracy, %")
        places[0, 0].set_ylim(LOW, found.accuracy.max() + 1)
        beside = {"xytext": (-2, 2), "textcoords": "offset points", "ha": "right", "color": GREY}
        places[0, 0].annotate("1 / n", (theory, LOW), **beside)
        places[1, 0].set_ylabel("parameters left")
        made.legend(*places[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return made


LOW = 70.0
"""Percent: where the figure begins."""


def main() -> None:
    results, out = folders(__doc__, HERE)
    runs = read(results / "runs.csv")
    found = points(runs)
    tables = {
        "table": comparison(found),
        "table-grid": grid(found),
        "table-tuning": tuning(read(results / "tuning" / "runs.csv")),
    }
    publish(tables, {"figure": figure(found, runs)}, out)
    bare = runs[runs.factors == "none"].accuracy
    print(f"no penalty: {bare.mean():.2f} ± {bare.std():.2f} %; figure from {LOW:g} % on")


if __name__ == "__main__":
    main()
