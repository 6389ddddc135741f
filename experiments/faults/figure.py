"""The tables and the figure of this experiment, from what ``run.py`` wrote.

python experiments/faults/figure.py
"""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from analysis.experiment import publish
from analysis.style import GREY, PALETTE, WIDTH, style
from hpc.config import yamls

HERE = Path(__file__).parent
RESULTS = HERE / "results"
KINDS = ("exception", "SIGKILL", "SIGSTOP", "SIGTERM")
TEXT = dict.fromkeys(("exit_code", "told_ok", "end_ok", "message", "kind", "phase", "moment", "state"), str)
MENDED = 340
"""The first trial with a mend: see the README."""
PHASES = ("training", "mixing", "checkpoint", "drain")


def read() -> pd.DataFrame:
    """All trials. Whether a fault was got over is seen at the start after it."""
    rows = pd.read_csv(
        RESULTS / "trials.csv", keep_default_na=False, na_values={"detected": "", "seconds": ""}, dtype=TEXT
    )
    after = rows.groupby("run").shift(-1)
    rows["resumed"] = after.resumed_ok.notna()
    rows["resume_wrong"] = after.resumed_ok == 0
    rows["mpi_error"] = rows.message.str.contains("MPI error")
    return rows


def faults(rows: pd.DataFrame) -> pd.DataFrame:
    """Those in which a fault was made: a run may be done before its moment comes."""
    return rows[rows.kind != ""]


def counted(trials: pd.DataFrame) -> dict[str, Any]:
    """What became of some trials."""
    seen, ended = trials.detected.dropna(), trials.seconds.dropna()
    wrong = trials[trials.code_ok == 0]
    return {
        "trials": len(trials),
        "noted, s: median": f"{seen.median():.2f}", "worst": f"{seen.max():.2f}",
        "ended, s: median": f"{ended.median():.2f}", "worst ": f"{ended.max():.2f}",
        "hangs": int((trials.exit_code == "hang").sum()),
        "orphans": int(trials.orphans.sum()),
        "MPI's error first": int(wrong.mpi_error.sum()),
        "other wrong exit codes": int((~wrong.mpi_error).sum()),
        "victim not named": int((trials.told_ok != "1").sum()),
        "checkpoints": int(trials.checkpoints.sum()),
        "bad": int((trials.checkpoint_ok == 0).sum()),
        "starts after": int(trials.resumed.sum()),
        "wrong place": int(trials.resume_wrong.sum()),
    }  # fmt: skip


def by_kind(rows: pd.DataFrame) -> pd.DataFrame:
    made = faults(rows)
    kinds = [(kind, made[made.kind == kind]) for kind in KINDS]
    return pd.DataFrame([{"kind": kind, **counted(trials)} for kind, trials in [*kinds, ("all", made)] if len(trials)])


def by_cell(rows: pd.DataFrame) -> pd.DataFrame:
    made = faults(rows)
    cells = [(kind, phase, made[(made.kind == kind) & (made.phase == phase)]) for kind in KINDS for phase in PHASES]
    return pd.DataFrame(
        [{"kind": kind, "phase": phase, **counted(trials)} for kind, phase, trials in cells if len(trials)]
    )


def told(rows: pd.DataFrame) -> pd.DataFrame:
    """Who was not named, before and after the command said itself what mpiexec had dropped and who ended first."""
    made = faults(rows)
    parts = (("before", made[made.trial < MENDED]), ("after", made[made.trial >= MENDED]))
    return pd.DataFrame([
        {"": name, **{
            column: value
            for kind in KINDS
            for column, value in (
                (f"{kind}", int((part.kind == kind).sum())),
                (f"{kind}: not named", int(((part.kind == kind) & (part.told_ok != "1")).sum())),
            )
        }}
        for name, part in parts
    ])  # fmt: skip


def runs(rows: pd.DataFrame) -> pd.DataFrame:
    """What became of whole runs, each resumed after every fault."""
    done = rows[rows.state == "done"]
    return pd.DataFrame([{
        "runs begun": rows.run.nunique(), "done": len(done), "and whole": int((done.end_ok == "1").sum()),
        "starts": len(rows), "with a fault": len(faults(rows)),
        "without a fault, not done": int(((rows.kind == "") & (rows.state != "done")).sum()),
    }])  # fmt: skip


def figure(rows: pd.DataFrame, deadline_s: float) -> Figure:
    """The share of trials in which a fault was noted, and the command had ended, after at most so long."""
    made = faults(rows)
    with style():
        drawn = Figure(figsize=(WIDTH, 2.4), layout="constrained")
        axes = drawn.subplots(1, 2, sharey=True)
        for place, kind in enumerate(KINDS):
            for part, column in zip(axes, ("detected", "seconds"), strict=True):
                times = np.sort(made[made.kind == kind][column].dropna().clip(lower=1e-3))
                share = (np.arange(len(times)) + 1) / max(len(times), 1)
                part.step(times, share, where="post", color=PALETTE[place], label=kind)
        for part, text in zip(axes, ("noted in the run folder", "the command has ended"), strict=True):
            part.axvline(deadline_s, color=GREY, linewidth=0.8, label="compute.deadline_s")
            part.set(xscale="log", xlim=(1e-3, 20), xlabel=f"seconds from the fault until {text}")
        axes[0].set(ylabel="share of trials")
        drawn.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=5)
        return drawn


def main() -> None:
    rows = read()
    tables = {"kinds": by_kind(rows), "cells": by_cell(rows), "runs": runs(rows), "told": told(rows)}
    config = yamls.load(HERE / "small.yaml")
    publish(tables, {"figure": figure(rows, config["compute"]["deadline_s"])}, RESULTS)


if __name__ == "__main__":
    main()
