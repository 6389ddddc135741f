"""A SLURM that is faked, and a sweep's folder."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from jobs.sweepfolder import SweepFolder

sys.path.insert(0, str(Path(__file__).parent))

from slurm_commands import FakeSlurm


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSlurm:
    """Commands of SLURM that are a few lines of shell each."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return FakeSlurm(folder)


@pytest.fixture
def pair(tmp_path: Path) -> SweepFolder:
    """The folder of a sweep, with the folders of its runs a and b."""
    folder = SweepFolder(tmp_path / "s")
    folder.logs.mkdir(parents=True)
    for name in ("a", "b"):
        folder.run_dir(name).mkdir()
    return folder
