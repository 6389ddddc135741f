"""Break a gossiping run on purpose, again and again: each kind of fault in each phase; what became of it.

    python experiments/faults/run.py [--trials 400] [--minutes 60]

A trial starts ``structlearn train``, and one of its ranks meets one fault (SIGKILL, SIGSTOP, SIGTERM, an exception) at
one moment of one phase (training, mixing, checkpoint, drain); ``early/inject.py`` makes it from inside that rank. Every
cell of kind and phase gets as many trials, in random order. The next trial resumes what the last one left, until the
run is done; then another begins in a new folder. One row a trial in results/trials.csv, written as it goes: a second
call goes on where the first one ended. What the columns say is in README.md.
"""

import argparse
import itertools
import json
import os
import random
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from sklearn.datasets import load_digits

from analysis.rows import Rows
from hpc.alone import Alone
from hpc.checkpoint import Checkpoints
from hpc.config.folder import frozen, read_status
from hpc.config.read import run_id
from hpc.exchange import mass

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

import left  # noqa: E402

ROOT = HERE.parent.parent
RESULTS = HERE / "results" / "trials.csv"
KINDS = ("SIGKILL", "SIGSTOP", "SIGTERM", "exception")
PHASES = {"training": (2, 80), "mixing": (2, 80), "checkpoint": (2, 5), "drain": (2, 5)}
"""Between which entries of a phase the fault comes."""
HANG_S = 180.0
COLUMNS = (
    "run", "trial", "ranks", "kind", "phase", "victim", "moment", "detected", "seconds", "exit_code", "code_ok",
    "message", "told_ok", "orphans", "checkpoints", "checkpoint_ok", "resumed_at", "resumed_ok", "state", "end_ok",
)  # fmt: skip


def write_digits(path: Path) -> None:
    """The 1,797 digits as a table: 64 pixels and the class."""
    digits = load_digits()
    table = np.column_stack([digits.data, digits.target]).astype(int)
    names = ",".join([*(f"pixel{place}" for place in range(64)), "digit"])
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savetxt(path, table, "%d", ",", header=names, comments="")


def start(run_dir: Path, ranks: int, fault: dict[str, Any]) -> "subprocess.Popen[bytes]":
    line = [sys.executable, "-m", "jobs", "train", str(HERE / "small.yaml"), "--ranks", str(ranks)]
    line += ["--data.root", str(run_dir.parent.parent / "digits.csv")]
    env = os.environ | {
        "FAULT": json.dumps(fault), "FAULT_RUN": str(run_dir), "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(HERE / "early"), str(ROOT)]),
    }  # fmt: skip
    with (run_dir.parent / "out").open("wb") as out, (run_dir.parent / "err").open("wb") as err:
        return subprocess.Popen(
            [*line, "--progress", "plain", "--run_dir", str(run_dir)], cwd=ROOT, stdout=out, stderr=err, env=env
        )


def good_checkpoints(run_dir: Path) -> tuple[list[int], str]:
    """The steps of all that are listed as good; what is wrong with one of them, or nothing.

    Each is read by the reader that a resumed run uses, as if it were the only one: every checksum is compared. No mass
    and no message may be missing.
    """
    config = frozen(run_dir)
    steps, wrong = [], ""
    for manifest in sorted(run_dir.glob("checkpoints/step-*/manifest.json")):
        with tempfile.TemporaryDirectory() as copy:
            shutil.copytree(manifest.parent, Path(copy, manifest.parent.name))
            assert config is not None
            try:
                loaded = Checkpoints(Path(copy), Alone(), run_id(config), 2, print).load()
                assert loaded is not None
                states = [loaded.read(rank) for rank in range(loaded.world_size)]
            except Exception as error:  # noqa: BLE001 - whatever is wrong with a checkpoint is what is asked here
                wrong = f"{manifest.parent.name}: {error}"
                continue
        parts = [own["exchange"] for own in states]
        sent, received = (sum(part["counters"][key] for part in parts) for key in ("sent", "received"))
        if sum(units for part in parts for units in part["masses"]) != mass.UNITS * len(states) or sent != received:
            wrong = (
                f"{manifest.parent.name}: masses {[part['masses'] for part in parts]}, {sent} sent, {received} received"
            )
        steps.append(loaded.step)
    return steps, wrong


def whole(run_dir: Path) -> bool:
    """Is a run that says so done: every epoch recorded once, and trained?"""
    status, config = read_status(run_dir), frozen(run_dir)
    assert config is not None
    with h5py.File(run_dir / "record.h5", "r") as file:
        epochs, accuracy = file["epochs/epoch"][()].tolist(), file["epochs/test_accuracy"][()].tolist()
    return status.get("state") == "done" and epochs == list(range(1, config.epochs + 1)) and accuracy[-1] > 0.9


def told(kind: str, victim: int, run_dir: Path, errors: str, resumable: bool) -> bool:
    """Does the command say what happened, to whom, and how to go on?"""
    again = "un the same command again" in errors
    if kind == "exception":
        log = run_dir / "logs" / f"rank-{victim:04d}.err"
        in_log = log.exists() and "FaultError: a fault that was asked for" in log.read_text()
        return in_log and f"structlearn: rank {victim}: FaultError: a fault that was asked for" in errors
    if kind == "SIGTERM":
        return "structlearn:" not in errors
    who = rf"rank {victim} \([^)]*\)"
    doing = r"(starting|training|evaluating|bringing messages to rest|writing a checkpoint) at step \d+"
    ended = rf"{who}, last seen {doing}, was (ended by a signal|the first to end)"
    trouble = rf"{who}: {doing}, \d+ s ago; that process is"
    lost = rf"{ended}|{trouble} gone" if kind == "SIGKILL" else rf"{trouble} stopped"
    return bool(re.search(lost, errors)) and again == resumable


def first_line(errors: str, run_dir: Path) -> str:
    """The first line of the message, without what is of this machine or this moment."""
    lines = [line for line in errors.splitlines() if line.startswith("structlearn:")]
    text = lines[0].removeprefix("structlearn: ") if lines else ""
    text = re.sub(r"pid \d+", "pid N", text.replace(str(run_dir), "RUN").replace(socket.gethostname(), "HOST"))
    return text[:160]


def trial(run_dir: Path, ranks: int, fault: dict[str, Any], expected: int | None) -> dict[str, Any]:
    """One start and one fault; what came of it.

    Args:
        run_dir: the run's folder.
        ranks: how many.
        fault: what is done, to whom, when.
        expected: the step that it must go on from; None: from the beginning.
    """
    note = Path(fault["note"])
    note.unlink(missing_ok=True)
    process = start(run_dir, ranks, fault)
    end = left.wait(process, run_dir, HANG_S, "FAULT_RUN")
    out, errors = ((run_dir.parent / name).read_text() for name in ("out", "err"))
    made = json.loads(note.read_text()) if note.exists() else None
    steps, wrong = good_checkpoints(run_dir)
    code, status = process.returncode, read_status(run_dir)
    state = status.get("state", "")
    kind, victim = fault["kind"], fault["rank"]
    resumed = re.search(r"resumed at epoch \d+, step (\d+)", out)
    at = int(resumed[1]) if resumed else None
    right = {"SIGTERM": {75, 0} if state == "done" else {75}, "exception": {1}}.get(kind, {75 if steps else 1})
    done = state == "done"
    return {
        "ranks": ranks, "kind": kind if made else "", "phase": fault["phase"] if made else "",
        "victim": victim if made else "", "moment": made["where"] if made else "",
        "detected": round(status["heartbeat"] - made["clock"], 3) if made and state in {"stopped", "failed"} else "",
        "seconds": "" if made is None or end.hang else round(end.at - made["at"], 3),
        "exit_code": "hang" if end.hang else code, "code_ok": int(not end.hang and code in (right if made else {0})),
        "message": first_line(errors, run_dir),
        "told_ok": int(told(kind, victim, run_dir, errors, bool(steps))) if made else "",
        "orphans": end.orphans, "checkpoints": len(steps), "checkpoint_ok": int(not wrong),
        "resumed_at": "" if at is None else at, "resumed_ok": int(at == expected),
        "state": state, "end_ok": int(whole(run_dir)) if done else "",
    }  # fmt: skip


def deck(draw: random.Random, trials: int, made: Counter[tuple[str, str]]) -> list[tuple[str, str]]:
    """The cells that are still to be visited, in random order."""
    cells = list(itertools.product(KINDS, PHASES))
    wanted = [cell for cell in cells for _ in range(trials // len(cells) - made[cell])]
    draw.shuffle(wanted)
    return wanted


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=400)
    parser.add_argument("--minutes", type=float, default=24 * 60)
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "faults")
    arguments = parser.parse_args()
    until = time.monotonic() + 60 * arguments.minutes
    rows = Rows(RESULTS, COLUMNS, key=["run", "trial"])
    before = list(rows)
    draw = random.Random(len(before))
    wanted = deck(draw, arguments.trials, Counter((row["kind"], row["phase"]) for row in before))
    run, number = (int(before[-1]["run"]) + 1, int(before[-1]["trial"]) + 1) if before else (0, 0)
    write_digits(arguments.work / "digits.csv")
    while wanted and time.monotonic() < until:
        run_dir = arguments.work / f"run-{run}" / "run"
        shutil.rmtree(run_dir.parent, ignore_errors=True)
        run_dir.parent.mkdir(parents=True)
        ranks, done, expected = 2 + (draw.random() < 0.25), False, None
        while wanted and not done and time.monotonic() < until:
            kind, phase = wanted[-1]
            fault = {
                "kind": kind, "phase": phase, "rank": draw.randrange(ranks), "entry": draw.randint(*PHASES[phase]),
                "by": "line" if kind == "exception" else draw.choice(("line", "time")), "share": draw.random(),
                "note": str(run_dir.parent / "note.json"),
            }  # fmt: skip
            row = trial(run_dir, ranks, fault, expected)
            rows.append({"run": run, "trial": number, **row})
            print(number, run, fault["by"], {key: value for key, value in row.items() if value != ""}, flush=True)
            number += 1
            if row["kind"]:
                wanted.pop()
            steps = sorted(run_dir.glob("checkpoints/step-*/manifest.json"))
            expected = int(steps[-1].parent.name.split("-")[1]) if steps else None
            done = row["state"] == "done"
        run += 1


if __name__ == "__main__":
    main()
