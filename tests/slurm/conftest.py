"""A SLURM of two nodes as a fixture, with accounting and without; tests skip where its daemons cannot run."""

import runpy
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

FILE = runpy.run_path(str(Path(__file__).parent / "cluster.py"))
IDENTICAL = runpy.run_path(str(Path(__file__).parents[1] / "support" / "identical.py"))


@pytest.fixture(scope="session")
def cluster() -> Callable[..., AbstractContextManager[Any]]:
    """Start a cluster of one's own, with the options of ``Cluster``."""

    def start(**options: Any) -> AbstractContextManager[Any]:
        if reason := FILE["missing"](accounting=options.get("accounting", False)):
            pytest.skip(reason)
        return FILE["Cluster"](**options)

    return start


@pytest.fixture(scope="session")
def slurm(cluster: Callable[..., AbstractContextManager[Any]]) -> Iterator[Any]:
    """The cluster that tests share: ``sacct`` fails there."""
    with cluster() as started:
        yield started


@pytest.fixture(scope="session")
def slurm_accounting(cluster: Callable[..., AbstractContextManager[Any]]) -> Iterator[Any]:
    """The same with accounting."""
    with cluster(accounting=True) as started:
        yield started


@pytest.fixture(scope="session")
def differences(environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], list[str]]:
    """What a run of two ranks differs in from the same run that was trained without SLURM, and never disturbed."""
    folder = tmp_path_factory.mktemp("undisturbed")

    def compare(run_dir: Path) -> list[str]:
        alone = folder / run_dir.name  # the hash of all that decides its result
        if not alone.exists():
            command = [sys.executable, "-m", "jobs", "train", str(run_dir / "config.yaml"), "--ranks", "2"]
            done = subprocess.run(
                [*command, "--run_dir", str(alone)], env=environment, capture_output=True, text=True, timeout=600,
                check=False,
            )  # fmt: skip
            assert done.returncode == 0, done.stderr
        found: list[str] = IDENTICAL["differences"](alone, run_dir)
        return found

    return compare
