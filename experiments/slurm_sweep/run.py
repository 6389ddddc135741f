"""A sweep of 24 runs on a real SLURM of two nodes, with one command; and `retry --failed` after five were made to fail.

    python experiments/slurm_sweep/run.py [small.yaml] [--results DIR] [--work DIR]

The SLURM is that of tests/slurm: two nodes of one core each on loopback (needs root, and its Debian packages). What is
measured goes to `results`: `runs.csv` (where the time of each run went), `sweep.json` (the sweep as a whole, and what
`retry` did), `status-*.txt` (what `structlearn status` showed). Seed 0's runs are made a second time by a shell loop of
`structlearn train --ranks 2`, one after the other, to see what SLURM and the sweep cost.
"""

import json
import os
import runpy
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pandas as pd

import analysis
from analysis.experiment import keep, parser
from hpc.config import yamls
from jobs.attempts import history

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
SLURM = runpy.run_path(str(ROOT / "tests" / "slurm" / "cluster.py"))
BAD = 5
LIMIT_S = 3000.0
LOOKS_S = 20.0


class Commands:
    """The command `structlearn`, as a user of the cluster gives it."""

    def __init__(self, env: dict[str, str], folder: Path) -> None:
        self.env, self._folder = env | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "COLUMNS": "120"}, folder
        self.env["FORCE_COLOR"] = "1"  # as in a terminal

    def __call__(self, *arguments: str, fails: bool = False) -> str:
        """What it prints."""
        line = [sys.executable, "-m", "jobs", *arguments]
        done = subprocess.run(line, env=self.env, cwd=self._folder, capture_output=True, text=True, check=False)
        assert bool(done.returncode) == fails, done.stdout + done.stderr
        return done.stdout

    def states(self, folder: Path) -> list[dict[str, Any]]:
        """Of all runs of a sweep."""
        found: list[dict[str, Any]] = json.loads(self("status", str(folder), "--json"))["runs"]
        return found

    def wait(self, folder: Path, shown: Path | None = None) -> list[dict[str, Any]]:
        """Until every run is done or failed; what `status` shows meanwhile goes into files."""
        until, look, number = time.monotonic() + LIMIT_S, 0.0, 0
        while True:
            found = self.states(folder)
            noted = all(history(folder / each["id"]) for each in found)  # by its job, a moment after the run is done
            if noted and {each["kind"] for each in found} <= {"done", "failed"}:
                return found
            assert time.monotonic() < until, found
            if shown is not None and time.monotonic() > look:
                look, number = time.monotonic() + LOOKS_S, number + 1
                text = self("status", str(folder)).replace(str(self._folder), "runs")
                (shown / f"status-{number:02}.txt").write_text(text)
            time.sleep(1)


def sweep_file(source: Path, folder: Path, name: str, **changes: Any) -> tuple[Path, Path]:
    """(a sweep's file, its folder): that of the experiment, with another folder."""
    values = yamls.load(source) | changes | {"run_dir": str(folder / name)}
    path = folder / f"{name}.yaml"
    path.write_text(yamls.dump(values))
    return path, folder / name


def times(folder: Path, states: list[dict[str, Any]], submitted: float) -> pd.DataFrame:
    """Where the time of each run went, in seconds: one row a run."""
    records = analysis.load(folder)
    phases = records.profile.groupby("run").sum().drop(columns="epoch")
    trained = records.epochs.groupby("run").seconds.max()
    rows = []
    for state in states:
        (attempt,) = history(folder / state["id"])
        row = phases.loc[state["id"]]
        rows.append({
            "run": state["id"], "label": state["label"], "waited": attempt.began - submitted,
            "seconds": attempt.ended - attempt.began, "trained": trained[state["id"]],
            "steps": row.drop(["evaluate", "checkpoint"]).sum(), "evaluate": row["evaluate"],
            "checkpoint": row["checkpoint"], "test_accuracy": state["accuracy"],
        })  # fmt: skip
    return pd.DataFrame(rows)


def whole(source: Path, work: Path, results: Path, commands: Commands) -> dict[str, Any]:
    """The sweep, from `submit` to `collect`."""
    path, folder = sweep_file(source, work, "sweep")
    began = time.time()
    commands("submit", str(path), "--cluster", "slurm")
    submit_s = time.time() - began
    states = commands.wait(folder, results)
    wall_s = max(history(folder / each["id"])[-1].ended for each in states) - began
    assert {each["kind"] for each in states} == {"done"}, states
    began_collect = time.time()
    collected = commands("collect", str(folder), "--out", str(work / "sweep.h5"))
    collect_s = time.time() - began_collect
    frame = times(folder, states, began)
    both = analysis.load(folder).epochs, analysis.load(work / "sweep.h5").epochs
    keep({"runs": frame}, results)
    by_hand = 0.0
    alone = [each for each in states if each["label"].endswith("seed=0") or " seed=0 " in each["label"]]
    for each in alone:
        config, copy = folder / each["id"] / "config.yaml", work / "by-hand" / each["id"]
        start = time.time()
        commands("train", str(config), "--ranks", "2", "--run_dir", str(copy), "--progress", "none")
        by_hand += time.time() - start
    mine = frame[frame.run.isin([each["id"] for each in alone])]
    return {
        "runs": len(states), "submit_s": submit_s, "wall_s": wall_s, "collect_s": collect_s,
        "collect_said": collected.splitlines(), "collected_epochs_equal": bool(len(both[0]) == len(both[1])),
        "in_runs_s": float(frame.seconds.sum()), "trained_s": float(frame.trained.sum()),
        "steps_s": float(frame.steps.sum()), "evaluate_s": float(frame.evaluate.sum()),
        "checkpoint_s": float(frame.checkpoint.sum()), "by_hand_runs": len(alone), "by_hand_s": by_hand,
        "the_same_in_the_sweep_s": float(mine.seconds.sum()),
        "same_accuracies_by_hand": [
            json.loads((work / "by-hand" / each["id"] / "status.json").read_text())["test_accuracy"] == each["accuracy"]
            for each in alone
        ],
    }  # fmt: skip


def retried(source: Path, work: Path, commands: Commands) -> dict[str, Any]:
    """Five runs of the sweep, one epoch long, find a folder where their record belongs, and fail; then it is mended."""
    path, folder = sweep_file(source, work, "broken", epochs=1)
    commands("submit", str(path), "--cluster", "slurm", "--resources.sbatch.hold", "true")
    runs = [each["id"] for each in commands.states(folder)]
    bad = runs[3::5][:BAD]
    for run in bad:
        (folder / run / "record.h5").mkdir()  # no record can be written
    _release(folder, commands)
    before = commands.wait(folder)
    for run in bad:
        (folder / run / "record.h5").rmdir()
    starts = {run: len(history(folder / run)) for run in runs}
    said = commands("retry", "--failed", str(folder))
    _release(folder, commands)
    after = commands.wait(folder)
    again = [run for run in runs if len(history(folder / run)) > starts[run]]
    return {
        "failed_before": [each["id"] for each in before if each["kind"] == "failed"], "made_to_fail": bad,
        "failures_each": [starts[run] for run in bad], "error": next(each["error"] for each in before if each["error"]),
        "said": said.strip(), "started_again": again, "done_after": sum(each["kind"] == "done" for each in after),
    }  # fmt: skip


def _release(folder: Path, commands: Commands) -> None:
    """Let the sweep's newest array go: its jobs are held, so that their folders can be made unfit before they start."""
    line = json.loads((folder / "sweep" / "submissions.jsonl").read_text().splitlines()[-1])
    array = str(next(iter(line["jobs"])).partition("_")[0])
    subprocess.run(["scontrol", "release", array], check=True, env=commands.env)


def main() -> None:
    made = parser(__doc__, HERE)
    made.add_argument("--work", type=Path, help="where the run folders go; they stay there")
    given = made.parse_args()
    given.results.mkdir(parents=True, exist_ok=True)
    for old in given.results.glob("status-*.txt"):
        old.unlink()
    work = given.work or Path(tempfile.mkdtemp(prefix="slurm-sweep-"))
    work.mkdir(parents=True, exist_ok=True)
    with SLURM["Cluster"](cpus=1) as slurm:
        commands = Commands({**os.environ, **slurm.env()}, work)
        found = {"sweep": whole(given.file, work, given.results, commands)}
        found["retry"] = retried(given.file, work, commands)
    text = json.dumps(found, indent=1).replace(str(work), "runs")
    (given.results / "sweep.json").write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
