"""Randomised worlds of gossiping ranks, one start of mpiexec after the other, with the MPI library of this Python.

    python experiments/gossip_chaos/run.py --transport shm
    python experiments/gossip_chaos/run.py --transport tcp
    python experiments/gossip_chaos/run.py --transport shm --first 137 --runs 1      # one world again

Writes one row a world to results/LIBRARY-TRANSPORT.csv; worlds that are there already are left out. The first
violation ends it, with the seed that makes the world again: a mass, a count or a mean that is not what it must be, or a
world that hangs. A drain that takes longer than the slowest rank's step and a second is told, counted, and goes into
the exit code: it depends on what else the machine does, which the row's ``load`` says, more than on the seed.
"""

import json
import os
import runpy
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from analysis.experiment import parser
from analysis.rows import Rows
from hpc.config import yamls
from jobs.launch import command, find_mpiexec

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
COLUMNS = (
    "library", "transport", "seed", "ranks", "rho", "numbers", "slices", "payload", "peers", "momentum", "progress",
    "consensus_every", "steps", "epochs", "every", "pace_s", "stall", "pauses_save", "pauses_epoch", "pauses_stop",
    "restarts", "sent", "received", "skipped", "mebibytes", "steps_made", "steps_planned", "quickest", "slowest",
    "overtaking", "measured", "allowed", "drain_s", "step_s", "drain_over_step_s", "error", "consensus_error", "load",
    "seconds",
)  # fmt: skip
START_S = 300.0
WORLD_S = 30.0
"""A start may take START_S and WORLD_S for each of its worlds; past it, it hangs."""
DRAIN_S = 1.0
TALK = ROOT / "tests" / "support" / "transports.py"
TRANSPORTS: dict[str, dict[str, str]] = runpy.run_path(str(TALK))["TRANSPORTS"]


def environment(transport: str) -> dict[str, str]:
    hidden = ("SLURM_", "PMI_", "PMIX_", "OMPI_", "STRUCTLEARN_")
    env = {key: value for key, value in os.environ.items() if not key.startswith(hidden)}
    return env | TRANSPORTS[transport] | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


def probe(transport: str) -> tuple[str, float]:
    """(the library; how many bytes went over the loopback device for each byte that rank 0 sent to rank 1)."""
    line = command(find_mpiexec(), 2, [sys.executable, str(TALK)])
    done = subprocess.run(line, env=environment(transport), capture_output=True, text=True, check=True, timeout=120)
    library, ratio = done.stdout.split()
    return library, float(ratio)


def worlds(file: Path, ranks: int, first: int, count: int, transport: str) -> tuple[list[dict[str, Any]], str]:
    """The rows of one start; why it ended before its time, or nothing."""
    body = [sys.executable, str(HERE / "body.py"), str(file), str(first), str(count)]
    child = subprocess.Popen(
        command(find_mpiexec(), ranks, body), env=environment(transport),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT,
    )  # fmt: skip
    said: list[str] = []
    listener = threading.Thread(target=lambda: said.extend(child.stderr or ()), daemon=True)
    watchdog = threading.Timer(START_S + WORLD_S * count, child.kill)
    listener.start()
    watchdog.start()
    try:
        rows = [json.loads(line) for line in child.stdout or () if line.startswith("{")]
        code = child.wait()
    finally:
        child.kill()
        watchdog.cancel()
    listener.join(5)
    if code == 0 and len(rows) == count:
        return rows, ""
    told = [line for line in said if line.startswith('{"seed"')]
    if told:
        violation, _ = json.JSONDecoder().raw_decode(told[0])  # others may have said something on the same line
        who = f"world {violation['seed']}, rank {violation['rank']}"
        return rows, f"{who}: {violation['violation']}\n{violation['where']}"
    begun = [line for line in said if line.startswith("seeds")]
    return rows, f"ended with {code} after {len(rows)} of {count} worlds; {begun[-1:]}\n{''.join(said[-20:])}"


def main() -> None:
    options = parser(__doc__, HERE)
    options.add_argument("--transport", choices=tuple(TRANSPORTS), default="shm")
    options.add_argument("--first", type=int, default=0, help="the first world's seed")
    options.add_argument("--runs", type=int, help="how many worlds; else what the file says")
    arguments = options.parse_args()
    plan = yamls.load(arguments.file)
    library, ratio = probe(arguments.transport)
    print(f"{library} over {arguments.transport}: {ratio:.2f} bytes over loopback for each byte sent", flush=True)
    assert arguments.transport != "tcp" or ratio > 0.9, "the messages do not go over TCP"
    kept = Rows(arguments.results / f"{library}-{arguments.transport}.csv", COLUMNS, key=["seed"])
    late = 0
    at, end = arguments.first, arguments.first + (arguments.runs or plan["runs"])
    while at < end:
        if kept.has(at):
            at += 1
            continue
        count = 1
        while count < plan["worlds_a_start"] and at + count < end and not kept.has(at + count):
            count += 1
        begun = time.monotonic()
        rows, why = worlds(arguments.file, plan["ranks"][1], at, count, arguments.transport)
        where = {"library": library, "transport": arguments.transport}
        kept.append(*(where | row for row in sorted(rows, key=lambda row: row["seed"])))
        print(f"worlds {at} to {at + count - 1}: {len(rows)} in {time.monotonic() - begun:.0f} s", flush=True)
        if why:
            print(why, flush=True)
            sys.exit(1)
        for row in rows:
            if row["drain_over_step_s"] > DRAIN_S:
                late += 1
                print(
                    f"world {row['seed']}: a drain took {row['drain_over_step_s']:.1f} s more than a step", flush=True
                )
        at += count
    sys.exit(late > 0)


if __name__ == "__main__":
    main()
