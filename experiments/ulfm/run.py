"""Kill one of four gossiping ranks with SIGKILL, at a random step, and see what the others make of it.

    python experiments/ulfm/run.py [--kills 50]

Runs in an environment with Open MPI. Each run is killed once: a random rank, at a step drawn uniformly from those that
a rank makes, some milliseconds after it (a rank that others outpace may end before). Every sixth run is left
undisturbed, because the machine may be another later. Every row goes into ``results/runs.csv`` at once; a start of
this file goes on where the last one ended. As in ``experiments/sigkill``, every process of the machine that names the
run folder is counted when the command has returned, for five seconds until there is none; four minutes are a hang.
"""

import argparse
import os
import random
import shutil
import subprocess
import sys
from itertools import count
from pathlib import Path
from typing import Any

import h5py

from analysis.rows import Rows
from hpc.exchange.mass import UNITS
from jobs.launch import command, environment, find_mpiexec

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

import left  # noqa: E402

ROOT = HERE.parent.parent
COLUMNS = (
    "run", "victim", "step", "delay_s", "exit_code", "hang", "orphans", "killed", "noticed_first_s", "noticed_all_s",
    "state", "ranks_at_end", "test_accuracy", "whole_mass", "lost_step", "lost_rank", "lost_survivors", "lost_mass",
    "lost_seconds",
)  # fmt: skip
RANKS, STEPS, LATEST_S, HANG_S = 4, 240, 0.05, 240.0
EVERY = 6
"""Of so many runs, one is left undisturbed."""


def measure(run_dir: Path, victim: int, step: int, delay_s: float) -> dict[str, Any]:
    """One run; what came of it. Victim -1: none."""
    shutil.rmtree(run_dir, ignore_errors=True)
    program = [sys.executable, str(HERE / "body.py"), str(run_dir), str(victim), str(step), str(delay_s)]
    env = environment(RANKS) | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    log = (run_dir.parent / "log").open("wb")
    process = subprocess.Popen(command(find_mpiexec(), RANKS, program, tolerant=True), env=env, stdout=log, stderr=log)
    end = left.wait(process, run_dir, HANG_S)
    return {"exit_code": process.returncode, "hang": end.hang, "orphans": end.orphans, **told(run_dir)}


def told(run_dir: Path) -> dict[str, Any]:
    """What the run says of itself."""
    killed, noticed = run_dir / "killed", [float(file.read_text()) for file in run_dir.glob("noticed-*")]
    at = float(killed.read_text()) if killed.exists() else None
    row: dict[str, Any] = {
        "killed": at is not None,
        "noticed_first_s": round(min(noticed) - at, 4) if at and noticed else "",
        "noticed_all_s": round(max(noticed) - at, 4) if at and noticed else "",
    }
    with h5py.File(run_dir / "record.h5") as file:
        row |= {"state": file.attrs["state"].decode(), "ranks_at_end": int(file.attrs["world_size"])}
        row["test_accuracy"] = round(float(file["epochs/test_accuracy"][-1]), 5)
        whole = UNITS * row["ranks_at_end"]
        row["whole_mass"] = sum(round(part * whole) for part in file["exchange/mass"][:].tolist()) == whole
        for name in ("step", "rank", "survivors", "mass", "seconds"):
            row[f"lost_{name}"] = file[f"lost/{name}"][0].item() if "lost" in file else ""
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "ulfm")
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    rows = Rows(HERE / "results" / "runs.csv", COLUMNS, key=["run"])
    kills = sum(row["killed"] == "True" for row in rows)
    draw = random.Random(arguments.seed)
    for number in count():
        if kills == arguments.kills:
            break
        victim, step, delay_s = draw.randrange(RANKS), draw.randint(1, STEPS), draw.uniform(0, LATEST_S)
        if rows.has(number):
            continue
        if number % EVERY == 0:
            victim = -1
        row = {"run": number, "victim": victim, "step": step, "delay_s": round(delay_s, 4)}
        row |= measure(arguments.work / "run", victim, step, delay_s)
        kills += row["killed"]
        rows.append(row)
        print(row, flush=True)


if __name__ == "__main__":
    assert "OMPI_COMM_WORLD_RANK" not in os.environ, "not inside another launcher"
    main()
