"""Sweeps made by this process: submitted, looked at, retried; through the command line."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from hpc.config import yamls
from hpc.config.folder import freeze, read_status
from hpc.config.read import validate
from hpc.errors import ConfigError
from jobs.attempts import Attempt, note
from jobs.resources import Resources
from jobs.retry import cancel, logs, retry
from jobs.status import status
from jobs.submit import groups, submit
from jobs.sweep import Run
from jobs.sweepfolder import SweepFolder

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    """A sweep file of two short runs."""
    values: dict[str, Any] = {
        "run_dir": str(tmp_path / "s"), "epochs": 1, "data": {"name": "digits", "train_size": 200},
        "sweep": {"grid": {"optimizer.lr": [0.1, 0.2]}},
    }  # fmt: skip
    path = tmp_path / "sweep.yaml"
    path.write_text(yamls.dump(values))
    return path


def seen(folder: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    capsys.readouterr()
    assert status(folder, everything=False, as_json=True) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


@pytest.mark.slow
def test_a_sweep_in_this_process(sweep, tmp_path, capsys) -> None:
    folder = tmp_path / "s"
    submit(sweep, [], "debug", dry_run=True, as_json=False)
    assert "to be submitted: 2 run(s)" in capsys.readouterr().out
    assert not folder.exists()
    submit(sweep, [], "debug", dry_run=False, as_json=False)
    said = capsys.readouterr().out
    assert "submitted 2 run(s), 2 rank(s): 2 job(s) of debug" in said
    found = seen(folder, capsys)
    assert found["counts"] == {"done": 2}
    first = found["runs"][0]["id"]
    submit(sweep, [], "debug", dry_run=False, as_json=False)
    assert "nothing is to be submitted" in capsys.readouterr().out
    status(folder, everything=False, as_json=False)
    assert first in capsys.readouterr().out
    assert read_status(folder / first)["state"] == "done"
    assert retry(folder, None, failed=True) == 0
    assert cancel(folder, []) == 0
    said = capsys.readouterr().out
    assert "nothing to retry: no run is failed" in said
    assert "nothing to cancel" in said


def test_failed_runs_alone_are_retried(tmp_path, capsys, monkeypatch) -> None:
    folder = SweepFolder(tmp_path / "s")
    config = validate({})
    runs = [Run(name, name, replace(config, run_dir=str(folder.path / name)), Resources()) for name in ("ab", "ac")]
    folder.add(runs)
    for run, state in zip(runs, ("failed", "done"), strict=True):
        freeze(run.config)
        (folder.path / run.id / "status.json").write_text(json.dumps({"state": state, "error": "why\nmore"}))
        note(folder.path / run.id, Attempt("1", 0, 1, 1, "failed", "why"))
    with pytest.raises(ConfigError, match="was never handed to a cluster; say which one with --cluster"):
        retry(folder.path, None, failed=True)
    given = []
    monkeypatch.setattr("jobs.retry.hand_over", lambda _, runs, cluster: given.append((runs, cluster)) or ["1"])
    retry(folder.path, "slurm", failed=True)
    assert given == [([("ab", Resources())], "slurm")]
    found = seen(folder.path, capsys)
    assert found["runs"][0]["error"] == "why"
    with pytest.raises(ConfigError, match="a: no run of this sweep is called that; it begins 2 of them: ab, ac"):
        logs(folder.path, "a", follow=False)
    with pytest.raises(ConfigError, match=r"output\.log: not there yet"):
        logs(folder.path, "ab", follow=False)


def test_runs_with_equal_needs_go_together() -> None:
    one, two = Resources(), Resources(ranks=2)
    assert groups([("a", one), ("b", two), ("c", Resources()), ("d", two)]) == [(one, ["a", "c"]), (two, ["b", "d"])]
