"""The tables and the figures of this experiment, from what ``run.py`` wrote.

python experiments/consensus/figure.py [--results DIR] [--out DIR]

Real ranks are drawn in where ``results/ranks.csv`` is, which ``ranks.py`` makes: one row for each run and step that was
measured, with the columns run, strategy (gossip or persyn), rho, variance, step and error (eps divided by the number of
coordinates). ``running.csv`` has the same columns for ranks that did not pause.
"""

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.experiment import folders, publish
from analysis.style import PALETTE, WIDTH, style

HERE = Path(__file__).parent
BLUE, ORANGE, GREEN = PALETTE[0], PALETTE[1], PALETTE[2]  # gossip and PerSyn have the colours of the source
NAMES = {"gossip": "GoSGD", "persyn": "PerSyn"}
PERIODS = 16  # drawn of PerSyn's, at most; what comes later is more of the same
RANKS = ["run", "strategy", "rho", "variance", "step", "error"]


def number(mean: float, error: float) -> str:
    """A mean with its standard error, to the digits that the error leaves."""
    digits = max(0, 1 - int(np.floor(np.log10(error)))) if error else 1
    return f"{mean:.{digits}f} ± {error:.{digits}f}" if error else f"{mean:.{digits}f}"


def agreement(averages: pd.DataFrame, steps: pd.DataFrame) -> pd.DataFrame:
    """What was drawn with noise beside its reference, in standard errors of their difference."""
    rows = []
    for facts in averages.itertuples():
        mine = steps[(steps.strategy == facts.strategy) & (steps.rho == facts.rho) & (steps.variance == facts.variance)]
        apart = mine[mine.reference > 0]
        z = (apart["mean"] - apart.reference) / np.hypot(apart.error, apart.reference_error)
        late = (facts.mean - facts.reference) / np.hypot(facts.error, facts.reference_error)
        whole = mine[mine.reference == 0]
        assert (whole["mean"] == 0).all(), "right after a mean all workers are equal"
        rows.append(
            {
                "strategy": NAMES[facts.strategy],
                "rho": f"{facts.rho:g}",
                "variance": f"{facts.variance}",
                "drawn": number(facts.mean, facts.error),
                "reference": number(facts.reference, facts.reference_error),
                "difference, se": f"{late:+.1f}",
                "single steps within 3 se, %": f"{100 * (np.abs(z) < 3).mean():.1f}",
            }
        )
    return pd.DataFrame(rows)


def comparison(levels: pd.DataFrame, averages: pd.DataFrame) -> pd.DataFrame:
    """Gossip against PerSyn for variance 1: averages, spread over time, another clock, as many messages."""
    columns = {}
    found = averages[averages.variance == 1].set_index(["rho", "strategy"])
    for facts in levels.itertuples():
        gossip, persyn = found.loc[(facts.rho, "gossip")], found.loc[(facts.rho, "persyn")]
        columns[f"{facts.rho:g}"] = {
            "PerSyn: mean": number(facts.persyn, 0.0),
            "PerSyn: highest": number(facts.persyn_highest, 0.0),
            "PerSyn: just before its mean is taken": number(facts.persyn_before, 0.0),
            "GoSGD: mean": number(facts.rounds, facts.rounds_error),
            "GoSGD: mean over PerSyn's mean": f"{facts.rounds / facts.persyn:.2f}",
            "GoSGD: mean over PerSyn's highest": f"{facts.rounds / facts.persyn_highest:.2f}",
            "GoSGD: steps above PerSyn's highest, %": f"{100 * gossip.above:.1f}",
            "GoSGD, one worker at a time: mean": number(facts.universal, facts.universal_error),
            "GoSGD at 2 rho, messages as PerSyn: mean": number(facts.doubled, facts.doubled_error),
            "GoSGD at 2 rho: mean over PerSyn's highest": f"{facts.doubled / facts.persyn_highest:.2f}",
            "PerSyn: spread of a run over time": f"{persyn.spread:.3g}",
            "GoSGD: spread of a run over time": f"{gossip.spread:.3g}",
            "PerSyn: spread over mean": f"{persyn.spread / facts.persyn:.2f}",
            "GoSGD: spread over mean": f"{gossip.spread / facts.rounds:.2f}",
            "GoSGD: share c of a message": number(facts.share, facts.share_error),
        }
    return pd.DataFrame(columns).rename_axis("rho").reset_index()


def by_workers(scale: pd.DataFrame) -> pd.DataFrame:
    """The consensus error of one worker, whatever their number."""
    found = [number(mean, error) for mean, error in zip(scale["mean"], scale.error, strict=True)]
    return pd.DataFrame({"workers": scale.workers.map("{:,}".format), "GoSGD, eps / (M - 1)": found})


def of_ranks(ranks: pd.DataFrame, steps: pd.DataFrame) -> pd.DataFrame:
    """Real ranks beside the reference at the steps that they measured; their standard error is over runs."""
    keys = ["strategy", "rho", "variance", "step"]
    joined = ranks.merge(steps[[*keys, "reference", "reference_error"]], on=keys, how="left", validate="many_to_one")
    assert joined.reference.notna().all(), "ranks.csv has steps that the simulator has not: add them to the plan"
    rows = []
    for (strategy, rho, variance), mine in joined.groupby(keys[:3]):
        runs = mine.groupby("run").error.mean()
        error = runs.std(ddof=1) / np.sqrt(len(runs))
        apart = runs.mean() - mine.reference.mean()
        single = mine.groupby("step").agg({"error": ["mean", "sem"], "reference": "first", "reference_error": "first"})
        single.columns = ["error", "se", "reference", "reference_error"]
        spread = np.hypot(single.se, single.reference_error)
        single = ((single.error - single.reference) / spread)[spread > 0]
        rows.append(
            {
                "strategy": NAMES[strategy],
                "rho": f"{rho:g}",
                "variance": f"{variance:g}",
                "runs": f"{len(runs)}",
                "measured": number(runs.mean(), error),
                "reference": f"{mine.reference.mean():.4g}",
                "difference, se": f"{apart / np.hypot(error, mine.reference_error.mean()):+.1f}",
                "single steps, worst, se": f"{single[single.abs().idxmax()]:+.1f} of {len(single)}",
            }
        )
    return pd.DataFrame(rows)


def of_running(running: pd.DataFrame, steps: pd.DataFrame, late: pd.DataFrame) -> pd.DataFrame:
    """Ranks that do not pause, beside gossip whose messages are mixed before the next step, and a step later."""
    keys = ["strategy", "rho", "variance", "step"]
    soon = steps[[*keys, "reference", "reference_error"]]
    joined = running.merge(soon, on=keys, how="left", validate="many_to_one")
    joined = joined.merge(late, on=["strategy", "rho", "step"], suffixes=("", "_late"), validate="many_to_one")
    joined["reference_late"] *= joined.variance  # eps is proportional to it
    joined["reference_error_late"] *= joined.variance
    rows = []
    for (strategy, rho, variance), mine in joined.groupby(keys[:3]):
        runs = mine.groupby("run").error.mean()
        error = runs.std(ddof=1) / np.sqrt(len(runs))
        row = {"strategy": NAMES[strategy], "rho": f"{rho:g}", "variance": f"{variance:g}", "runs": f"{len(runs)}"}
        row["measured"] = number(runs.mean(), error)
        for name, suffix in (("mixed before the next step", ""), ("mixed a step later", "_late")):
            reference = mine[f"reference{suffix}"].mean()
            apart = (runs.mean() - reference) / np.hypot(error, mine[f"reference_error{suffix}"].mean())
            row |= {name: f"{reference:.4g}", f"{name}: difference, se": f"{apart:+.1f}"}
        rows.append(row)
    return pd.DataFrame(rows)


def of_delays(delays: pd.DataFrame) -> pd.DataFrame:
    """How many steps later messages were mixed than they were sent, all runs together."""
    rows = []
    for rho, mine in delays.groupby("rho"):
        counts = mine.groupby("delay").messages.sum()
        sent = counts[counts.index >= 0]
        shares = 100 * sent / sent.sum()
        rows.append(
            {
                "rho": f"{rho:g}",
                "messages": f"{sent.sum():,}",
                "mixed after the same step, %": f"{shares.get(0, 0.0):.1f}",
                "the next, %": f"{shares.get(1, 0.0):.1f}",
                "later, %": f"{shares[shares.index > 1].sum():.1f}",
                "latest": f"{sent.index[sent > 0].max()}",
                "skipped": f"{counts.get(-1, 0):,}",
            }
        )
    return pd.DataFrame(rows)


def draw(axes: Axes, steps: pd.DataFrame, ranks: pd.DataFrame) -> None:
    """Both strategies at one rho and one variance: one run, the mean, the reference, and real ranks."""
    for strategy, colour in (("gossip", BLUE), ("persyn", GREEN)):
        mine, name = steps[steps.strategy == strategy], NAMES[strategy]
        if strategy == "gossip":  # a run of PerSyn cannot be told from its mean
            axes.plot(mine.step, mine.one, color=colour, alpha=0.4, linewidth=0.7, label=f"{name}, one run")
        axes.plot(mine.step, mine["mean"], color=colour, linewidth=1.6, label=f"{name}, mean of runs")
        reference = "dense matrices" if strategy == "gossip" else "closed form"
        dots = (0, (1, 1.6)) if strategy == "gossip" else (0, (3, 3))
        axes.plot(mine.step, mine.reference, color="black", linewidth=0.7, linestyle=dots, label=f"{name}, {reference}")
        points = ranks[ranks.strategy == strategy].groupby("step").error.agg(["mean", "sem"])
        if len(points):
            axes.errorbar(
                points.index, points["mean"], points["sem"], color=ORANGE, marker="o" if strategy == "gossip" else "s",
                markersize=2.4, linestyle="", elinewidth=0.6, label=f"{name}, real ranks ± se",
            )  # fmt: skip
    axes.set_xlim(0, steps.step.max())
    axes.set_ylim(bottom=0)


def figure(steps: pd.DataFrame, ranks: pd.DataFrame, variances: list[int]) -> Figure:
    """A row for each variance, a column for each rho; the first steps of each."""
    rates = sorted(steps.rho.unique())
    with style():
        made = Figure(figsize=(WIDTH, 0.6 + 1.9 * len(variances)), layout="constrained")
        grid = made.subplots(len(variances), len(rates), squeeze=False, sharex="col")
        for row, variance in zip(grid, variances, strict=True):
            for axes, rho in zip(row, rates, strict=True):
                chosen = steps[(steps.rho == rho) & (steps.variance == variance) & (steps.step * rho <= PERIODS)]
                draw(axes, chosen, ranks[(ranks.rho == rho) & (ranks.variance == variance)])
            row[0].set_ylabel(f"$\\varepsilon(t)$ / dim, variance {variance}")
        for axes, rho in zip(grid[0], rates, strict=True):
            axes.set_title(f"$\\rho$ = {rho:g}")
        for axes in grid[-1]:
            axes.set_xlabel("step")
        handles, labels = grid[0, -1].get_legend_handles_labels()
        made.legend(handles, labels, loc="outside lower center", ncols=3 if ranks.empty else 4)
    return made


def scale_figure(scale: pd.DataFrame) -> Figure:
    """A worker's consensus error by the number of workers."""
    rho = scale.rho.iloc[0]
    with style():
        made = Figure(figsize=(WIDTH / 2, 2.2), layout="constrained")
        axes = made.subplots()
        axes.errorbar(scale.workers, scale["mean"], 3 * scale.error, color=BLUE, marker="o", label="GoSGD, mean ± 3 se")
        axes.axhline(1 / rho - 1, color=GREEN, label="PerSyn, highest")
        axes.axhline((1 / rho - 1) / 2, color=GREEN, linestyle=(0, (3, 2)), label="PerSyn, mean")
        axes.set_xscale("log", base=2)
        axes.set(xlabel="workers M", ylabel=r"$\varepsilon$ / ((M - 1) dim)", xticks=[2, 8, 32, 128, 512, 2048])
        axes.set_xticks(axes.get_xticks(), [f"{tick:,.0f}" for tick in axes.get_xticks()])
        axes.set_ylim(bottom=0)
        axes.set_title(f"$\\rho$ = {rho:g}, variance 1")
        axes.legend()
    return made


def main() -> None:
    results, out = folders(__doc__, HERE)
    steps, averages, levels, scale = (
        pd.read_csv(results / f"{name}.csv") for name in ("steps", "averages", "levels", "scale")
    )
    measured = results / "ranks.csv"
    ranks = pd.read_csv(measured) if measured.exists() else pd.DataFrame(columns=RANKS)
    tables = {
        "table-agreement": agreement(averages, steps),
        "table-comparison": comparison(levels, averages),
        "table-workers": by_workers(scale),
    }
    if not ranks.empty:
        tables["table-ranks"] = of_ranks(ranks, steps)
        running, late, delays = (pd.read_csv(results / f"{name}.csv") for name in ("running", "late", "delays"))
        tables |= {"table-running": of_running(running, steps, late), "table-delays": of_delays(delays)}
    figures = {
        "figure": figure(steps, ranks, [1]),
        "appendix": figure(steps, ranks, sorted(steps.variance.unique())),
        "scale": scale_figure(scale),
    }
    publish(tables, figures, out)


if __name__ == "__main__":
    main()
