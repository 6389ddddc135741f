"""The import rules of pyproject.toml hold, and each of them breaks when it is broken."""

import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

pytest.importorskip("importlinter", reason="import-linter is not installed")

ROOT = Path(__file__).parent.parent.parent
PACKAGES = ("structlearn", "hpc", "jobs", "analysis")

# What to add to which file, under the name of the contract that must notice.
PLANTED = {
    "One way: jobs -> hpc -> structlearn": [
        ("hpc/comm.py", "import jobs.launch"),
        ("structlearn/models/mlp.py", "import hpc.errors"),
    ],
    "analysis starts from files: it runs on a laptop without torch or MPI": [
        ("analysis/style.py", "import torch"),
        ("analysis/style.py", "import hpc.config.read"),
    ],
    "training never sees analysis; the report command is the one door": [
        ("hpc/record.py", "import analysis.schema"),
        ("jobs/launch.py", "import pandas"),
    ],
    "structlearn is torch and numpy only": [
        ("structlearn/models/base.py", "import h5py"),
    ],
    "mpi4py has one door: hpc.comm": [
        ("hpc/engine.py", "from mpi4py import MPI"),
    ],
    "submitit is behind jobs.slurm": [
        ("jobs/launch.py", "import submitit"),
    ],
    "jobs runs on a login node: torch and mpi4py only behind hpc.rank and hpc.export": [
        ("jobs/launch.py", "import torch"),
        ("hpc/config/types.py", "import hpc.comm"),
    ],
    "jobs enters hpc through its configuration, errors, output, signals, signs of life, new files, rank and export": [
        ("jobs/launch.py", "import hpc.heartbeat"),
    ],
    "the configuration is checked without torch, MPI or HDF5": [
        ("hpc/config/yamls.py", "import h5py"),
    ],
    "inside hpc": [
        ("hpc/comm.py", "import hpc.engine"),
        ("hpc/utils.py", ""),
    ],
    "inside hpc.config": [
        ("hpc/config/types.py", "import hpc.config.read"),
        ("hpc/config/utils.py", ""),
    ],
    "strategies of exchange do not know each other": [
        ("hpc/exchange/sync.py", "import hpc.exchange.persyn"),
    ],
    "inside structlearn": [
        ("structlearn/utils.py", ""),
    ],
    "inside structlearn.alrao": [
        ("structlearn/alrao/switch.py", "import structlearn.alrao.network"),
        ("structlearn/alrao/utils.py", ""),
    ],
    "inside structlearn.regularizers": [
        ("structlearn/regularizers/variance.py", "import structlearn.regularizers.shade"),
        ("structlearn/regularizers/utils.py", ""),
    ],
    "inside structlearn.maxmin": [
        ("structlearn/maxmin/widen.py", "import structlearn.maxmin.conversion"),
        ("structlearn/maxmin/utils.py", ""),
    ],
    "inside structlearn.scala": [
        ("structlearn/scala/layers.py", "import structlearn.scala.network"),
        ("structlearn/scala/utils.py", ""),
    ],
    "inside structlearn.structure": [
        ("structlearn/structure/plan.py", "import structlearn.structure.cut"),
        ("structlearn/structure/utils.py", ""),
    ],
    "inside structlearn.priors": [
        ("structlearn/priors/quadrature.py", "import structlearn.priors.density"),
        ("structlearn/priors/utils.py", ""),
    ],
    "inside structlearn.pruning": [
        ("structlearn/pruning/weights.py", "import structlearn.pruning.norm"),
        ("structlearn/pruning/utils.py", ""),
    ],
    "inside structlearn.penalties": [
        ("structlearn/penalties/base.py", "import structlearn.penalties.network"),
        ("structlearn/penalties/utils.py", ""),
    ],
    "inside structlearn.shrinknets": [
        ("structlearn/shrinknets/switch.py", "import structlearn.shrinknets.killing"),
        ("structlearn/shrinknets/utils.py", ""),
    ],
    "inside structlearn.models: networks do not know each other": [
        ("structlearn/models/mlp.py", "import structlearn.models.cnn"),
    ],
    "inside jobs": [
        ("jobs/launch.py", "import jobs.cli"),
        ("jobs/utils.py", ""),
    ],
    "inside analysis": [
        ("analysis/schema.py", "import analysis.load"),
        ("analysis/utils.py", ""),
    ],
}
CASES = [(contract, file, line) for contract, plants in PLANTED.items() for file, line in plants]


def broken(folder: Path) -> list[str]:
    """The names of the contracts that the tree in a folder breaks."""
    script = Path(sys.executable).with_name("lint-imports")
    env = os.environ | {"PYTHONPATH": str(folder), "COLUMNS": "200"}
    done = subprocess.run(
        [script, "--no-cache"], cwd=folder, env=env, capture_output=True, text=True, timeout=600, check=False
    )
    assert "Contracts: " in done.stdout, done.stdout + done.stderr
    found = [line.partition(" BROKEN")[0].strip() for line in done.stdout.splitlines() if " BROKEN" in line]
    assert bool(found) == bool(done.returncode)
    return found


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    for package in PACKAGES:
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


def test_the_rules_hold(tree: Path) -> None:
    assert broken(tree) == []


def test_every_rule_is_tried() -> None:
    rules = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]["contracts"]
    assert sorted(rule["name"] for rule in rules) == sorted(PLANTED)


@pytest.mark.parametrize(("contract", "file", "line"), CASES)
def test_a_rule_notices(contract: str, file: str, line: str, tree: Path) -> None:
    path = tree / file
    before = path.read_text(encoding="utf-8") if path.exists() else ""
    path.write_text(f"{before}\n{line}\n", encoding="utf-8")
    assert contract in broken(tree)
