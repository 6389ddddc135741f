"""The tables of this experiment, from what ``run.py`` wrote.

python experiments/slurm_faults/figure.py
"""

from pathlib import Path
from typing import Any

import pandas as pd

from analysis.experiment import folders, publish

HERE = Path(__file__).parent
KINDS = (
    "scancel", "preemption", "time limit", "rank killed", "slurmd killed", "batch node failed", "other node failed",
    "node away", "slurmctld restarted", "slurmctld killed", "several",
)  # fmt: skip
NOTED = ("stopped", "failed")
"""How a start ends that a fault ended, where its job could note it."""


def seconds(lost: pd.Series, how: str) -> str:
    """Of those after which a step came."""
    return "" if lost.dropna().empty else f"{lost.agg(how):.1f}"


def by_kind(runs: pd.DataFrame, hits: pd.DataFrame) -> pd.DataFrame:
    """What became of each kind's runs."""
    made: list[dict[str, Any]] = []
    for kind in (kind for kind in KINDS if (runs.kind == kind).any()):
        mine, theirs = runs[runs.kind == kind], hits[hits.kind == kind]
        noted = mine.history.str.split().explode()
        made.append({
            "kind": kind, "injections": len(theirs[["sweep", "injection"]].drop_duplicates()), "hits": len(theirs),
            "runs": len(mine), "runs hit": int((mine.hits > 0).sum()),
            "done": int((mine.state == "done").sum()), "identical": int((mine.differences == 0).sum()),
            **{f"starts that {how}": int((noted == how).sum()) for how in NOTED},
            "starts that trained": int(mine.openings.sum()), "most of a run": int(mine.openings.max()),
            "lost, s: median": seconds(theirs.lost, "median"), "worst": seconds(theirs.lost, "max"),
        })  # fmt: skip
    return pd.DataFrame(made)


def by_fault(hits: pd.DataFrame) -> pd.DataFrame:
    """What each single fault cost, wherever it came."""
    faults = hits.fault.str.replace(r"rank \d ", "rank ", regex=True)
    made = hits.groupby(faults).lost.agg(hits="size", got_over="count", median="median", worst="max").reset_index()
    made = made.rename(columns={"got_over": "a step came after", "median": "lost, s: median"})
    return made.round(1)


def main() -> None:
    results, out = folders(__doc__, HERE)
    runs, hits = (pd.read_csv(results / f"{name}.csv") for name in ("runs", "hits"))
    publish({"kinds": by_kind(runs, hits), "single": by_fault(hits)}, {}, out)


if __name__ == "__main__":
    main()
