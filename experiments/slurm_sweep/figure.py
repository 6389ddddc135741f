"""The tables and figures of this experiment, from what ``run.py`` wrote.

python experiments/slurm_sweep/figure.py
"""

import json
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure
from rich.console import Console
from rich.text import Text

from analysis.experiment import folders, publish

PARTS = {
    "queue": "between jobs", "start": "start and end of jobs", "evaluate": "evaluation and cuts",
    "checkpoint": "checkpoints", "steps": "training steps",
}  # fmt: skip
COLOURS = {"queue": "0.9", "start": "0.7", "evaluate": "tab:olive", "checkpoint": "tab:orange", "steps": "tab:blue"}


def where_time_went(sweep: dict[str, float], runs: pd.DataFrame) -> pd.DataFrame:
    """Of the wall time of the sweep: one run after the other, as the cluster has cores for one."""
    seconds = {
        "steps": runs.steps.sum(), "evaluate": runs.evaluate.sum(), "checkpoint": runs.checkpoint.sum(),
        "start": runs.seconds.sum() - runs.steps.sum() - runs.evaluate.sum() - runs.checkpoint.sum(),
        "queue": sweep["wall_s"] - runs.seconds.sum(),
    }  # fmt: skip
    made = pd.DataFrame(
        {"part": [PARTS[key] for key in seconds], "seconds": [round(each, 1) for each in seconds.values()]}
    )
    made["share"] = [f"{100 * each / sweep['wall_s']:.1f} %" for each in seconds.values()]
    made["a run, s"] = [round(each / len(runs), 2) for each in seconds.values()]
    return made


def costs(sweep: dict[str, float]) -> pd.DataFrame:
    """What was waited for, and the same runs by hand."""
    rows = {
        "structlearn submit, 24 runs": sweep["submit_s"],
        "from submit to the end of the last run": sweep["wall_s"],
        "structlearn collect": sweep["collect_s"],
        f"{sweep['by_hand_runs']:.0f} runs (seed 0) in jobs of the sweep": sweep["the_same_in_the_sweep_s"],
        "the same, structlearn train --ranks 2 one after the other": sweep["by_hand_s"],
    }
    return pd.DataFrame({"what": rows.keys(), "seconds": [round(each, 1) for each in rows.values()]})


def timeline(runs: pd.DataFrame) -> Figure:
    """When each run was made, and of what its time consisted."""
    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    parts = runs.assign(start=runs.seconds - runs.steps - runs.evaluate - runs.checkpoint)
    for number, row in enumerate(parts.sort_values("waited").itertuples()):
        left = row.waited
        for key in ("start", "checkpoint", "evaluate", "steps"):
            axes.barh(number, getattr(row, key), left=left, color=COLOURS[key], height=0.8)
            left += getattr(row, key)
    handles = [plt.Rectangle((0, 0), 1, 1, color=COLOURS[key]) for key in ("start", "checkpoint", "evaluate", "steps")]
    axes.legend(handles, [PARTS[key] for key in ("start", "checkpoint", "evaluate", "steps")], frameon=False)
    axes.set(xlabel="seconds since structlearn submit", ylabel="run, in the order of their jobs")
    axes.set_xlim(left=0)
    axes.invert_yaxis()
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def terminal(results: Path, out: Path) -> None:
    """What `status` showed in the middle of the sweep, as a picture."""
    files = sorted(results.glob("status-*.txt"))
    text = Text.from_ansi(files[len(files) // 2].read_text(encoding="utf-8"))
    with Path("/dev/null").open("w", encoding="utf-8") as nowhere:
        console = Console(record=True, width=120, file=nowhere, force_terminal=True)
        console.print(text)
    console.save_svg(str(out / "status.svg"), title="structlearn status runs/sweep")


def main() -> None:
    results, out = folders(__doc__, Path(__file__).parent)
    runs, found = pd.read_csv(results / "runs.csv"), json.loads((results / "sweep.json").read_text())
    publish(
        {"time": where_time_went(found["sweep"], runs), "costs": costs(found["sweep"])},
        {"timeline": timeline(runs)},
        out,
    )
    terminal(results, out)
    retry = found["retry"]
    print(f"made to fail: {len(retry['made_to_fail'])}; failed: {len(retry['failed_before'])}; {retry['said']}")
    print(f"started again: {len(retry['started_again'])}; done afterwards: {retry['done_after']}")


if __name__ == "__main__":
    main()
