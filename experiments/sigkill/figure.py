"""The tables of this experiment, from what ``run.py`` wrote.

python experiments/sigkill/figure.py
"""

import json
from pathlib import Path

import pandas as pd

from analysis.experiment import publish

RESULTS = Path(__file__).parent / "results"


def by_victim(rows: pd.DataFrame) -> pd.DataFrame:
    """Kills by what was hit: how many, when, with what exit code the command ended."""
    hit = rows[rows.hit > 0]
    made = hit.groupby("victim").agg(
        kills=("hit", "size"), earliest_s=("moment_s", "min"), latest_s=("moment_s", "max"),
        hangs=("hang", "sum"), orphans=("orphans", "sum"),
    )  # fmt: skip
    codes = hit.groupby("victim").exit_code.agg(lambda found: ", ".join(str(code) for code in sorted(set(found))))
    made = made.rename(columns={"earliest_s": "earliest, s", "latest_s": "latest, s"})
    return made.assign(**{"exit codes of the command": codes}).reset_index()


def main() -> None:
    files = sorted(file.with_suffix(".csv") for file in RESULTS.glob("*.json"))
    summaries = pd.DataFrame([json.loads(file.with_suffix(".json").read_text()) for file in files])
    tables = {"summary": summaries.rename(columns={"exchange": "strategy"})}
    tables |= {f"{file.stem}-victims": by_victim(pd.read_csv(file)) for file in files}
    publish(tables, {}, RESULTS)


if __name__ == "__main__":
    main()
