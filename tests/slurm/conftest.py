"""A SLURM of two nodes as a fixture, with accounting and without; tests skip where its daemons cannot run."""

import runpy
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

FILE = runpy.run_path(str(Path(__file__).parent / "cluster.py"))


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
