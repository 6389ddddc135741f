"""How long a person waits for ``structlearn submit`` and ``status``, on a SLURM of this machine.

    python benchmarks/sweeps.py [--rounds 5]

Whole commands, from the shell to the prompt. Beside ``submit`` stands a script by hand that gives submitit as many
calls and nothing else: no check of a run's configuration, no folder, no record of what was submitted. Beside
``status`` stands a script that reads the status file of every run, one after the other, and counts. Jobs are held, so
that nothing trains meanwhile; SLURM is that of tests/slurm (needs root, and its Debian packages), with arrays of up to
1,001 jobs.
"""

import json
import runpy
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from measure import interleave, parser, publish, ratio, spread

from hpc.config import yamls
from jobs.attempts import Attempt, note
from jobs.sweepfolder import OWN, RUNS, Submission, SweepFolder

SLURM = runpy.run_path(str(Path(__file__).parent.parent / "tests" / "slurm" / "cluster.py"))
BY_HAND = """
import sys, submitit
calls, folder = int(sys.argv[1]), sys.argv[2]
for start in range(0, calls, 1001):
    executor = submitit.AutoExecutor(folder=folder, cluster="slurm")
    executor.update_parameters(timeout_min=5, slurm_additional_parameters={"hold": True})
    executor.submit_array([submitit.helpers.CommandFunction(["true"])] * min(1001, calls - start))
"""
COUNT = """
import collections, json, pathlib, sys
files = pathlib.Path(sys.argv[1]).glob("*/status.json")
print(collections.Counter(json.loads(each.read_text())["state"] for each in files))
"""
STATES = ("running", "done", "done", "done", "stopped", "failed")


def seconds(line: list[str], env: dict[str, str]) -> float:
    """Of a command."""
    began = time.perf_counter()
    subprocess.run(line, env=env, check=True, stdout=subprocess.DEVNULL, timeout=600)
    return time.perf_counter() - began


def submitting(folder: Path, runs: int, env: dict[str, str]) -> tuple[Callable[[], float], Callable[[], float]]:
    """(structlearn submit of so many runs that are new, submitit's array of as many calls)."""
    numbers = iter(range(10**6))

    def ours() -> float:
        number = next(numbers)
        file = folder / f"sweep-{runs}-{number}.yaml"
        needs = {"ranks": 2, "nodes": 2, "sbatch": {"hold": True}}
        values = {"run_dir": str(folder / f"{runs}-{number}"), "sweep": {"seeds": runs}, "resources": needs}
        file.write_text(yamls.dump(values))
        took = seconds([sys.executable, "-m", "jobs", "submit", str(file), "--cluster", "slurm"], env)
        subprocess.run(["scancel", "--me"], env=env, check=True)
        return took

    def by_hand() -> float:
        took = seconds([sys.executable, "-c", BY_HAND, str(runs), str(folder / f"hand-{next(numbers)}")], env)
        subprocess.run(["scancel", "--me"], env=env, check=True)
        return took

    return ours, by_hand


def large(folder: Path, runs: int) -> None:
    """A sweep's folder of so many runs, each as it is after a start or two."""
    sweep = SweepFolder(folder)
    sweep.logs.mkdir(parents=True)
    names = [f"{number:012x}" for number in range(runs)]
    needs = {"ranks": 2}
    entries = {name: {"label": f"lr=0.1 seed={number}", "resources": needs} for number, name in enumerate(names)}
    (folder / OWN / RUNS).write_text(json.dumps({"runs": entries}))
    for start in range(0, runs, 1000):
        jobs = {f"{start + 1}_{index}": [name] for index, name in enumerate(names[start : start + 1000])}
        sweep.note(Submission(time.time(), "slurm", jobs))
    for number, name in enumerate(names):
        run_dir = sweep.run_dir(name)
        run_dir.mkdir()
        state = STATES[number % len(STATES)]
        status = {"state": state, "heartbeat": time.time(), "epoch": 3, "epochs": 9, "test_accuracy": 0.9}
        (run_dir / "status.json").write_text(json.dumps(status))
        if state != "running":
            note(run_dir, Attempt("1_0", 0.0, 1.0, 0, state))


def main() -> None:
    rounds = parser(__doc__, 5).parse_args().rounds
    lines = ["| what | structlearn, s | beside it, s | ratio |", "|---|---|---|---|"]
    with tempfile.TemporaryDirectory() as name, SLURM["Cluster"](max_array_size=1001) as slurm:
        folder, env = Path(name), slurm.env()
        large(folder / "large", 10_000)
        status = [sys.executable, "-m", "jobs", "status", str(folder / "large")]
        count = [sys.executable, "-c", COUNT, str(folder / "large")]
        pairs = {
            f"submit of {runs:,} runs in {-(-runs // 1001)} array(s), over submitit alone": submitting(
                folder, runs, env
            )
            for runs in (1000, 5000)
        }
        pairs["status over 10,000 run folders, over reading their status files"] = (
            lambda: seconds(status, env),
            lambda: seconds(count, env),
        )
        for what, (ours, theirs) in pairs.items():
            found = interleave({"ours": ours, "theirs": theirs}, rounds)
            both = found["ours"], found["theirs"]
            lines.append(f"| {what} | {spread(both[0])} | {spread(both[1])} | {ratio(*both)} |")
    publish("sweeps", f"Submitting and looking: median [quartiles] of {rounds} rounds", lines)


if __name__ == "__main__":
    main()
