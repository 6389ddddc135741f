"""Sweeps made by this process: submitted, looked at, retried; through the command line."""

from __future__ import annotations

import json
import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hpc.config import yamls
from hpc.config.folder import freeze, read_status
from hpc.config.read import validate
from hpc.errors import ConfigError, RunError
from jobs.attempts import Attempt, history, note
from jobs.clusters import CLUSTERS
from jobs.resources import Resources
from jobs.retry import cancel, logs, retry
from jobs.status import status
from jobs.submit import groups, hand_over, submit
from jobs.sweep import Run
from jobs.sweepfolder import SUBMISSIONS, Submission, SweepFolder


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


def torch_finds_cuda() -> bool:
    import torch

    return torch.cuda.is_available()


def seen(folder: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    capsys.readouterr()
    assert status(folder, everything=False, as_json=True) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_what_fails_in_this_process_is_the_commands_failure(sweep, tmp_path, capfd) -> None:
    changes = ["--compute.device", "cuda"]
    if torch_finds_cuda():
        pytest.skip("a CUDA device is here")
    assert submit(sweep, changes, "debug", dry_run=False, as_json=True) == 1
    said = capfd.readouterr()
    assert json.loads(said.out)["submitted"] == 2
    found = seen(tmp_path / "s", capfd)
    assert found["counts"] == {"failed": 2}
    assert "compute.device" in found["runs"][0]["error"]


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


@pytest.fixture
def two(tmp_path) -> SweepFolder:
    """A sweep of two frozen runs, ab and ac."""
    folder, config = SweepFolder(tmp_path / "s"), validate({})
    runs = [Run(name, name, replace(config, run_dir=str(folder.path / name)), Resources()) for name in ("ab", "ac")]
    folder.add(runs)
    for run in runs:
        freeze(run.config)
    return folder


def test_runs_go_on_where_the_sweep_was_submitted(two, tmp_path, monkeypatch) -> None:
    (tmp_path / "home").mkdir()
    two.note(Submission(0, "slurm", {"1": ["ab"]}, {"folder": str(tmp_path / "home")}))
    given: list[Path] = []
    monkeypatch.setattr("jobs.retry.hand_over", lambda *_: given.append(Path.cwd()) or ["1"])
    monkeypatch.setattr("jobs.slurm.scheduled", lambda _: {})
    retry(two.path, None, failed=False)
    assert given == [tmp_path / "home"]
    assert Path.cwd() != given[0]


def test_a_run_whose_folder_is_gone_is_told(two, capsys) -> None:
    shutil.rmtree(two.run_dir("ac"))
    with pytest.raises(ConfigError, match=r"the folders of 1 run\(s\) are gone \(ac\); submit the sweep's file again"):
        retry(two.path, "debug", failed=False)
    assert history(two.run_dir("ab")) == []
    assert cancel(two.path, []) == 0


def test_what_one_cluster_refuses_to_end_others_do(two, monkeypatch) -> None:
    two.note(Submission(0, "debug", {"debug-0": ["ab"]}))
    two.note(Submission(0, "slurm", {"7": ["ac"]}))
    (two.run_dir("ab") / "status.json").write_text(json.dumps({"state": "running", "heartbeat": time.time()}))
    ended: list[str] = []
    monkeypatch.setattr("jobs.slurm.scheduled", lambda _: {"7": "pending"})
    monkeypatch.setattr("jobs.slurm.cancel", ended.extend)
    with pytest.raises(RunError, match="end that, with Ctrl-C"):
        cancel(two.path, [])
    assert ended == ["7"]


def test_what_a_cluster_took_before_it_refused_is_told(two, monkeypatch) -> None:
    class Full:
        def submit(self, jobs: Any, *_: Any) -> Any:
            yield ["7"]
            raise RunError("QOSMaxSubmitJobPerUserLimit")

    monkeypatch.setitem(CLUSTERS, "slurm", Full())
    with pytest.raises(RunError, match=r"QOSMax\w+; 1 job\(s\) were taken before, and go on"):
        hand_over(two, [("ab", Resources()), ("ac", Resources())], "slurm")
    assert [each.jobs for each in two.submissions()] == [{"7": ["ab"]}]


def test_a_line_that_was_cut_off_costs_no_other(two) -> None:
    for number in range(2):
        two.note(Submission(number, "slurm", {str(number): ["ab"]}))
        with (two.own / SUBMISSIONS).open("a") as file:
            file.write('{"time": 3, "clu')
    assert [each.time for each in two.submissions()] == [0, 1]


def test_runs_with_equal_needs_go_together() -> None:
    one, two = Resources(), Resources(ranks=2)
    assert groups([("a", one), ("b", two), ("c", Resources()), ("d", two)]) == [(one, ["a", "c"]), (two, ["b", "d"])]
