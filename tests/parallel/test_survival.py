"""Ranks that die under Open MPI with ULFM: the others go on, and the record says what was lost."""

import json
import subprocess
from functools import cache
from pathlib import Path

import h5py
import psutil
import pytest

from hpc.exchange import mass
from jobs.launch import find_mpiexec

ROOT = Path(__file__).parents[2]
MORTAL = ROOT / "tests" / "support" / "mortal.py"
RANKS = 4
CONFIG = """
epochs: 6
data: {name: digits, batch_size: 32}
model: {name: mlp, widths: [32]}
exchange: {name: gossip, rho: 0.5, slices: 2, consensus_every: 5}
checkpoint: {every_steps: 7}
compute: {device: cpu, fault_tolerance: shrink, deadline_s: 60}
"""


@cache
def open_mpi() -> bool:
    answer = subprocess.run([find_mpiexec(), "--version"], capture_output=True, text=True, check=False, timeout=600)
    return "Open MPI" in answer.stdout


needs_ulfm = pytest.mark.skipif("not open_mpi()", reason="ULFM is in Open MPI; this is another MPI library")


def orphans(run_dir):
    """Processes that name a run folder."""
    found = []
    for process in psutil.process_iter():
        try:
            if str(run_dir) in process.cmdline() and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.Error:
            continue
    return found


def told(done, run_dir):
    """The run's own words, and its tables."""
    assert done.returncode == 0, done.stderr[-3000:]
    assert not orphans(run_dir)
    summary = json.loads(done.stdout.splitlines()[-1])
    with h5py.File(run_dir / "record.h5") as file:
        tables = {name: {key: list(column) for key, column in file[name].items()} for name in file}
        assert file.attrs["world_size"] == summary["world_size"]
    assert summary["state"] == "done"
    assert tables["epochs"]["epoch"] == list(range(1, 7))
    assert tables["exchange"]["rank"] == list(range(summary["world_size"]))
    whole = mass.UNITS * 2 * summary["world_size"]  # two slices
    assert sum(round(part * whole) for part in tables["exchange"]["mass"]) == whole
    steps = tables["epochs"]["step"]
    assert steps == sorted(set(steps))
    assert json.loads((run_dir / "status.json").read_text())["state"] == "done"
    assert len(list((run_dir / "logs").glob("rank-*.json"))) == summary["world_size"]
    return summary, tables


@pytest.mark.parallel
@pytest.mark.slow
@needs_ulfm
@pytest.mark.parametrize(
    ("kills", "lost"),
    [
        (["2@Engine._show:30"], [2]),
        (["0@Engine._show:30"], [0]),  # who writes the record, and holds the folder
        (["1@Engine._evaluate:3"], [1]),
        (["0@Engine._save:3"], [0]),
        (["3@Engine._finish:1"], [3]),
        (["1@Engine._show:20", "2@Engine._show:20"], [1, 2]),
        (["3@Engine._show:20", "0@Survival._decide:1"], [0, 3]),
        (["0@Engine._show:20", "1@Engine._show:45", "2@Engine._show:70"], [0, 1, 2]),
    ],
    ids=lambda value: "+".join(str(word) for word in value),
)
def test_the_others_go_on(kills, lost, ranks, tmp_path):
    config, run_dir = tmp_path / "small.yaml", tmp_path / "run"
    config.write_text(CONFIG)
    done = ranks(RANKS, str(MORTAL), str(config), str(run_dir), *kills, timeout=1000, tolerant=True)
    summary, tables = told(done, run_dir)
    assert summary["world_size"] == RANKS - len(lost)
    assert sorted(tables["lost"]["rank"]) == lost
    assert tables["lost"]["survivors"][-1] == RANKS - len(lost)
    assert 0 < sum(tables["lost"]["mass"]) < len(lost)
    assert tables["resized"]["ranks_before"][0] == RANKS
    assert tables["resized"]["ranks"][-1] == RANKS - len(lost)


@pytest.mark.parallel
@pytest.mark.slow
@needs_ulfm
def test_ranks_that_would_all_be_ended_are_refused(ranks, tmp_path):
    (tmp_path / "small.yaml").write_text(CONFIG)
    done = ranks(2, "-m", "jobs", "train", str(tmp_path / "small.yaml"), "--run_dir", str(tmp_path / "run"))
    assert done.returncode == 2
    assert "compute.fault_tolerance: shrink needs Open MPI, started with its mpiexec --with-ft ulfm" in done.stderr


@pytest.mark.parallel
@pytest.mark.slow
@needs_ulfm
def test_the_command_starts_ranks_that_can_be_lost(train, tmp_path):
    (tmp_path / "small.yaml").write_text(CONFIG)
    done = train("small.yaml", "--ranks", "2", "--run_dir", "run", "--epochs", "1", "--progress", "none", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["world_size"] == 2


@pytest.mark.parallel
@pytest.mark.skipif("open_mpi()", reason="this library has ULFM")
def test_another_library_is_refused_before_ranks_start(train, tmp_path):
    (tmp_path / "small.yaml").write_text(CONFIG)
    done = train("small.yaml", "--ranks", "2", "--run_dir", "run")
    assert done.returncode == 2
    assert "compute.fault_tolerance: shrink needs Open MPI" in done.stderr
    assert not (tmp_path / "run").exists()
