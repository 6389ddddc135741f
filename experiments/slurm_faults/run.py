"""Disturb sweeps on a real SLURM of two nodes, each kind of fault in sweeps of its own; what became of their runs.

    python experiments/slurm_faults/run.py [KIND ...] [--hits 10]

A sweep of ``small.yaml`` is handed over with ``structlearn submit`` to a cluster that is started for it
(``tests/slurm/cluster.py``: two nodes on loopback). Faults of its kind come at random moments until as many starts of
runs as asked for were hit; then the sweep is left to end. Every run is compared, bit for bit, with the same run trained
by ``structlearn train --ranks 2`` without SLURM. results/runs.csv has one row a run, results/hits.csv one for each run
that a fault hit. A kind that has its hits already is not made again.
"""

import argparse
import itertools
import math
import os
import random
import re
import runpy
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from analysis.rows import Rows
from hpc.config import yamls
from hpc.config.folder import read_status
from jobs.attempts import history

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
slurm = runpy.run_path(str(ROOT / "tests" / "slurm" / "cluster.py"))
faults = runpy.run_path(str(ROOT / "tests" / "slurm" / "faults.py"))
identical = runpy.run_path(str(ROOT / "tests" / "support" / "identical.py"))

RUNS = (
    "kind", "sweep", "run", "label", "hits", "starts", "stops", "openings", "history", "reasons", "state",
    "differences", "seconds",
)  # fmt: skip
HITS = ("kind", "sweep", "hit", "injection", "run", "fault", "moment", "epoch", "lost")
PATIENCE_S = 900.0
"""So long a sweep may take once it is left alone."""
EARLY = 1 / 3
"""Of the faults come whatever runs are doing, which is to start more often than not; others while they train."""
YOUNG_S = 7.0
"""A controller that is killed forgets its last five seconds: FACTS.md, 6."""


@dataclass
class Hit:
    """A fault that met a run."""

    run: str
    what: str
    at: float
    moment: float
    """Seconds since its job was started."""
    epoch: int
    step: int
    """Of the newest checkpoint."""
    injection: int
    """Which fault of the sweep: one of a node or a daemon meets several runs."""


class Watch(threading.Thread):
    """Notes when each run's newest checkpoint came."""

    def __init__(self, sweep: Any) -> None:
        super().__init__(daemon=True)
        self._sweep = sweep
        self.seen: dict[str, list[tuple[float, int]]] = {run: [] for run in sweep.runs}
        self.over = threading.Event()

    def run(self) -> None:
        """Until it is over."""
        while not self.over.wait(0.1):
            for run, marks in self.seen.items():
                if (step := self._sweep.step(run)) > self.step(run):
                    marks.append((time.time(), step))

    def step(self, run: str) -> int:
        """The newest that has been seen."""
        return self.seen[run][-1][1] if self.seen[run] else 0

    def lost(self, hit: Hit, until: float) -> float | None:
        """The longest time without a new step that ended after a fault, and began before the next one; None: none came.

        It counts from the fault on. Its ends are checkpoints, each further than all before it.
        """
        marks = [(hit.at, hit.step), *[mark for mark in self.seen[hit.run] if mark[0] > hit.at and mark[1] > hit.step]]
        gaps = [later - at for (at, _), (later, _) in itertools.pairwise(marks) if at < until]
        return max(gaps, default=None)


class Disturbed(faults["Sweep"]):  # type: ignore[misc]
    """A sweep that goes on, and what has met its runs."""

    hits: list[Hit]
    watch: Watch

    def submit(self, values: dict[str, Any]) -> None:
        """Hand it over, and look at it from now on."""
        super().submit(values)
        self.hits, self.watch = [], Watch(self)
        self.watch.start()

    def met(self, runs: Sequence[str], what: str) -> None:
        """A fault comes now, and meets these runs."""
        ages, number = self.ages(), 1 + max((hit.injection for hit in self.hits), default=-1)
        for run in runs:
            epoch = int(read_status(self.folder / run).get("epoch", 0))
            self.hits.append(Hit(run, what, time.time(), ages.get(run, math.nan), epoch, self.watch.step(run), number))

    def wait_for_training(self) -> None:
        """Return when one of the runs has just made steps; at the latest after three minutes."""
        until = time.monotonic() + 180
        while time.monotonic() < until and not self.over():
            if any(marks and marks[-1][0] > time.time() - 1 for marks in self.watch.seen.values()):
                return
            time.sleep(0.2)

    def lost(self, hit: Hit) -> float | None:
        """Seconds without a new step that a fault cost its run."""
        later = [each.at for each in self.hits if each.run == hit.run and each.at > hit.at]
        return self.watch.lost(hit, min(later, default=math.inf))


@dataclass(frozen=True)
class Kind:
    """What is done to a sweep.

    Attributes:
        faults: of tests/slurm/faults.py, in turn; none: SLURM makes them by itself.
        each: a moment for each run of its own; else one for all that run then.
        old: seconds that every job must be old.
        values: of the sweep file that differ.
    """

    faults: tuple[str, ...]
    each: bool = False
    old: float = 0.0
    values: dict[str, Any] = field(default_factory=dict)


FEW = {"sweep.seeds": 3}
"""Each run is hit more than once."""
KINDS = {
    "scancel": Kind(("told_to_stop",), each=True),
    "preemption": Kind(("preempted",), values=FEW | {"resources.partition": "low"}),
    "time limit": Kind((), values={"resources.timeout_min": 2, "resources.signal_s": 15, "epochs": 100}),
    "rank killed": Kind(("rank_killed",), each=True),
    "slurmd killed": Kind(("daemon_killed",), values=FEW),
    "batch node failed": Kind(("batch_node_failed",), values=FEW),
    "other node failed": Kind(("other_node_failed",), values=FEW),
    "node away": Kind(("node_away",), values=FEW),
    "slurmctld restarted": Kind(("controller_restarted",), values=FEW),
    "slurmctld killed": Kind(("controller_killed",), old=YOUNG_S, values=FEW),
    "several": Kind(
        (
            "told_to_stop", "preempted", "rank_killed", "daemon_killed", "batch_node_failed", "other_node_failed",
            "node_away", "controller_restarted",
        ),
        values=FEW | {"resources.partition": "low", "epochs": 60},
    ),
}  # fmt: skip


def moment(draw: random.Random) -> tuple[float, float]:
    """When a fault comes: (seconds since the job's start, or steps made)."""
    return (draw.uniform(0.5, 15), math.inf) if draw.random() < EARLY else (math.inf, draw.uniform(1, 520))


def each_at_its_moment(sweep: Disturbed, kind: Kind, _wanted: int) -> None:
    """Every run meets a fault at a moment of its own, once."""
    (name,) = kind.faults
    moments = {run: moment(sweep.draw) for run in sweep.runs}
    until = time.monotonic() + PATIENCE_S
    while not sweep.over() and time.monotonic() < until:
        ages = sweep.ages()
        for run, age in ages.items():
            if run in moments and (age >= moments[run][0] or sweep.watch.step(run) >= moments[run][1]):
                del moments[run]
                faults[name](sweep, [run])
        time.sleep(0.2)


def all_at_once(sweep: Disturbed, kind: Kind, wanted: int) -> None:
    """Again and again all runs that go on meet a fault, each once they have got over the last one."""
    until = time.monotonic() + PATIENCE_S
    number = sweep.draw.randrange(len(kind.faults))
    while not sweep.over() and time.monotonic() < until:
        if len(sweep.hits) >= wanted or not sweep.ages():
            time.sleep(0.5)
            continue
        if sweep.draw.random() > EARLY:
            sweep.wait_for_training()
        time.sleep(sweep.draw.uniform(0, 8))
        ages = sweep.ages()
        if not ages or min(ages.values()) < kind.old:
            continue
        number += 1
        name, before = kind.faults[number % len(kind.faults)], len(sweep.hits)
        print(f"{stamp()} {name} meets {len(ages)} run(s)", flush=True)
        faults[name](sweep, list(ages))
        new, patience = sweep.hits[before:], time.monotonic() + 300
        while time.monotonic() < patience and any(sweep.lost(hit) is None for hit in new if hit.run in sweep.ages()):
            time.sleep(0.5)
        until = time.monotonic() + PATIENCE_S


def limits(sweep: Disturbed, _kind: Kind, _wanted: int) -> None:
    """Every run comes to the end of its job's time, again and again; noted when it has stopped."""
    until = time.monotonic() + 2 * PATIENCE_S
    known = dict.fromkeys(sweep.runs, 0)
    while not sweep.over() and time.monotonic() < until:
        for run in sweep.runs:
            for attempt in history(sweep.folder / run)[known[run] :]:
                known[run] += 1
                if attempt.how in {"stopped", "failed"}:
                    place = int(attempt.place.split("-")[1]) if attempt.place else 0
                    epoch = int(read_status(sweep.folder / run).get("epoch", 0))
                    lasted = attempt.ended - attempt.began
                    sweep.hits.append(Hit(run, "time limit", attempt.ended, lasted, epoch, place, len(sweep.hits)))
        time.sleep(0.2)


def undisturbed(work: Path, run_dir: Path) -> Path:
    """The same run, on two ranks of this machine, without SLURM."""
    alone = work / "undisturbed" / run_dir.name
    if not alone.exists():
        made = alone.with_name(f"{alone.name}-{os.getpid()}")
        line = [sys.executable, "-m", "jobs", "train", str(run_dir / "config.yaml"), "--ranks", "2"]
        env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        subprocess.run([*line, "--run_dir", str(made), "--progress", "none"], env=env, check=True, cwd=work)
        made.rename(alone)
    return alone


def make(name: str, number: int, wanted: int, work: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """One sweep of a kind: (rows of its runs, rows of its hits)."""
    kind, folder = KINDS[name], work / f"{name.replace(' ', '-')}-{number}"
    shutil.rmtree(folder, ignore_errors=True)
    values = yamls.load(HERE / "small.yaml")
    for key, value in kind.values.items():
        section = values
        *outer, last = key.split(".")
        for word in outer:
            section = section[word]
        section[last] = value
    with slurm["Cluster"](cpus=values["resources"]["parallel"]) as cluster:
        sweep = Disturbed(cluster, folder / "sweep", random.Random(f"{name} {number}"))
        sweep.submit(values)
        begun = time.time()
        print(f"{stamp()} {name}: {len(sweep.runs)} runs", flush=True)
        disturb = limits if name == "time limit" else each_at_its_moment if kind.each else all_at_once
        try:
            disturb(sweep, kind, wanted)
        finally:
            sweep.watch.over.set()
            (folder / "logs.txt").write_text(cluster.logs(2000))
            (folder / "queue.txt").write_text(sweep.ask("scontrol", "show", "job", "--oneliner"))
        states = sweep.states()
    runs = [
        {"kind": name, "sweep": number, **ended(sweep, state, undisturbed(work, sweep.folder / state["id"]), begun)}
        for state in states
    ]
    hits = [
        {
            "kind": name, "sweep": number, "hit": place, "injection": hit.injection, "run": hit.run, "fault": hit.what,
            "moment": round(hit.moment, 1), "epoch": hit.epoch,
            "lost": "" if (lost := sweep.lost(hit)) is None else round(lost, 1),
        }
        for place, hit in enumerate(sweep.hits)
    ]  # fmt: skip
    return runs, hits


def ended(sweep: Disturbed, state: dict[str, Any], alone: Path, begun: float) -> dict[str, Any]:
    """What became of a run."""
    run_dir = sweep.folder / state["id"]
    past = history(run_dir)
    output = run_dir / "logs" / "output.log"
    text = output.read_text(errors="replace") if output.exists() else ""
    reasons = dict.fromkeys(re.sub(r"\(\S+, pid \d+\)", "", attempt.reason)[:90] for attempt in past if attempt.reason)
    done = state["kind"] == "done"
    return {
        "run": state["id"], "label": state["label"], "hits": sum(hit.run == state["id"] for hit in sweep.hits),
        "starts": state["starts"], "stops": state["stops"],
        "openings": len(re.findall(r"^\S+: mlp \(", text, re.MULTILINE)),
        "history": " ".join(attempt.how for attempt in past), "reasons": "; ".join(reasons),
        "state": state["kind"],
        "differences": len(identical["differences"](alone, run_dir)) if done else "",
        "seconds": round(read_status(run_dir).get("heartbeat", 0) - begun, 1) if done else "",
    }  # fmt: skip


def stamp() -> str:
    return time.strftime("%H:%M:%S")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kinds", nargs="*", help=f"of {', '.join(KINDS)}; left out: all")
    parser.add_argument("--hits", type=int, default=10, help="of each kind, at least")
    parser.add_argument("--results", type=Path, default=HERE / "results")
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "slurm_faults")
    arguments = parser.parse_args()
    if reason := slurm["missing"]():
        sys.exit(reason)
    all_runs = Rows(arguments.results / "runs.csv", RUNS, key=["kind", "sweep", "run"])
    all_hits = Rows(arguments.results / "hits.csv", HITS, key=["kind", "sweep", "hit"])
    work = arguments.work.absolute()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended by a signal"))  # the cluster is taken down
    for name in arguments.kinds or KINDS:
        number = 0
        while (made := sum(row["kind"] == name for row in all_hits)) < arguments.hits:
            number = 1 + max((int(row["sweep"]) for row in all_runs if row["kind"] == name), default=-1)
            runs, hits = make(name, number, arguments.hits - made, work)
            all_hits.append(*hits)
            all_runs.append(*runs)
            for row in (*runs, *hits):
                print(stamp(), row, flush=True)


if __name__ == "__main__":
    main()
