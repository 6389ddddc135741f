"""The tables and the figure of this experiment, from what ``run.py`` wrote.

python experiments/gossip_chaos/figure.py
"""

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from analysis.style import GREY, PALETTE, WIDTH, save, style
from analysis.tables import write_table

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
    """The share of worlds whose mean moved, or whose drain took, at most so much."""
    with style():
        made = Figure(figsize=(WIDTH, 2.4), layout="constrained")
        left, right = made.subplots(1, 2)
        for place, (kind, worlds) in enumerate(rows.groupby("kind", sort=False)):
            share = (np.arange(len(worlds)) + 1) / len(worlds)
            right.step(np.sort(worlds.drain_s), share, where="post", color=PALETTE[place], label=kind)
        for place, payload in enumerate(("float32", "bfloat16", "int8")):
            error = np.sort(rows[rows.payload == payload].error)
            left.step(
                error, (np.arange(len(error)) + 1) / len(error), where="post", color=PALETTE[place], label=payload
            )
        left.axvline(1e-6, color=GREY, linewidth=0.8)
        left.set(xscale="log", xlabel="largest change of the weighted mean", ylabel="share of worlds")
        right.set(xscale="log", xlabel="longest drain of a world, s")
        for axes in (left, right):
            axes.legend(loc="lower right")
        return made


def main() -> None:
    rows = read()
    for name, table in (("summary", summary(rows)), ("payloads", payloads(rows))):
        write_table(table, RESULTS, name)
        print((RESULTS / f"{name}.md").read_text())
    save(figure(rows), RESULTS, "figure")


if __name__ == "__main__":
    main()
