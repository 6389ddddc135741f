"""The table and the figure of this experiment, from its records.

python experiments/exchange_lenet/figure.py [--results DIR] [--out DIR]
"""

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

import analysis
from analysis.experiment import folders, publish
from analysis.style import style

HERE = Path(__file__).parent
FIRST = 50


def table(records: analysis.Records) -> pd.DataFrame:
    """One row a run: accuracies after the last epoch, and how far the step losses are from one rank's."""
    steps = {run: frame.set_index("step").loss for run, frame in records.steps.groupby("run")}
    runs = records.runs.set_index("run")
    alone = runs.index[runs.world_size == 1][0]
    rows = []
    for run, facts in runs.iterrows():
        distance = np.abs(steps[run].iloc[:FIRST] - steps[alone].iloc[:FIRST]).max()
        rows.append(
            {
                "strategy": facts["config.exchange.name"],
                "ranks": f"{facts.world_size}",
                "batch per rank": f"{facts['config.data.batch_size']}",
                "test accuracy, %": f"{100 * facts.test_accuracy:.2f}",
                "test loss": f"{facts.test_loss:.4f}",
                f"largest difference in loss from one rank, first {FIRST} steps": f"{distance:.2g}",
            }
        )
    return pd.DataFrame(rows)


def figure(records: analysis.Records) -> Figure:
    """Training loss by step (mean of 50 steps) and test accuracy by epoch."""
    with style():
        made = Figure(figsize=(7.0, 2.8), layout="constrained")
        left, right = made.subplots(1, 2)
        for (run, facts), marker in zip(records.runs.set_index("run").iterrows(), "osD", strict=True):
            label = f"{facts['config.exchange.name']}, {facts.world_size} rank(s)"
            steps = records.steps[records.steps.run == run]
            smooth = steps.loss.rolling(50).mean()
            left.plot(steps.step, smooth, label=label, linewidth=1.2)
            epochs = records.epochs[records.epochs.run == run]
            right.plot(epochs.epoch, 100 * epochs.test_accuracy, marker=marker, label=label)
        left.set(xlabel="step", ylabel="training loss (mean of 50 steps)")
        right.set(xlabel="epoch", ylabel="test accuracy, %", xticks=sorted(records.epochs.epoch.unique()))
        right.legend()
    return made


def main() -> None:
    results, out = folders(__doc__, HERE)
    records = analysis.load(results, strict=True)
    publish({"table": table(records)}, {"figure": figure(records)}, out)


if __name__ == "__main__":
    main()
