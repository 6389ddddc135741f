"""Sweeps on a real SLURM: submitted, watched, cancelled, tried again; what disturbs them is in test_faults.py."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hpc.config import yamls

pytestmark = [pytest.mark.slurm, pytest.mark.slow]

SWEEP = {
    "epochs": 3,
    "data": {"name": "digits"},
    "exchange": {"name": "persyn", "tau": 5},
    "checkpoint": {"every_steps": 5},
    "sweep": {"seeds": 2},
    "resources": {"ranks": 2, "nodes": 2, "timeout_min": 5, "signal_s": 20},
}
DEADLINE_S = 240.0


@pytest.fixture
def structlearn(slurm, tmp_path, environment):
    """The command, on the cluster's login node."""

    def run(*arguments: str) -> str:
        env = environment | slurm.env()
        command = [sys.executable, "-m", "jobs", *arguments]
        done = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stderr + slurm.logs()
        return done.stdout

    return run


@pytest.fixture
def sweep(tmp_path):
    """A sweep file; its folder."""

    def write(**sections) -> Path:
        folder = tmp_path / "sweep"
        (tmp_path / "sweep.yaml").write_text(yamls.dump({**SWEEP, "run_dir": str(folder), **sections}))
        return folder

    return write


def states(structlearn, folder: Path) -> list[dict]:
    return json.loads(structlearn("status", str(folder), "--json"))["runs"]


def wait(structlearn, folder: Path, condition) -> list[dict]:
    """The states of the runs when they fulfil a condition."""
    until = time.monotonic() + DEADLINE_S
    while not condition(found := states(structlearn, folder)):
        logs = "\n".join(path.read_text() for path in folder.rglob("*.log*") if path.is_file())
        assert time.monotonic() < until, f"{found}\n{logs}"
        time.sleep(0.5)
    return found


def all_done(found: list[dict]) -> bool:
    return all(each["kind"] == "done" for each in found)


def test_a_sweep_is_made_once(structlearn, sweep, differences):
    folder = sweep()
    assert "2 run(s)" in structlearn("submit", "sweep.yaml", "--cluster", "slurm", "--dry-run")
    assert not folder.exists()
    said = json.loads(structlearn("submit", "sweep.yaml", "--cluster", "slurm", "--json"))
    assert (said["submitted"], len(said["jobs"])) == (2, 2)
    found = wait(structlearn, folder, all_done)
    assert [(each["starts"], each["stops"]) for each in found] == [(1, 0)] * 2
    again = json.loads(structlearn("submit", "sweep.yaml", "--cluster", "slurm", "--json"))
    assert (again["submitted"], again["before"]) == (0, {"done": 2})
    more = json.loads(structlearn("submit", "sweep.yaml", "--cluster", "slurm", "--json", "--sweep.seeds", "3"))
    assert more["submitted"] == 1
    wait(structlearn, folder, all_done)
    assert "test accuracy" in structlearn("logs", str(folder), found[0]["id"])
    assert differences(folder / found[0]["id"]) == []


def test_cancelled_runs_go_on_when_they_are_retried(structlearn, sweep):
    folder = sweep(epochs=200, sweep={"seeds": 1})
    structlearn("submit", "sweep.yaml", "--cluster", "slurm")
    wait(structlearn, folder, lambda found: found[0]["epoch"] >= 2)
    assert "cancelled 1 run(s)" in structlearn("cancel", str(folder))
    wait(structlearn, folder, lambda found: found[0]["kind"] in {"stopped", "lost"})
    assert "submitted 1 run(s) in 1 job(s) to slurm" in structlearn("retry", str(folder))
    wait(structlearn, folder, lambda found: found[0]["kind"] == "running" and found[0]["starts"] >= 2)
    structlearn("cancel", str(folder))
