"""The table and the figure of this experiment, from what ``run.py`` wrote.

python experiments/alrao_robustness/figure.py [--results DIR] [--out DIR]
"""

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.experiment import folders, publish
from analysis.style import GREY, PALETTE, WIDTH, style

HERE = Path(__file__).parent
BLUE, ORANGE = PALETTE[0], PALETTE[1]
FAILED = 0.5  # a run with less than this part of its seed's best test accuracy has failed


def read(path: Path) -> pd.DataFrame:
    """The runs, with accuracies in percent and which of them failed.

    A run fails if a loss was not finite, or if its test accuracy is less than half of the best that any side has in the
    same setting with the same seed. Only seeds that every side has are taken.
    """
    runs = pd.read_csv(path)
    runs["accuracy"] = 100 * runs.test_accuracy
    seeds = runs.groupby(["setting", "seed"], sort=False).side.transform("size")
    runs = runs[seeds == seeds.max()].copy()
    best = runs[runs.state == "done"].groupby(["setting", "seed"]).accuracy.max().rename("best")
    runs["failed"] = (runs.state != "done") | ~(runs.accuracy >= FAILED * runs.join(best, on=["setting", "seed"]).best)
    return runs


def best_rate(mine: pd.DataFrame) -> float:
    """SGD's best rate in hindsight: the highest mean test accuracy over seeds, none of its runs failing."""
    sgd = mine[mine.side == "sgd"]
    means = sgd.groupby("rate").agg(accuracy=("accuracy", "mean"), failed=("failed", "any"))
    return float(means[~means.failed].accuracy.idxmax())


def mean(values: pd.Series, sign: str = "") -> str:
    """Mean ± standard deviation over seeds."""
    return f"{values.mean():{sign}.2f} ± {values.std():.2f}"


def rows(runs: pd.DataFrame) -> pd.DataFrame:
    """Numbers of each setting: one row a seed, Alrao and Adam minus SGD at its best rate."""
    found = []
    for setting, mine in runs.groupby("setting", sort=False):
        rate = best_rate(mine)
        chosen = {
            "sgd": mine[(mine.side == "sgd") & (mine.rate == rate)],
            "adam": mine[mine.side == "adam"],
            "alrao": mine[mine.side == "alrao"],
        }
        columns = {side: part.set_index("seed").accuracy for side, part in chosen.items()}
        losses = {f"{side}_loss": part.set_index("seed").test_loss for side, part in chosen.items()}
        frame = pd.DataFrame({**columns, **losses}).reset_index()
        found.append(frame.assign(setting=setting, rate=rate))
    return pd.concat(found, ignore_index=True)


def table(runs: pd.DataFrame, pairs: pd.DataFrame) -> pd.DataFrame:
    """One row a setting."""
    made = []
    for setting, mine in runs.groupby("setting", sort=False):
        facts, alrao = pairs[pairs.setting == setting], mine[mine.side == "alrao"]
        adam, sgd = mine[mine.side == "adam"], mine[mine.side == "sgd"]
        worst = sgd.groupby("rate").failed.mean()
        made.append(
            {
                "setting": setting,
                "seeds": f"{len(facts)}",
                "SGD: best rate": f"{facts.rate.iloc[0]:g}",
                "SGD at it, %": mean(facts.sgd),
                "Adam, %": mean(facts.adam),
                "Alrao, %": mean(facts.alrao),
                "Alrao minus SGD, points": mean(facts.alrao - facts.sgd, "+"),
                "Adam minus SGD, points": mean(facts.adam - facts.sgd, "+"),
                "SGD rates that fail": f"{(worst > 0).sum()} of {len(worst)}",
                "Adam runs that fail": f"{adam.failed.sum()} of {len(adam)}",
                "Alrao runs that fail": f"{alrao.failed.sum()} of {len(alrao)}",
                "units lost": f"{alrao.lost_units.mean():.1f} of {alrao.units.iloc[0]:.0f}",
                "heads lost": f"{alrao.lost_heads.mean():.1f} of {alrao.heads.iloc[0]:.0f}",
            }
        )
    by_setting = pairs.groupby("setting", sort=False)[["sgd", "adam", "alrao"]].mean()
    apart = by_setting.alrao - by_setting.sgd
    other = by_setting.adam - by_setting.sgd
    last = dict.fromkeys(made[0], "")
    last |= {
        "setting": "mean over settings",
        "SGD at it, %": f"{by_setting.sgd.mean():.2f}",
        "Adam, %": f"{by_setting.adam.mean():.2f}",
        "Alrao, %": f"{by_setting.alrao.mean():.2f}",
        "Alrao minus SGD, points": f"{apart.mean():+.2f}",
        "Adam minus SGD, points": f"{other.mean():+.2f}",
        "Adam runs that fail": f"{runs[runs.side == 'adam'].failed.sum()} of {(runs.side == 'adam').sum()}",
        "Alrao runs that fail": f"{runs[runs.side == 'alrao'].failed.sum()} of {(runs.side == 'alrao').sum()}",
    }
    return pd.DataFrame([*made, last])


def loss_table(pairs: pd.DataFrame) -> pd.DataFrame:
    """Test losses, in nats: SGD at the rate that has the best accuracy, Adam, Alrao."""
    names = {"sgd_loss": "SGD", "adam_loss": "Adam", "alrao_loss": "Alrao"}
    made = []
    for setting, mine in pairs.groupby("setting", sort=False):
        row = {name: f"{mine[column].mean():.3f} ± {mine[column].std():.3f}" for column, name in names.items()}
        made.append({"setting": setting, "SGD: best rate": f"{mine.rate.iloc[0]:g}", **row})
    return pd.DataFrame(made)


def rate_table(runs: pd.DataFrame) -> pd.DataFrame:
    """SGD's accuracy at each rate; runs that fail are counted, and those not finite are not in the mean."""
    sgd = runs[runs.side == "sgd"]
    made = []
    for setting, mine in sgd.groupby("setting", sort=False):
        row = {"setting": setting}
        for rate, part in mine.groupby("rate"):
            whole = part[part.state == "done"].accuracy
            text = f"{whole.mean():.1f}" if len(whole) else "not finite"
            row[f"{rate:g}"] = text + (f" ({part.failed.sum()} fail)" if len(whole) and part.failed.any() else "")
        made.append(row)
    return pd.DataFrame(made)


def explosion_table(found: pd.DataFrame) -> pd.DataFrame:
    """What ``explosion.py`` saw: losses are means over the last 20 of the first 60 steps."""
    made = []
    for network, mine in found.groupby("network", sort=False):
        made.append(
            {
                "network": network,
                "seeds": f"{len(mine)}",
                "a loss beyond all bounds": f"{(mine.highest > 13).sum()}",
                "last loss above ln 10": f"{(mine['last'] > np.log(10)).sum()}",
                "last loss": f"{mine['last'].mean():.2f} ± {mine['last'].std():.2f}",
                "highest last loss": f"{mine['last'].max():.2f}",
                "units lost": f"{mine.lost.mean():.1f}",
            }
        )
    return pd.DataFrame(made)


def panel(axes: Axes, mine: pd.DataFrame) -> None:
    """Accuracy against SGD's rate; Alrao and Adam as lines with bands of one standard deviation."""
    sgd = mine[mine.side == "sgd"]
    grouped = sgd[sgd.state == "done"].groupby("rate").accuracy
    found, spread = grouped.mean(), grouped.std().fillna(0.0)
    axes.errorbar(found.index, found, spread, color="#000000", marker="o", linewidth=0.9, label="SGD at one rate")
    failed = sgd.groupby("rate").state.apply(lambda states: (states != "done").any())
    rates = failed.index[failed]
    axes.plot(rates, np.full(len(rates), 3.0), "x", color=GREY, label="SGD: some run not finite")
    for side, colour, name, dash in (("alrao", BLUE, "Alrao", "-"), ("adam", ORANGE, "Adam", (0, (4, 2)))):
        values = mine[mine.side == side].accuracy
        axes.axhline(values.mean(), color=colour, label=name, linestyle=dash)
        axes.axhspan(values.mean() - values.std(), values.mean() + values.std(), color=colour, alpha=0.18, linewidth=0)
    axes.set_xscale("log")
    axes.set_xticks(sorted(sgd.rate.unique())[::2])
    axes.set_ylim(0, 100 if mine.accuracy.max() > 70 else 70)


def figure(runs: pd.DataFrame) -> Figure:
    """One panel a setting: means over seeds, bars and bands of one standard deviation."""
    settings = list(dict.fromkeys(runs.setting))
    with style():
        made = Figure(figsize=(WIDTH, 4.2), layout="constrained")
        columns = (len(settings) + 1) // 2
        places = made.subplots(2, columns, squeeze=False).flatten()
        for place, (axes, setting) in enumerate(zip(places, settings, strict=False)):
            panel(axes, runs[runs.setting == setting])
            axes.set_title(setting)
            axes.set_xlabel("SGD's learning rate")
            if place % columns == 0:
                axes.set_ylabel("test accuracy, %")
        for axes in places[len(settings) :]:
            axes.axis("off")
        made.legend(*places[0].get_legend_handles_labels(), loc="outside upper center", ncols=4)
    return made


def main() -> None:
    results, out = folders(__doc__, HERE)
    runs = read(results / "runs.csv")
    pairs = rows(runs)
    tables = {"table": table(runs, pairs), "table-losses": loss_table(pairs), "table-rates": rate_table(runs)}
    if (path := results / "explosion.csv").exists():
        tables["table-explosion"] = explosion_table(pd.read_csv(path))
    publish(tables, {"figure": figure(runs)}, out)


if __name__ == "__main__":
    main()
