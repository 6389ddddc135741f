"""The tables and the figure of this experiment, from what ``experiments/prune.py`` wrote.

python experiments/pruning_pareto/figure.py [--results DIR] [--out DIR]
"""

from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from analysis.experiment import folders, publish
from analysis.style import GREY, PALETTE, WIDTH, style

HERE = Path(__file__).parent
INPUTS, CLASSES = 784, 10
LOW = 80.0  # percent: where the figure begins
SCALINGS = {"uniform": "uniform", "sqrt_log": "1/(√k log k)", "inverse": "1/k"}
PENALTIES = {"group_lasso": "group Lasso", "l2": "L2", "l1": "L1"}
SCALED = {f"scalp {p} {s}": f"ScaLP, {P}, {S}" for p, P in PENALTIES.items() for s, S in SCALINGS.items()}
OTHERS = {
    "bn_lasso": "BN-Lasso",
    "shrinknets": "ShrinkNets",
    "norm l1": "L1",
    "norm group_lasso": "group Lasso",
    "norm sparse_group_lasso": "sparse group Lasso",
    "norm reversed_group_lasso": "reversed group Lasso",
}
BASELINE = "baseline"
METHODS = {BASELINE: "baseline, not pruned", **SCALED, **OTHERS}
STEPS = {
    "norm l1": "norm l1 subgradient",
    "norm group_lasso": "norm group_lasso subgradient",
    "scalp l1 sqrt_log proximal": "scalp l1 sqrt_log",
    "scalp group_lasso sqrt_log proximal": "scalp group_lasso sqrt_log",
}
"""Which runs with proximal steps belong to which with the subgradient."""
UNITS, SMALLER = 1000, 300
"""Of each hidden layer at the start: of the source's sFC, and of a smaller network."""
REPORTED = {
    BASELINE: "98.77, 1.8M",
    "bn_lasso": "98.10, 364K",
    "norm l1": "98.72, 1.8M",
    "norm group_lasso": "98.71, 1.8M",
    "scalp l2 sqrt_log": "98.46, 238K",
    "scalp l2 inverse": "98.43, 134K",
    "scalp group_lasso uniform": "98.65, 571K",
    "scalp group_lasso sqrt_log": "98.56, 147K",
}
"""W table 3.1, the sFC on MNIST: accuracy in %, parameters."""


def read(path: Path) -> pd.DataFrame:
    """All runs, with accuracy in percent and the parameters of a plain network of their widths."""
    runs = pd.read_csv(path)
    assert (runs.state == "done").all(), "a run was not finite"
    # Weights and biases. BatchNorm and switches are not counted: they fold into the layers beside them.
    first, second = runs["first"], runs["second"]
    runs["parameters"] = (INPUTS + 1) * first + (first + 1) * second + (second + 1) * CLASSES
    runs["accuracy"] = 100 * runs.test_accuracy
    return runs


def points(runs: pd.DataFrame) -> pd.DataFrame:
    """Mean, least and greatest of each method and strength."""
    groups = runs.groupby(["method", "strength"])
    found = groups[["parameters", "accuracy", "first", "second"]].agg(["mean", "min", "max"])
    found.columns = [name if kind == "mean" else f"{name}_{kind}" for name, kind in found.columns]
    found["runs"] = groups.size()
    return found.reset_index()


def front(found: pd.DataFrame) -> pd.Series:
    """Is no other point both as small and as accurate, on average?"""
    flags = []
    for point in found.itertuples():
        as_good = (found.parameters <= point.parameters) & (found.accuracy >= point.accuracy)
        flags.append(not (as_good & ((found.parameters < point.parameters) | (found.accuracy > point.accuracy))).any())
    return pd.Series(flags, index=found.index)


def count(number: float) -> str:
    """A number of parameters, short."""
    return f"{number / 1e6:.3g}M" if number >= 1e6 else f"{number / 1e3:.3g}K"


def cells(point: Any) -> dict[str, str]:
    """Accuracy, parameters and units."""
    return {
        "test accuracy, %": f"{point.accuracy:.2f} ({point.accuracy_min:.2f} to {point.accuracy_max:.2f})",
        "parameters": f"{count(point.parameters)} ({count(point.parameters_min)} to {count(point.parameters_max)})",
        "units": f"{point.first:.0f} + {point.second:.0f}",
        "runs": str(point.runs),
    }


def table(found: pd.DataFrame) -> pd.DataFrame:
    """One row for each method and strength; those on the front are marked."""
    compared = found[found.method.isin(METHODS)]
    best = front(compared)
    order = {method: place for place, method in enumerate(METHODS)}
    rows = []
    for point in compared.sort_values(["method", "strength"], key=lambda m: m.replace(order)).itertuples():
        mark = "yes" if best[point.Index] else ""
        rows.append({"method": METHODS[point.method], "λ": f"{point.strength:g}", **cells(point), "on the front": mark})
    return pd.DataFrame(rows)


def best_table(found: pd.DataFrame) -> pd.DataFrame:
    """W's table 3.1: each method at its most accurate strength."""
    rows = []
    for method, title in METHODS.items():
        mine = found[found.method == method]
        if mine.empty:
            continue
        point = next(mine.nlargest(1, "accuracy").itertuples())
        reported = {"W, sFC on MNIST": REPORTED.get(method, "–")}
        rows.append({"method": title, "λ": f"{point.strength:g}", **cells(point), **reported})
    return pd.DataFrame(rows)


def steps_table(found: pd.DataFrame) -> pd.DataFrame:
    """Proximal steps against the subgradient, at equal strengths."""
    rows = []
    for proximal, other in STEPS.items():
        both = found[found.method == proximal].merge(found[found.method == other], on="strength", suffixes=("_p", "_s"))
        for pair in both.itertuples():
            title = METHODS.get(proximal) or METHODS[other]
            rows.append(
                {
                    "method": title,
                    "λ": f"{pair.strength:g}",
                    "proximal: test accuracy, %": f"{pair.accuracy_p:.2f}",
                    "parameters": count(pair.parameters_p),
                    "units": f"{pair.first_p:.0f} + {pair.second_p:.0f}",
                    "subgradient: test accuracy, %": f"{pair.accuracy_s:.2f}",
                    "its parameters": count(pair.parameters_s),
                    "its units": f"{pair.first_s:.0f} + {pair.second_s:.0f}",
                }
            )
    return pd.DataFrame(rows)


def starts_table(smaller: pd.DataFrame, larger: pd.DataFrame) -> pd.DataFrame:
    """How many parameters are left from the larger start, over those from the smaller one, at each strength."""
    both = smaller.merge(larger, on=["method", "strength"], suffixes=("_s", "_l"))
    rows = []
    for method, title in METHODS.items():
        pairs = both[both.method == method].sort_values("strength")
        if method != BASELINE and len(pairs) == 3:
            cells = [
                f"{pair.parameters_l / pair.parameters_s:.2f} ({count(pair.parameters_l)} / {count(pair.parameters_s)})"
                for pair in pairs.itertuples()
            ]
            rows.append({"method": title, **dict(zip(("weakest λ", "middle", "strongest"), cells, strict=True))})
    return pd.DataFrame(rows)


def tuning_table(path: Path) -> pd.DataFrame:
    """Methods without scaling at each rate: validation accuracy in percent, and units."""
    runs = pd.read_csv(path)
    rows = []
    for (method, strength), part in runs.groupby(["method", "strength"], sort=False):
        row = {"method": METHODS[method], "λ": f"{strength:g}"}
        for run in part.itertuples():
            row[f"rate {run.rate:g}"] = f"{100 * run.valid_accuracy:.1f} ({run.first} + {run.second})"
        rows.append(row)
    return pd.DataFrame(rows)


def looks() -> dict[str, dict[str, Any]]:
    """ScaLP: a colour for each scaling, a dash and a marker for each penalty. The others: one of each."""
    found: dict[str, dict[str, Any]] = {}
    dashes = ("-", (0, (5, 1.5)), (0, (1, 1.2)))
    for row, penalty in enumerate(PENALTIES):
        for column, scaling in enumerate(SCALINGS):
            found[f"scalp {penalty} {scaling}"] = {
                "color": PALETTE[column], "linestyle": dashes[row], "marker": "os^"[row],
            }  # fmt: skip
    for place, method in enumerate(OTHERS):
        colour = (PALETTE[3], PALETTE[4], *PALETTE[5:], PALETTE[1])[place]
        found[method] = {"color": colour, "linestyle": dashes[place % 3], "marker": "DvPX*h"[place]}
    return found


def line(axes: Axes, points: pd.DataFrame, title: str, look: dict[str, Any]) -> None:
    """One method, from strong to weak; bars from the least to the greatest, both ways."""
    if points.empty:
        return
    mine = points.sort_values("parameters")
    x, y = mine.parameters, mine.accuracy
    bars = {
        "xerr": [x - mine.parameters_min, mine.parameters_max - x],
        "yerr": [y - mine.accuracy_min, mine.accuracy_max - y],
    }
    axes.errorbar(
        x, y, **bars, label=title, elinewidth=0.6, capsize=1.2, capthick=0.6, linewidth=1.0, markersize=3.6, **look
    )


def figure(found: pd.DataFrame) -> Figure:
    """W's figure 3.5: ScaLP on the left, the others on the right; the front and the baseline in both."""
    compared = found[found.method.isin(METHODS) & (found.method != BASELINE)]
    best = compared[front(compared)].sort_values("parameters")
    base = found[found.method == BASELINE]
    with style():
        made = Figure(figsize=(WIDTH, 4.2), layout="constrained")
        places = made.subplots(1, 2, sharex=True, sharey=True)
        for axes, methods in zip(places, (SCALED, OTHERS), strict=True):
            axes.plot(best.parameters, best.accuracy, color=GREY, linewidth=4, alpha=0.3, label="front of all methods",
                      solid_capstyle="round")  # fmt: skip
            line(axes, base, METHODS[BASELINE], {"color": "black", "marker": "s", "linestyle": "none"})
            for method, title in methods.items():
                line(axes, found[found.method == method], title, looks()[method])
            low = found[found.method.isin(methods) & (found.accuracy < LOW)]
            if len(low):
                note = "\n".join(
                    f"{methods[each.method]}: {count(each.parameters)}, {each.accuracy:.0f} %"
                    for each in low.itertuples()
                )
                place = {"xycoords": "axes fraction", "ha": "right", "va": "bottom"}
                white = {"facecolor": "white", "edgecolor": "none", "pad": 1.0}
                axes.annotate(f"below:\n{note}", (0.99, 0.03), fontsize=6.5, bbox=white, zorder=5, **place)
            axes.set_xscale("log")
            axes.set_xlabel("parameters left")
            handles, labels = axes.get_legend_handles_labels()
            lines = [handle[0] if isinstance(handle, ErrorbarContainer) else handle for handle in handles]  # no bars
            axes.legend(lines, labels, loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=2)
        shown = compared[compared.accuracy >= LOW]
        places[0].set_xlim(0.8 * shown.parameters_min.min(), 1.25 * base.parameters.max())
        places[0].set_ylim(LOW, base.accuracy_max.max() + 0.4)
        places[0].set_title("with scaling")
        places[1].set_title("other methods")
        places[0].xaxis.set_major_locator(FixedLocator([1e4, 3e4, 1e5, 3e5, 1e6]))
        places[0].xaxis.set_minor_locator(NullLocator())
        places[0].xaxis.set_major_formatter(FuncFormatter(lambda value, _: count(value)))
        places[0].set_ylabel("test accuracy, %")
    return made


def main() -> None:
    results, out = folders(__doc__, HERE)
    runs = read(results / "runs.csv")
    found = {units: points(runs[runs.units == units]) for units in (SMALLER, UNITS)}
    tables = {
        "table-300": table(found[SMALLER]),
        "table": table(found[UNITS]),
        "table-best": best_table(found[UNITS]),
        "table-starts": starts_table(found[SMALLER], found[UNITS]),
        "table-steps": steps_table(found[UNITS]),
        "table-tuning": tuning_table(results / "tuning" / "runs.csv"),
    }
    publish(tables, {"figure": figure(found[UNITS]), "figure-300": figure(found[SMALLER])}, out)


if __name__ == "__main__":
    main()
