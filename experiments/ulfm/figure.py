"""The tables of this experiment, from what ``run.py`` wrote.

python experiments/ulfm/figure.py
"""

from pathlib import Path

import pandas as pd

from analysis.experiment import publish

RESULTS = Path(__file__).parent / "results"


def spread(values: pd.Series, digits: int) -> str:
    """Median, and the least and the largest."""
    if values.empty:
        return ""
    return f"{values.median():.{digits}f} ({values.min():.{digits}f} to {values.max():.{digits}f})"


def row(name: str, runs: pd.DataFrame, reference: float) -> dict[str, object]:
    """What a set of runs came to."""
    accuracy = 100 * runs.test_accuracy
    return {
        "runs": name,
        "number": len(runs),
        "done, exit code 0": int(((runs.state == "done") & (runs.exit_code == 0)).sum()),
        "hangs": int(runs.hang.sum()),
        "orphans": int(runs.orphans.sum()),
        "whole mass": int(runs.whole_mass.sum()),
        "test accuracy, %": spread(accuracy, 2),
        "mean ± se": f"{accuracy.mean():.2f} ± {accuracy.sem():.2f}",
        "more than a point below the undisturbed median": int((accuracy < reference - 1).sum()),
        "all know, s": spread(runs.noticed_all_s.dropna(), 3),
        "go on after, s": spread(runs.lost_seconds.dropna(), 3),
        "mass lost": spread(runs.lost_mass.dropna(), 3),
    }


def main() -> None:
    runs = pd.read_csv(RESULTS / "runs.csv")
    calm, killed = runs[~runs.killed], runs[runs.killed]
    reference = 100 * calm.test_accuracy.median()
    rows = [row("undisturbed", calm, reference), row("one rank killed", killed, reference)]
    rows += [row(f"of these, rank {victim}", of, reference) for victim, of in killed.groupby("victim")]
    assert (killed.lost_rank == killed.victim).all()
    publish({"summary": pd.DataFrame(rows)}, {}, RESULTS)


if __name__ == "__main__":
    main()
