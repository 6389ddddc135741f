"""The tables and the figure of this experiment, from its records and what each rank wrote down.

python experiments/scalp_ranks/figure.py [--results DIR] [--out DIR]
"""

import hashlib
from itertools import pairwise
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MultipleLocator

import analysis
from analysis.experiment import folders, publish
from analysis.style import GREY, PALETTE, WIDTH, style

HERE = Path(__file__).parent
UNCUT = hashlib.sha256(b"{}").hexdigest()[:16]
"""The digest of a plan that changes nothing."""
NUMBERS = {"epoch", "rank"}
REFERENCE = "one rank, batch 128"
LOOKS = {  # side: colour, marker
    REFERENCE: ("#000000", "o"),
    "one rank, batch 32": (GREY, "o"),
    "sync": (PALETTE[0], "s"),
    "persyn": (PALETTE[2], "^"),
    "gossip": (PALETTE[1], "D"),
}


def sides(records: analysis.Records) -> pd.DataFrame:
    """One row a run: its side, and the network that it answers with."""
    rows = {}
    for run, row in records.runs[records.runs.state == "done"].set_index("run").iterrows():
        alone = row.world_size == 1
        side = f"one rank, batch {int(row['config.data.batch_size'])}" if alone else row["config.exchange.name"]
        by_layer = records.structure[records.structure.run == run].pivot_table(
            values="width", index="epoch", columns="layer", sort=False
        )
        first, second = by_layer.iloc[-1].astype(int)
        rows[run] = {
            "side": side,
            "seed": int(row["config.seed"]),
            "accuracy": 100 * row.test_accuracy,
            "parameters": int(row.parameters),
            "first": first,
            "second": second,
            "ended_by": row.ended_by,
        }
    return pd.DataFrame.from_dict(rows, orient="index")


def phases(file: Path) -> tuple[int, list[str]]:
    """(epochs that a run pruned, the digest of all cuts after each of its epochs)."""
    with h5py.File(file) as record:
        pruned = int((record["structure/phase"][()] == b"pruning").sum())
        return pruned, [each.decode() for each in record["structure/digest"][()]]


def read(file: Path) -> pd.DataFrame:
    """What ranks wrote down, masses bit for bit."""
    texts = pd.read_csv(file, dtype=str)
    return texts.assign(mass=texts["mass"].map(float), **{name: texts[name].astype(int) for name in NUMBERS & {*texts}})


def table(frame: pd.DataFrame, records: analysis.Records, results: Path) -> pd.DataFrame:
    """Means over seeds of what was answered; differences from the reference of the same seed."""
    epochs = records.epochs.groupby("run")
    own = records.ranks.groupby("run").test_accuracy.mean()
    reference = frame[frame.side == REFERENCE].set_index("seed").accuracy
    rows = []
    for side in [name for name in LOOKS if name in set(frame.side)]:
        mine = frame[frame.side == side].sort_values("seed")
        apart = (mine.set_index("seed").accuracy - reference).dropna()
        pruned = [phases(results / run / "record.h5")[0] for run in mine.index]
        alone = (100 * own.reindex(mine.index)).mean()
        rows.append(
            {
                "side": side,
                "seeds": f"{len(mine)}",
                "test accuracy, %": f"{mine.accuracy.mean():.2f} ± {mine.accuracy.sem():.2f}",
                f"minus {REFERENCE}": ""
                if side == REFERENCE
                else f"{apart.mean():+.2f} ± {apart.sem():.2f} [{apart.min():+.2f}, {apart.max():+.2f}]",
                "its ranks by themselves, last epoch, %": "" if np.isnan(alone) else f"{alone:.2f}",
                "final widths": ", ".join(f"{row['first']}/{row['second']}" for _, row in mine.iterrows()),
                "parameters": f"{mine.parameters.mean():,.0f}",
                "epochs of pruning": ", ".join(map(str, pruned)),
                "epochs": ", ".join(str(epochs.get_group(run).epoch.max()) for run in mine.index),
            }
        )
    return pd.DataFrame(rows)


def agreement(frame: pd.DataFrame, records: analysis.Records, results: Path) -> pd.DataFrame:
    """What was compared between the ranks of all runs of a side, and how often it was not one and the same.

    A cut is an epoch after which the record's digest is another one than before. A rank disagrees where the digest of
    the cuts that it made, or the widths of its weights, are not those of rank 0 and of the record.
    """
    rows = []
    for side in [name for name in LOOKS if name in set(frame.side)]:
        cuts = compared = other = saved = others_saved = 0
        sums, between = [], []
        for run in frame.index[frame.side == side]:
            digests = dict(enumerate(phases(results / run / "record.h5")[1], 1))
            widths = records.structure[records.structure.run == run].groupby("epoch").width
            recorded = {epoch: "/".join(map(str, values)) for epoch, values in widths}
            ranks = read(results / run / "ranks.csv")
            assert set(ranks.epoch) == set(digests) == set(recorded)
            assert (ranks.groupby("epoch")["rank"].nunique() == ranks["rank"].nunique()).all()
            cuts += sum(now != before for before, now in pairwise([UNCUT, *digests.values()]))
            compared += len(ranks)
            other += int(
                ((ranks.digest != ranks.epoch.map(digests)) | (ranks.widths != ranks.epoch.map(recorded))).sum()
            )
            sums += [sum(masses) for _, masses in ranks.groupby("epoch").mass]
            between += [ranks.mass.min(), ranks.mass.max()]
            written = read(results / run / "checkpoint.csv")
            end = max(digests)
            saved += len(written)
            others_saved += int(((written.digest != digests[end]) | (written.widths != recorded[end])).sum())
            sums.append(sum(written.mass))
        exchange = records.exchange[records.exchange.run.isin(frame.index[frame.side == side])]
        rows.append(
            {
                "side": side,
                "cuts": f"{cuts}",
                "ranks' structures compared": f"{compared}",
                "that differ": f"{other}",
                "in checkpoints": f"{saved}",
                "that differ there": f"{others_saved}",
                "sums of masses": f"{len(sums)}",
                "that are not 1 exactly": f"{sum(total != 1 for total in sums)}",
                "masses of a rank": f"{min(between):.3g} to {max(between):.3g}",
                "messages sent": f"{exchange.sent.sum():.0f}",
                "received": f"{exchange.received.sum():.0f}",
            }
        )
    return pd.DataFrame(rows)


def figure(frame: pd.DataFrame, records: analysis.Records, results: Path) -> Figure:
    """By epochs, a line a run: parameters left, test accuracy, the first layer's norm; what the runs answer with."""
    epochs = records.epochs.merge(frame[["side", "seed"]], left_on="run", right_index=True)
    with style():
        made = Figure(figsize=(WIDTH, 4.6), layout="constrained")
        (sizes, curves), (norms, ends) = made.subplots(2, 2)
        for side, (colour, marker) in LOOKS.items():
            for run in frame.index[frame.side == side]:
                mine = epochs[epochs.run == run]
                sizes.plot(mine.epoch, mine.parameters, color=colour, linewidth=0.9, alpha=0.85)
                curves.plot(mine.epoch, 100 * mine.test_accuracy, color=colour, linewidth=0.7, alpha=0.8)
                ranks = read(results / run / "ranks.csv")
                first = ranks["norms"].str.split("/").str[0].astype(float).groupby(ranks.epoch).mean()
                norms.plot(first.index, first, color=colour, linewidth=0.9, alpha=0.85)
            last = frame[frame.side == side]
            ends.plot(last.parameters, last.accuracy, marker, color=colour, label=side, markersize=4.5, alpha=0.8)
        sizes.set(xlabel="epochs", ylabel="parameters left", yscale="log")
        curves.set(xlabel="epochs", ylabel="test accuracy, %", ylim=(50, 90))
        norms.set(xlabel="epochs", ylabel="first layer: squared norm of a unit", yscale="log")
        ends.set(xlabel="parameters of the answer", ylabel="its test accuracy, %")
        ends.set_xlim(0, 1.1 * frame.parameters.max())
        ends.xaxis.set_major_locator(MultipleLocator(5000))
        made.legend(*ends.get_legend_handles_labels(), loc="outside lower center", ncols=5)
    return made


def main() -> None:
    results, out = folders(__doc__, HERE)
    records = analysis.load(results, strict=True)
    frame = sides(records)
    tables = {
        "table": table(frame, records, results),
        "agreement": agreement(frame, records, results),
    }
    publish(tables, {"figure": figure(frame, records, results)}, out)


if __name__ == "__main__":
    main()
