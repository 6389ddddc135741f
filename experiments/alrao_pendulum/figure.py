"""The table and the figure of this experiment, from what ``run.py`` wrote.

python experiments/alrao_pendulum/figure.py [--results DIR] [--out DIR]
"""

from pathlib import Path

import matplotlib as mpl
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.experiment import folders, publish
from analysis.style import PALETTE, WIDTH, style

HERE = Path(__file__).parent
GOOD = {"pendulum": -372.0, "lunar_lander": 188.0}  # what W's best SGD returns (table 2.1)
COLOURS = {"alrao": PALETTE[0], "alrao mean": PALETTE[5], "adam": PALETTE[1]}
NAMES = {"alrao": "Alrao", "alrao mean": "Alrao, mixture's mean", "adam": "Adam, default"}


def sides(runs: pd.DataFrame) -> list[str]:
    """Alrao, Adam, then SGD by its rate."""
    rated = runs[runs.method == "sgd"].sort_values("lr")
    return [side for side in COLOURS if side in set(runs.side)] + list(rated.side.unique())


def name(side: str) -> str:
    """What a side is called."""
    return NAMES.get(side) or f"SGD {float(side.split()[1]):g}"


def colour(side: str, among: list[str]) -> str:
    """Its own, or for SGD the darker green the higher the rate."""
    if side in COLOURS:
        return COLOURS[side]
    plain = [each for each in among if each not in COLOURS]
    return mpl.colors.to_hex(mpl.colormaps["YlGn"](0.3 + 0.7 * plain.index(side) / max(1, len(plain) - 1)))


def table(runs: pd.DataFrame, validation: pd.DataFrame) -> pd.DataFrame:
    """One row a side: mean and deviation over seeds, of the runs that did not diverge."""
    rows = []
    for side in sides(runs):
        mine = runs[runs.side == side]
        whole, good = mine[~mine.failed], GOOD[mine.environment.iloc[0]]
        found = whole.test_return
        curves = validation[validation.side == side]
        reached = curves[curves["return"] >= good].groupby("seed").episode.min()
        rows.append(
            {
                "side": name(side),
                "runs": f"{len(mine)}",
                "diverged": f"{mine.failed.sum()}",
                "test return": f"{found.mean():.0f} ± {found.std():.0f}" if len(found) > 1 else "–",
                "worst": f"{found.min():.0f}" if len(found) else "–",
                "best": f"{found.max():.0f}" if len(found) else "–",
                f"validation above {good:.0f}": f"{len(reached)} of {len(mine)}",
                "first after (mean episodes)": f"{reached.mean():.0f}" if len(reached) else "–",
                "best validation": f"{whole.validation_return.mean():.0f}" if len(found) else "–",
                "last validation": f"{last(curves):.0f}" if len(found) == len(mine) else "–",
                "later below it again, %": again(curves, good),
                "units lost": f"{mine.lost.mean():.1f}" if side.startswith("alrao") else "–",
            }
        )
    return pd.DataFrame(rows)


def again(curves: pd.DataFrame, good: float) -> str:
    """Of the validations after the first good one of a run, how many are not good."""
    curves = curves.sort_values("episode")
    met = (curves["return"] >= good).groupby(curves.seed).cumsum() > 0
    first = met & ~met.groupby(curves.seed).shift(fill_value=False)
    later = curves[met & ~first]["return"]
    return f"{100 * (later < good).mean():.0f}" if len(later) else "–"


def last(curves: pd.DataFrame) -> float:
    """The mean over runs of the last validation of each."""
    return float(curves.sort_values("episode").groupby("seed")["return"].last().mean())


def curves(axes: Axes, runs: pd.DataFrame, validation: pd.DataFrame) -> None:
    """The mean over seeds of the validation return, as long as none of them has diverged."""
    among = sides(runs)
    for side in reversed(among):
        mine = validation[validation.side == side]
        seeds = runs[runs.side == side].seed.nunique()
        by_episode = mine.groupby("episode")["return"].agg(["mean", "count"])
        whole = by_episode[by_episode["count"] == seeds]
        told = name(side) + ("" if len(whole) > 1 else " (diverged)")
        thick = 2.0 if side == "alrao" else 1.1
        dash = (0, (4, 1.5)) if side == "alrao mean" else "-"
        axes.plot(whole.index, whole["mean"], color=colour(side, among), linewidth=thick, linestyle=dash, label=told)
    axes.set(xlabel="episodes", ylabel="validation return, mean over seeds")


def tests(axes: Axes, runs: pd.DataFrame) -> None:
    """Each run's test return by SGD's rate; the other sides as lines, with their lowest and highest run."""
    plain = runs[runs.method == "sgd"]
    went = runs[~runs.failed]
    for side in (each for each in sides(runs) if each in COLOURS):
        found = went[went.side == side].test_return
        dash = (0, (4, 1.5)) if side == "alrao mean" else "-"
        axes.axhline(found.mean(), color=COLOURS[side], linestyle=dash)
        axes.axhspan(found.min(), found.max(), color=COLOURS[side], alpha=0.15, linewidth=0)
    whole = plain[~plain.failed]
    axes.plot(whole.lr, whole.test_return, "o", color=PALETTE[2], markerfacecolor="none", label="SGD, a run")
    means = whole.groupby("lr").test_return.mean()
    axes.plot(means.index, means, color=PALETTE[2], label="SGD, mean")
    gone = plain[plain.failed].groupby("lr").size()
    low = went.test_return.min() - 150
    axes.plot(gone.index, [low] * len(gone), "x", color="black", label="diverged (number of runs)")
    for rate, number in gone.items():
        axes.annotate(f"{number}", (float(str(rate)), low), (4, -2), textcoords="offset points", fontsize=6.5)
    axes.set_xscale("log")
    axes.set(xlabel="rate of SGD", ylabel="test return")
    axes.legend(loc="center right")


def figure(runs: pd.DataFrame, validation: pd.DataFrame) -> Figure:
    """A row for each environment: learning curves, and test returns by rate."""
    found = list(runs.environment.unique())
    with style():
        made = Figure(figsize=(WIDTH, 0.5 + 2.7 * len(found)), layout="constrained")
        for row, environment in zip(made.subplots(len(found), 2, squeeze=False), found, strict=True):
            chosen = runs[runs.environment == environment]
            curves(row[0], chosen, validation[validation.environment == environment])
            tests(row[1], chosen)
        handles, labels = made.axes[0].get_legend_handles_labels()
        made.legend(handles[::-1], labels[::-1], loc="outside lower center", ncols=5)
    return made


def main() -> None:
    results, out = folders(__doc__, HERE)
    runs, validation = (pd.read_csv(results / f"{each}.csv") for each in ("runs", "validation"))
    tables = {}
    for environment, mine in runs.groupby("environment", sort=False):
        label = f"table-{environment}" if tables else "table"
        tables[label] = table(mine, validation[validation.environment == environment])
    publish(tables, {"figure": figure(runs, validation)}, out)


if __name__ == "__main__":
    main()
