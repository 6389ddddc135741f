"""Kill a two-rank run with SIGKILL at random moments, resume it each time, and compare the end with an undisturbed run.

    python experiments/sigkill/run.py [--kills 100] [--exchange persyn|sync|none]

Each kill hits one victim drawn at random: a rank, both ranks, mpiexec's helper, mpiexec, the command the user
started, or all of them at once; at a moment drawn uniformly from the time such a process usually lives, start-up and
checkpoint writing included. After each kill nothing may be left: every process of the machine whose command line
or environment names the run folder is counted (/proc, by psutil), for five seconds until there is none. A start that
neither ends nor makes progress for two minutes counts as a hang. When the run is done before all kills are spent, its
end is compared bit for bit with the undisturbed one (checkpoint: weights, optimiser, buffers, random state; record:
every column but the times), and another run begins in a new folder.
"""

import argparse
import csv
import importlib.util
import json
import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

import left  # noqa: E402

ROOT = HERE.parent.parent
HANG_S = 120.0
VICTIMS = ("rank 0", "rank 1", "both ranks", "proxy", "mpiexec", "command", "everything")

_spec = importlib.util.spec_from_file_location("identical", ROOT / "tests" / "support" / "identical.py")
assert _spec is not None
assert _spec.loader is not None
identical = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(identical)


def start(run_dir: Path, exchange: str) -> "subprocess.Popen[bytes]":
    overrides = ["--exchange.name", exchange] if exchange != "persyn" else []
    command = [sys.executable, "-m", "jobs", "train", str(HERE / "small.yaml"), "--ranks", "2", "--progress", "plain"]
    log = (run_dir.parent / f"{run_dir.name}.log").open("ab")
    return subprocess.Popen(
        [*command, "--run_dir", str(run_dir), *overrides],
        cwd=ROOT, stdout=log, stderr=log, env=os.environ | {"SIGKILL_RUN": str(run_dir), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def choose(run_dir: Path, victim: str) -> list[psutil.Process]:
    """The processes of a victim."""
    everyone = left.named(run_dir, "SIGKILL_RUN")
    lines = {process: " ".join(process.cmdline()) for process in everyone}
    ranks = sorted(
        (process for process in everyone if "-m hpc.rank" in lines[process] and "PMI_RANK" in process.environ()),
        key=lambda process: int(process.environ()["PMI_RANK"]),
    )
    return {
        "rank 0": ranks[:1],
        "rank 1": ranks[1:],
        "both ranks": ranks,
        "proxy": [process for process in everyone if "hydra_pmi_proxy" in lines[process]],
        "mpiexec": [process for process in everyone if "mpiexec" in lines[process].split(" ")[0]],
        "command": [process for process in everyone if "-m jobs train" in lines[process]],
        "everything": everyone,
    }[victim]


def kill(run_dir: Path, exchange: str, moment: float, victim: str) -> dict[str, Any]:
    """One start and one kill; what came of it."""
    process = start(run_dir, exchange)
    begun = time.monotonic()
    while time.monotonic() - begun < moment and process.poll() is None:
        time.sleep(0.002)
    finished = process.poll() is not None
    hit = 0
    if not finished:
        try:
            for target in choose(run_dir, victim):
                target.kill()
                hit += 1
        except psutil.NoSuchProcess:
            pass  # it ended by itself meanwhile; the others were hit
    end = left.wait(process, run_dir, HANG_S, "SIGKILL_RUN")
    return {
        "victim": victim, "moment_s": round(moment, 3), "hit": hit, "finished": finished, "hang": end.hang,
        "orphans": end.orphans, "exit_code": process.returncode,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--exchange", default="persyn", choices=("persyn", "sync", "none"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "sigkill")
    arguments = parser.parse_args()
    draw = random.Random(arguments.seed)
    shutil.rmtree(arguments.work, ignore_errors=True)
    arguments.work.mkdir(parents=True)
    whole = arguments.work / "whole"
    begun = time.monotonic()
    assert start(whole, arguments.exchange).wait() == 0
    lifetime = time.monotonic() - begun
    print(f"undisturbed: {lifetime:.1f} s", flush=True)

    rows: list[dict[str, Any]] = []
    compared, different, number, kills = 0, 0, 0, 0
    while kills < arguments.kills:
        run_dir = arguments.work / f"run-{number}"
        row = kill(run_dir, arguments.exchange, draw.uniform(0.2, 0.75 * lifetime), draw.choice(VICTIMS))
        rows.append({"run": number, **row})
        kills += row["hit"] > 0
        if row["finished"] or kills == arguments.kills:
            assert row["finished"] is False or row["exit_code"] == 0, row
            assert start(run_dir, arguments.exchange).wait() == 0
            differing = identical.differences(whole, run_dir)
            compared, different, number = compared + 1, different + bool(differing), number + 1
            print(f"run {run_dir.name}: {'; '.join(differing) or 'bit-identical'}", flush=True)
        print(f"{kills:4d} {row}", flush=True)
    results = HERE / "results"
    results.mkdir(exist_ok=True)
    with (results / f"{arguments.exchange}.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    summary = {
        "exchange": arguments.exchange,
        "kills": kills,
        "runs compared": compared,
        "runs that differ": different,
        "hangs": sum(row["hang"] for row in rows),
        "orphans": sum(row["orphans"] for row in rows),
        "seconds of the undisturbed run": round(lifetime, 1),
    }
    (results / f"{arguments.exchange}.json").write_text(json.dumps(summary, indent=1) + "\n")
    print(json.dumps(summary))


if __name__ == "__main__":
    main()
