"""The table and the figure of this experiment, from its records.

python experiments/alrao_gossip/figure.py [--results DIR] [--out DIR]
"""

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

import analysis
from analysis.experiment import folders, publish
from analysis.style import GREY, PALETTE, WIDTH, style

HERE = Path(__file__).parent
LOOKS = {  # side: colour, dash
    "one rank, batch 16": (GREY, "-"),
    "one rank, batch 64": (GREY, (0, (4, 2))),
    "sync, 4 ranks, as many samples": ("#000000", "-"),
    "gossip 0.1, 4 ranks, as many samples": (PALETTE[0], (0, (4, 2))),
    "gossip 0.1, 4 ranks, as many steps": (PALETTE[0], "-"),
    "gossip 0.02, 4 ranks, as many steps": (PALETTE[1], "-"),
}
REFERENCE = "one rank, batch 16"


def sides(runs: pd.DataFrame) -> pd.DataFrame:
    """One row a run: which side it is on."""
    done = runs[runs.state == "done"].set_index("run")
    few = done["config.epochs"].min()
    names = []
    for _, run in done.iterrows():
        if run.world_size == 1:
            names.append(f"one rank, batch {run['config.data.batch_size']:.0f}")
            continue
        rho = run.get("config.exchange.rho", np.nan)
        exchange = run["config.exchange.name"] + ("" if pd.isna(rho) else f" {rho:g}")
        equal = "samples" if run["config.epochs"] == few else "steps"
        names.append(f"{exchange}, {run.world_size:.0f} ranks, as many {equal}")
    return pd.DataFrame(
        {
            "side": names,
            "seed": done["config.seed"].astype(int),
            "accuracy": 100 * done.test_accuracy,
            "loss": done.test_loss,
        }
    )


def table(frame: pd.DataFrame, records: analysis.Records) -> pd.DataFrame:
    """Means and standard errors over seeds; differences from the one rank of the same seed."""
    last = records.heads_and_units.groupby("run").last()
    steps = records.epochs.groupby("run").step.max()
    alone = frame[frame.side == REFERENCE].set_index("seed").accuracy
    rows = []
    for side in [name for name in LOOKS if name in set(frame.side)]:
        mine = frame[frame.side == side]
        apart = (mine.set_index("seed").accuracy - alone).dropna()
        rows.append(
            {
                "side": side,
                "seeds": f"{len(mine)}",
                "steps of a rank": f"{steps[mine.index].mean():.0f}",
                "test accuracy, %": f"{mine.accuracy.mean():.2f} ± {mine.accuracy.sem():.2f}",
                "minus one rank, batch 16": ""
                if side == REFERENCE
                else f"{apart.mean():+.2f} ± {apart.sem():.2f} [{apart.min():+.2f}, {apart.max():+.2f}]",
                "test loss": f"{mine.loss.mean():.3f}",
                "heads lost": f"{last.heads_lost[mine.index].mean():.1f}",
                "units lost": f"{last.units_lost[mine.index].mean():.1f}",
            }
        )
    return pd.DataFrame(rows)


def figure(frame: pd.DataFrame, records: analysis.Records) -> Figure:
    """Test accuracy against a rank's steps; the posterior over the heads of one rank and of gossip, first seed."""
    epochs = records.epochs.merge(frame[["side", "seed"]], left_on="run", right_index=True)
    with style():
        made = Figure(figsize=(WIDTH, 2.9), layout="constrained")
        curves, *panels = made.subplots(1, 3, width_ratios=[1.5, 1, 1])
        for side, (colour, dash) in LOOKS.items():
            mine = epochs[epochs.side == side].groupby("epoch").agg(
                step=("step", "mean"), mean=("test_accuracy", "mean"), error=("test_accuracy", "sem")
            )  # fmt: skip
            curves.plot(mine.step, 100 * mine["mean"], color=colour, linestyle=dash, label=side)
            low, high = 100 * (mine["mean"] - mine.error), 100 * (mine["mean"] + mine.error)
            curves.fill_between(mine.step, low, high, color=colour, alpha=0.12, linewidth=0)
        curves.set(xlabel="steps of a rank", ylabel="test accuracy, %")
        for axes, side in zip(panels, (REFERENCE, "gossip 0.1, 4 ranks, as many steps"), strict=True):
            run = frame[(frame.side == side) & (frame.seed == frame.seed.min())].index[0]
            mine = records.alrao[records.alrao.run == run]
            seen = mine.pivot_table(values="probability", index="head", columns="step", aggfunc="last")
            rates = records.rates[(records.rates.run == run) & (records.rates.layer == "head")].rate.to_numpy()
            drawn = axes.pcolormesh(
                seen.columns, np.log10(rates), seen, vmin=0, vmax=1, cmap="Greys", shading="nearest"
            )
            axes.set(xlabel="steps", ylabel="head's rate, log10", title=side.removesuffix(", as many steps"))
        made.colorbar(drawn, ax=panels, label="posterior", location="right")
        made.legend(*curves.get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return made


def main() -> None:
    results, out = folders(__doc__, HERE)
    records = analysis.load(results, strict=True)
    frame = sides(records.runs)
    publish({"table": table(frame, records)}, {"figure": figure(frame, records)}, out)


if __name__ == "__main__":
    main()
