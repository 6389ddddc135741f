"""The tables and figures of this experiment, from what ``run.py`` wrote.

python experiments/shrinknets_regression/figure.py [--results DIR] [--out DIR]
"""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.experiment import folders, publish
from analysis.style import GREY, PALETTE, WIDTH, look, style

HERE = Path(__file__).parent
SHARES = np.linspace(0, 0.95, 20)
AT = (0.25, 0.5, 0.75, 0.9)  # of the tables
SWITCHES, GROUPS = "ShrinkNets, p = 2", "group sparsity, proximal"  # are compared seed by seed
NONE = "none"  # no channel is killed


def read(path: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The runs at the rate and ratio of all sets; and those of the search, with these among them."""
    runs = pd.read_csv(path)
    rate, ratio = runs.rate.mode()[0], runs.weight_ratio.mode()[0]
    main = (runs.rate == rate) & (runs.weight_ratio.isna() | (runs.weight_ratio == ratio))
    search = runs[runs.set.isin(runs[~main].set) & runs.side.isin(runs[~main].side)]
    return runs[main], search


def best_of(mine: pd.DataFrame, loss: str, shares: Any = SHARES) -> pd.DataFrame:
    """One row a seed, one column a share: the loss of the best run with at least that share of dead columns.

    The best by the validation loss, so that the test's tells nothing of it; nan where no strength reaches the share.
    """
    prefix = "refit_" if loss.startswith("refit_") else ""
    rows = {}
    for seed, runs in mine.groupby("seed"):
        ordered = runs.sort_values(f"{prefix}valid_loss", kind="stable")
        chosen = [ordered[ordered.dead >= share - 1e-9][loss] for share in shares]
        rows[seed] = [values.iloc[0] if len(values) else np.nan for values in chosen]
    return pd.DataFrame.from_dict(rows, orient="index", columns=list(shares))


def linear(runs: pd.DataFrame) -> list[str]:
    """The sets with several targets, which have been fitted again."""
    return list(dict.fromkeys(runs[runs.refit_train_loss.notna()].set))


def table(runs: pd.DataFrame, loss: str, sets: list[str]) -> pd.DataFrame:
    """Best-of losses, means over seeds; the last columns compare two sides seed by seed."""
    made = []
    for name in sets:
        mine = runs[runs.set == name]
        found = {side: best_of(part, loss, AT) for side, part in mine.groupby("side", sort=False)}
        for share in AT:
            row = {"set": name, "dead columns, at least": f"{share:.0%}"}
            row |= {side: text(values[share], 3) for side, values in found.items()}
            apart = (found[SWITCHES][share] - found[GROUPS][share]).dropna()
            whole = len(apart) == len(found[SWITCHES])
            row["p = 2 minus proximal"] = spread(apart, 3) if whole else "–"
            row["p = 2 better"] = f"{(apart < 0).sum()} of {len(apart)}" if whole else "–"
            made.append(row)
    return pd.DataFrame(made)


def text(values: pd.Series, digits: int) -> str:
    """The mean; a dash where a seed has no value."""
    return f"{values.mean():.{digits}f}" if values.notna().all() else "–"


def spread(values: pd.Series, digits: int, sign: str = "+") -> str:
    """Mean ± standard deviation over seeds."""
    middle = round(values.mean(), digits) + 0.0  # no minus before a zero
    return f"{middle:{sign}.{digits}f} ± {values.std():.{digits}f}"


def search_table(search: pd.DataFrame) -> pd.DataFrame:
    """Best-of test losses at other learning rates and other ratios of lambda_2 to lambda."""
    made = []
    for (side, rate, ratio), part in search.groupby(["side", "rate", "weight_ratio"], sort=False, dropna=False):
        found = best_of(part, "test_loss", AT)
        row = {"side": side, "rate": f"{rate:g}", "lambda_2 over lambda": "–" if np.isnan(ratio) else f"{ratio:g}"}
        made.append(row | {f"{share:.0%} dead": text(found[share], 3) for share in AT})
    return pd.DataFrame(made).sort_values(["side", "lambda_2 over lambda", "rate"])


def against_none(removal: pd.DataFrame) -> pd.DataFrame:
    """For each run with a killing rule what it has beside the same run without: loss, and share of the cost."""
    keys = ["set", "strength", "seed"]
    none = removal[removal.rule == NONE][[*keys, "test_loss", "cost"]]
    found = removal.merge(none, on=keys, suffixes=("", "_none"), validate="many_to_one")
    found["apart"] = found.test_loss - found.test_loss_none
    found["share"] = 100 * found.cost / found.cost_none
    return found


def removal_table(removal: pd.DataFrame) -> pd.DataFrame:
    """One row a set, strength and rule."""
    made = []
    for (name, strength, rule), part in against_none(removal).groupby(["set", "strength", "rule"], sort=False):
        made.append(
            {
                "set": name,
                "strength": f"{strength:g}",
                "rule": rule,
                "test loss": spread(part.test_loss, 3, ""),
                "minus that without removal": "–" if rule == NONE else spread(part.apart, 4),
                "dead columns, %": f"{100 * part.dead.mean():.0f}",
                "cost, % of that without": f"{part.share.mean():.0f}",
            }
        )
    return pd.DataFrame(made)


def trade_off(axes: Axes, mine: pd.DataFrame, loss: str) -> None:
    """The best-of curves of all sides; the curves end where a seed has no run with so many dead columns."""
    for place, (side, part) in enumerate(mine.groupby("side", sort=False)):
        found = best_of(part, loss)
        middle, deviation = found.mean(skipna=False), found.std(skipna=False)
        each = look(place)
        axes.fill_between(
            100 * SHARES, middle - deviation, middle + deviation, color=each.colour, alpha=0.13, linewidth=0
        )
        axes.plot(
            100 * SHARES, middle, color=each.colour, linestyle=each.dash, marker=each.marker, markevery=2, label=side
        )
    axes.set_xlim(0, 100)
    axes.set_ylim(0, 1.05)


def curves(runs: pd.DataFrame, loss: str, sets: list[str], label: str) -> Figure:
    """One panel a set."""
    with style():
        rows = (len(sets) + 2) // 3
        made = Figure(figsize=(WIDTH, 0.4 + 2.1 * rows), layout="constrained")
        places = made.subplots(rows, min(3, len(sets)), squeeze=False)
        for axes, name in zip(places.flat, sets, strict=False):
            mine = runs[runs.set == name]
            trade_off(axes, mine, loss)
            kind = "linear" if name in linear(runs) else "logistic"
            axes.set_title(f"{name}\n{kind}, {mine['columns'].iloc[0]} columns")
        for axes in places[-1]:
            axes.set_xlabel("dead columns, %, at least")
        for axes in places[:, 0]:
            axes.set_ylabel(label)
        made.legend(*places[0][0].get_legend_handles_labels(), loc="outside upper center", ncols=4)
    return made


def removal_figure(removal: pd.DataFrame) -> Figure:
    """S's figure 2: for each set the difference in loss on the left, the cost on the right."""
    found = against_none(removal)
    found = found[found.rule != NONE]
    rules = list(dict.fromkeys(found.rule))
    names = [rule.replace("sign variance, g = ", "g =\n").replace("sign change", "sign\nchange") for rule in rules]
    sets, strengths = list(dict.fromkeys(found.set)), sorted(found.strength.unique())
    with style():
        made = Figure(figsize=(WIDTH, 0.6 + 1.6 * len(sets)), layout="constrained")
        places = made.subplots(len(sets), 2, squeeze=False, sharex=True)
        for (left, right), name in zip(places, sets, strict=True):
            for place, strength in enumerate(strengths):
                part = found[(found.set == name) & (found.strength == strength)].groupby("rule")
                at = np.arange(len(rules)) + 0.16 * (place - (len(strengths) - 1) / 2)
                for axes, column in ((left, "apart"), (right, "share")):
                    middle, deviation = part[column].mean()[rules], part[column].std()[rules]
                    axes.errorbar(
                        at, middle, deviation, linestyle="none", marker="os^"[place % 3], color=PALETTE[place],
                        elinewidth=0.8, capsize=2, label=f"strength {strength:g}",
                    )  # fmt: skip
            left.axhline(0, color=GREY, linewidth=0.9, linestyle=(0, (4, 2)), label="no removal")
            right.axhline(100, color=GREY, linewidth=0.9, linestyle=(0, (4, 2)))
            right.set_ylim(0, 108)
            left.set_title(name, loc="left")
            left.set_ylabel("test loss, difference")
            right.set_ylabel("cost, %")
            for axes in (left, right):
                axes.set_xticks(np.arange(len(rules)), names)
        for axes in places[-1]:
            axes.set_xlabel("killing rule (sign variance: its g)")
        made.align_ylabels(places)
        made.legend(*places[0][0].get_legend_handles_labels(), loc="outside upper center", ncols=3)
    return made


def main() -> None:
    results, out = folders(__doc__, HERE)
    runs, search = read(results / "runs.csv")
    removal = pd.read_csv(results / "removal.csv")
    sets = list(dict.fromkeys(runs.set))
    tables = {
        "table": table(runs, "test_loss", sets),
        "table-train": table(runs, "train_loss", sets),
        "table-refit": table(runs, "refit_test_loss", linear(runs)),
        "table-search": search_table(search),
        "table-removal": removal_table(removal),
    }
    figures = {
        "figure": curves(runs, "test_loss", sets, "test loss"),
        "refit": curves(runs, "refit_test_loss", linear(runs), "test loss, fitted again"),
        "removal": removal_figure(removal),
    }
    publish(tables, figures, out)


if __name__ == "__main__":
    main()
