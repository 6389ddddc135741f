"""The tables and the figure of this experiment, from what ``run.py`` wrote.

python experiments/gossip_chaos/figure.py
"""

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from analysis.experiment import publish
from analysis.style import GREY, PALETTE, WIDTH, style

RESULTS = Path(__file__).parent / "results"
LIBRARIES = {"mpich": "MPICH 5.0.2", "openmpi": "Open MPI 5.0.11"}
TRANSPORTS = {"shm": "shared memory", "tcp": "TCP"}


def read() -> pd.DataFrame:
    """All worlds."""
    names = [f"{library}-{transport}.csv" for library in LIBRARIES for transport in TRANSPORTS]
    frames = [pd.read_csv(RESULTS / name) for name in names if (RESULTS / name).exists()]
    rows = pd.concat(frames, ignore_index=True)
    rows["kind"] = rows["library"].map(LIBRARIES) + ", " + rows["transport"].map(TRANSPORTS)
    return rows


def summary(rows: pd.DataFrame) -> pd.DataFrame:
    """By library and transport: what was done, and the worst of what was measured."""
    made = []
    for kind, worlds in [*rows.groupby("kind", sort=False), ("all", rows)]:
        exact = worlds[worlds.payload == "float32"]
        made.append(
            {
                "library, transport": kind,
                "worlds": len(worlds),
                "ranks": int(worlds.ranks.sum()),
                "pauses": int(worlds.filter(like="pauses_").to_numpy().sum()),
                "messages": int(worlds.sent.sum()),
                "lost": int((worlds.sent - worlds.received).sum()),
                "GiB": f"{worlds.mebibytes.sum() / 1024:.1f}",
                "mean moved by, worst": f"{exact.error.max():.1e}",
                "drain, median, ms": f"{1000 * worlds.drain_s.median():.0f}",
                "drain, worst, s": f"{worlds.drain_s.max():.2f}",
                "drain over a step, worst, s": f"{worlds.drain_over_step_s.max():.2f}",
                "drains later than 1 s": int((worlds.drain_over_step_s > 1).sum()),
            }
        )
    return pd.DataFrame(made)


def payloads(rows: pd.DataFrame) -> pd.DataFrame:
    """By payload: how far the weighted mean moved, as a part of what the rounding allows."""
    made = []
    for payload, worlds in rows.groupby("payload", sort=True):
        made.append(
            {
                "payload": payload,
                "worlds": len(worlds),
                "mean moved by, median": f"{worlds.error.median():.1e}",
                "worst": f"{worlds.error.max():.1e}",
                "of what is allowed, worst, %": f"{100 * (worlds.error / worlds.allowed).max():.0f}",
            }
        )
    return pd.DataFrame(made)


def figure(rows: pd.DataFrame) -> Figure:
    """The share of worlds whose mean moved at most so much, or whose drains took at most so much more than a step."""
    with style():
        made = Figure(figsize=(WIDTH, 2.4), layout="constrained")
        left, right = made.subplots(1, 2)
        for place, (kind, worlds) in enumerate(rows.groupby("kind", sort=False)):
            share = (np.arange(len(worlds)) + 1) / len(worlds)
            right.step(np.sort(worlds.drain_over_step_s), share, where="post", color=PALETTE[place], label=kind)
        for place, payload in enumerate(("float32", "bfloat16", "int8")):
            error = np.sort(rows[rows.payload == payload].error)
            left.step(
                error, (np.arange(len(error)) + 1) / len(error), where="post", color=PALETTE[place], label=payload
            )
        left.set(xscale="log", xlabel="largest change of the weighted mean", ylabel="share of worlds")
        right.set_xscale("symlog", linthresh=0.01)
        right.set_xlim(-0.5, 3)
        right.set_xticks([-0.1, -0.01, 0, 0.01, 0.1, 1], ["-0.1", "-0.01", "0", "0.01", "0.1", "1"])
        right.set_xlabel("longest drain of a world, less the slowest step, s")
        for axes, most, name in ((left, 1e-6, "float32: at most"), (right, 1.0, "at most")):
            axes.axvline(most, color=GREY, linewidth=0.8)
            axes.annotate(
                name, (most, 0.02), (2, 0), textcoords="offset points", rotation=90, color=GREY, fontsize="small"
            )
        left.legend(loc="center", bbox_to_anchor=(0.56, 0.5))
        right.legend(loc="upper left", fontsize="x-small")
        return made


def main() -> None:
    rows = read()
    publish({"summary": summary(rows), "payloads": payloads(rows)}, {"figure": figure(rows)}, RESULTS)


if __name__ == "__main__":
    main()
