"""The tables and the figures of this experiment, from its records.

python experiments/exchange_learning/figure.py [--results DIR] [--out DIR]
"""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import analysis
from analysis.experiment import folders, publish
from analysis.style import GREY, PALETTE, WIDTH, style

HERE = Path(__file__).parent
COLOURS = {"none": GREY, "sync": "#000000", "gossip": PALETTE[0], "persyn": PALETTE[2]}
COLOURS |= {"easgd": PALETTE[1], "downpour": PALETTE[3]}
SIDE = ["rate", "strategy", "rho", "batch", "lr"]


def sides(records: analysis.Records) -> pd.DataFrame:
    """One row a run: which side it is on, and what it reached and sent.

    ``rate`` is that of the sweep the run is in: downpour has one of its own, but is compared with its sweep.
    """
    runs = records.runs[records.runs.state == "done"].set_index("run")
    frame = pd.DataFrame(
        {
            "sweep": [run.split("-")[0] for run in runs.index],
            "strategy": runs["config.exchange.name"],
            "batch": runs["config.data.batch_size"],
            "lr": runs["config.optimizer.lr"],
            "ranks": runs.world_size,
            "seed": runs["config.seed"].astype(int),
            "accuracy": 100 * runs.test_accuracy,
            "loss": runs.test_loss,
        }
    )
    rho = runs.get("config.exchange.rho", pd.Series(np.nan, runs.index)).astype(float)
    tau = runs.get("config.exchange.tau", pd.Series(np.nan, runs.index)).astype(float)
    frame["rho"] = rho.fillna(1 / tau).fillna(0.0)
    frame["rate"] = frame.groupby("sweep").lr.transform(lambda rates: rates.mode().iloc[0])
    own = records.ranks.groupby("run").test_accuracy
    frame["own_mean"], frame["own_best"] = 100 * own.mean(), 100 * own.max()
    sums = records.exchange.groupby("run")[["sent", "skipped", "bytes_sent"]].sum()
    steps = records.epochs.groupby("run").step.max()
    frame["sent"], frame["skipped"] = sums.sent / frame.ranks, sums.skipped
    frame["bytes"] = sums.bytes_sent / frame.ranks
    frame["steps"], frame["per_step"] = steps, frame.bytes / steps
    return frame


def equal_steps(records: analysis.Records, frame: pd.DataFrame) -> pd.DataFrame:
    """One rank with a worker's batch, as it was after as many steps as a worker makes."""
    steps = frame[frame.ranks > 1].steps.min()
    alone = frame[(frame.ranks == 1) & (frame.batch == 16)]
    then = records.epochs[records.epochs.step == steps].set_index("run")
    alone = alone[alone.index.isin(then.index)].copy()
    alone["accuracy"], alone["loss"] = 100 * then.test_accuracy, then.test_loss
    return alone.assign(strategy=f"one rank, batch 16, after {steps} steps", rho=0.0)


def name(side: pd.Series) -> str:
    """What a side is called."""
    if side.strategy == "none":
        return f"one rank, batch {side.batch:.0f}"
    return side.strategy if not side.rho else f"{side.strategy} {side.rho:g}"


def mean(values: pd.Series, digits: int = 2) -> str:
    """Mean and standard error over seeds."""
    error = f" ± {values.sem():.{digits}f}" if len(values) > 1 else ""
    return f"{values.mean():.{digits}f}{error}"


def table(frame: pd.DataFrame) -> pd.DataFrame:
    """One row a side: means over seeds, and differences from one rank with the same seed."""
    rows = []
    for (rate, *_), mine in frame.groupby(SIDE, sort=False):
        first = mine.iloc[0]
        rivals = frame[(frame.rate == rate) & (frame.strategy == "none")]
        apart: dict[str, Any] = {}
        for batch in (16, 64):
            alone = rivals[rivals.batch == batch].set_index("seed").accuracy
            differences = (mine.set_index("seed").accuracy - alone).dropna()
            itself = first.strategy == "none" and first.batch == batch
            apart[f"minus one rank, batch {batch}"] = "" if itself or differences.empty else f"{mean(differences)}"
        single = np.isnan(first.own_mean)
        rows.append(
            {
                "side": name(first),
                "rate": f"{first.lr:g}",
                "seeds": f"{len(mine)}",
                "test accuracy, %": mean(mine.accuracy),
                **apart,
                "test loss": mean(mine.loss, 3),
                "single ranks: mean, %": "" if single else mean(mine.own_mean),
                "single ranks: best, %": "" if single else mean(mine.own_best),
                "messages a rank": f"{mine.sent.mean():.1f}",
                "MB sent a rank": f"{mine.bytes.mean() / 1e6:.1f}",
                "kB a rank and step": f"{mine.per_step.mean() / 1e3:.1f}",
            }
        )
    return pd.DataFrame(rows)


def curve(axes: Axes, mine: pd.DataFrame, column: str, label: str, strategy: str, dash: Any) -> None:
    """The mean over seeds against samples, and its standard error as a band."""
    grouped = mine.groupby("samples")[column]
    found = grouped.mean()
    axes.plot(found.index / 1e3, found, color=COLOURS[strategy], linestyle=dash, label=label)
    if (mine.seed != mine.seed.iloc[0]).any():
        error = grouped.sem()
        axes.fill_between(
            found.index / 1e3, found - error, found + error, color=COLOURS[strategy], alpha=0.12, linewidth=0
        )


def losses(records: analysis.Records, facts: pd.DataFrame) -> pd.DataFrame:
    """The training loss of each side against samples.

    Ranks that are ahead of the others have more steps in an epoch than it has: those are left out.
    """
    steps = records.steps.merge(facts, on="run")
    epoch = (steps.step - 1) // steps.epoch_steps
    within = steps.step - epoch * steps.epoch_steps
    steps = steps[within % steps.every == 0].copy()
    steps["samples"] = ((steps.step / steps.epoch_steps * 16).round() / 16 * steps.epoch_samples).round()
    return steps


def figure(records: analysis.Records, frame: pd.DataFrame, rate: float) -> Figure:
    """Training loss and test accuracy against samples, for each rho; accuracy against bytes."""
    runs = records.runs.set_index("run")
    facts = frame[frame.rate == rate].copy()
    last = records.epochs.groupby("run").agg(step=("step", "max"), epoch=("epoch", "max"))
    facts["epoch_steps"] = last.step // last.epoch
    facts["epoch_samples"] = facts.epoch_steps * facts.ranks * facts.batch
    facts["every"] = runs["config.record.every_steps"].astype(float)
    facts = facts.rename_axis("run").reset_index()
    own = facts.drop(columns=["accuracy", "loss"])
    trained = losses(records, own)
    tested = records.epochs.drop(columns="lr").merge(own, on="run")
    tested["samples"] = tested.epoch * tested.epoch_samples
    tested["accuracy"] = 100 * tested.test_accuracy
    with style():
        made = Figure(figsize=(WIDTH, 5.2), layout="constrained")
        grid = made.subplots(2, 3, width_ratios=[1, 1, 0.9])
        for column, rho in enumerate((0.02, 0.1)):
            for axes, source, value in (
                (grid[0, column], trained, "loss"), (grid[1, column], tested, "accuracy")
            ):  # fmt: skip
                chosen = source[(source.rho == 0) | (source.rho == rho)]
                for (strategy, batch, lr), mine in chosen.groupby(["strategy", "batch", "lr"], sort=False):
                    label = f"one rank, batch {batch}" if strategy == "none" else strategy
                    label += f", rate {lr:g}" if lr != rate else ""
                    curve(axes, mine, value, label, strategy, dash(strategy, batch, lr))
            grid[0, column].set_title(f"$\\rho$ = {rho:g} ($\\tau$ = {1 / rho:g})")
            grid[1, column].set_xlabel("training samples, thousands")
        grid[0, 0].set_ylabel("training loss of the ranks")
        grid[1, 0].set_ylabel("test accuracy of the consensus, %")
        for source, value, row in ((trained, "loss", grid[0]), (tested, "accuracy", grid[1])):
            usual = source[source.strategy != "downpour"][value]  # what diverges may leave the panel
            room = 0.05 * (usual.max() - usual.min())
            for axes in row[:2]:
                axes.set_ylim(usual.min() - room, usual.max() + room)
        bytes_panel(grid[1, 2], facts)
        grid[0, 2].axis("off")
        lines = {
            label: line for axes in grid[0, :2] for line, label in zip(*axes.get_legend_handles_labels(), strict=True)
        }
        title = f"rate {rate:g} unless it says another;\nmean ± standard error of up to {facts.seed.nunique()} seeds"
        grid[0, 2].legend(lines.values(), lines.keys(), loc="center", title=title)
    return made


def dash(strategy: str, batch: int, lr: float) -> Any:
    """How a side's line is broken."""
    if strategy == "downpour":
        return "-" if lr < 0.004 else (0, (1, 1.2))
    return (0, (4, 2)) if strategy == "none" and batch > 16 else "-"


def bytes_panel(axes: Axes, facts: pd.DataFrame) -> None:
    """What each side reaches for the bytes that it sends."""
    for (strategy, rho, batch, lr), mine in facts.groupby(["strategy", "rho", "batch", "lr"], sort=False):
        if strategy == "none":
            broken = dash(strategy, batch, lr)
            axes.axhline(mine.accuracy.mean(), color=COLOURS[strategy], linestyle=broken, linewidth=0.9)
            continue
        marker = "s" if strategy == "sync" else "o" if rho < 0.05 else "D"
        axes.errorbar(
            mine.per_step.mean() / 1e3, mine.accuracy.mean(), mine.accuracy.sem() if len(mine) > 1 else 0.0,
            color=COLOURS[strategy], marker=marker, linestyle="",
        )  # fmt: skip
    usual = facts[facts.strategy != "downpour"].accuracy
    axes.set_ylim(usual.min() - 1, usual.max() + 1)
    axes.set_xscale("log")
    axes.set(xlabel="kB sent by a rank in a step", ylabel="test accuracy, %")
    axes.set_title("after the last epoch; ○ 0.02, ◇ 0.1")


def main() -> None:
    results, out = folders(__doc__, HERE)
    records = analysis.load(results, strict=True)
    frame = sides(records)
    for sweep, mine in frame.groupby("sweep", sort=False):
        suffix = "" if sweep == "small" else f"-{sweep}"
        both = pd.concat([mine, equal_steps(records, mine)])
        drawn = figure(records, mine, mine.rate.iloc[0])
        publish({f"table{suffix}": table(both)}, {f"figure{suffix}": drawn}, out)


if __name__ == "__main__":
    main()
