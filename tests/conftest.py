"""What all tests share: ranks of MPI as a fixture, and a run compared with another bit for bit."""

import os
import runpy
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from hpc.signals import SIGNALS

ROOT = Path(__file__).parent.parent
TRANSPORTS: dict[str, dict[str, str]] = runpy.run_path(str(ROOT / "tests" / "support" / "transports.py"))["TRANSPORTS"]
Started = subprocess.CompletedProcess[str]
HANDLERS = {number: signal.getsignal(number) for number in SIGNALS}


def pytest_addoption(parser: pytest.Parser) -> None:
    """Which way the messages of ranks go; which MPI library moves them is this Python's affair."""
    parser.addoption("--transport", choices=tuple(TRANSPORTS), default="shm", help="how messages between ranks travel")


@pytest.fixture(scope="session")
def environment(request: pytest.FixtureRequest) -> dict[str, str]:
    """The environment of a process that must not think it is inside this one's launcher."""
    hidden = ("SLURM_", "PMI_", "PMIX_", "OMPI_", "STRUCTLEARN_")
    env = {key: value for key, value in os.environ.items() if not key.startswith(hidden)}
    return env | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)} | TRANSPORTS[request.config.getoption("--transport")]


@pytest.fixture(autouse=True)
def _signals_as_before() -> Iterator[None]:
    """A command that ends ignores signals from there on, in a fixture of a whole module too; the tests go on."""
    _handle_as_at_the_start()
    yield
    _handle_as_at_the_start()


def _handle_as_at_the_start() -> None:
    for number, handler in HANDLERS.items():
        signal.signal(number, handler)


@pytest.fixture
def train(tmp_path: Path, environment: dict[str, str]) -> Callable[..., Started]:
    """Run ``structlearn train`` with overrides; a run that hangs is an error after ten minutes."""

    def run(
        *arguments: str, env: dict[str, str] | None = None, program: tuple[str, ...] = ("-m", "jobs"), **options: Any
    ) -> Started:
        command = [sys.executable, *program, "train", *arguments]
        return subprocess.run(
            command,
            env=environment | (env or {}),
            cwd=tmp_path,
            text=True,
            timeout=600,
            check=False,
            **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options},
        )

    return run


@pytest.fixture
def ranks(environment: dict[str, str]) -> Callable[..., Started]:
    """Run a Python file on N ranks of MPI."""

    def run(
        number: int, *program: str, timeout: float = 600, env: dict[str, str] | None = None, tolerant: bool = False
    ) -> Started:
        from jobs.launch import command, find_mpiexec

        line = command(find_mpiexec(), number, [sys.executable, *program], tolerant=tolerant)
        return subprocess.run(
            line, env=environment | (env or {}), capture_output=True, text=True, timeout=timeout, check=False
        )

    return run
