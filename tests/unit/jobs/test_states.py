"""How runs are doing: every combination of what a folder and a scheduler say; the folder of a sweep."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from hpc.config.read import validate
from hpc.errors import ConfigError
from jobs.attempts import RETRIED, Attempt, note
from jobs.resources import Resources
from jobs.states import SILENT_S, look, newest_jobs, state_of
from jobs.sweep import Run
from jobs.sweepfolder import OWN, RUNS, SUBMISSIONS, Planned, Submission, SweepFolder

if TYPE_CHECKING:
    from pathlib import Path

NOW = 1e9
FRESH, OLD = {"heartbeat": NOW - 1}, {"heartbeat": NOW - SILENT_S - 1}


@pytest.mark.parametrize(
    ("status", "has", "known", "job", "kind"),
    [
        ({}, None, True, "", "new"),
        ({}, None, True, "7", "new"),  # its job is gone
        ({}, None, False, "7", "pending"),  # nobody says that it is
        ({}, "pending", True, "7", "pending"),
        ({}, "running", True, "7", "pending"),  # its job makes others first
        ({"state": "running"} | FRESH, "running", True, "7", "running"),
        ({"state": "running"} | OLD, "running", True, "7", "running"),  # a long step
        ({"state": "running"} | OLD, None, True, "7", "lost"),
        ({"state": "running"} | OLD, None, False, "7", "lost"),
        ({"state": "running"} | FRESH, None, False, "7", "running"),
        ({"state": "running"} | FRESH, None, True, "", "running"),  # by hand
        ({"state": "running"} | OLD, "pending", True, "7", "pending"),  # its node was lost, it waits again
        ({"state": "stopped"} | OLD, "pending", True, "7", "pending"),
        ({"state": "stopped"} | OLD, "running", True, "7", "pending"),
        ({"state": "stopped"} | OLD, None, True, "7", "stopped"),
        ({"state": "stopped"} | OLD, None, False, "7", "stopped"),
        ({"state": "failed"} | OLD, None, True, "7", "failed"),
        ({"state": "failed"} | OLD, "running", True, "7", "pending"),  # its job starts it again
        ({"state": "failed"} | OLD, "pending", True, "7", "pending"),
        ({"state": "done"} | OLD, "running", True, "7", "done"),
        ({"state": "done"} | OLD, None, False, "7", "done"),
    ],
)
def test_what_a_run_is_doing(status, has, known, job, kind) -> None:
    run = Planned("a", "lr=1", Resources())
    assert state_of(run, job, status, [], has, known=known, now=NOW).kind == kind


AGAIN = [Attempt("7", 0, 1, 75, "failed", f"rank {number} is lost", "step-7") for number in range(3)]
USAGE = [Attempt("7", 0, 1, 2, "failed", "a bad key")]


@pytest.mark.parametrize("past", [AGAIN, USAGE])
@pytest.mark.parametrize("has", [None, "running", "pending"])
@pytest.mark.parametrize("said", ["stopped", "failed"])
def test_a_run_that_is_given_up_has_failed_until_it_is_retried(past, has, said) -> None:
    run, status = Planned("a", "lr=1", Resources()), {"state": said, "error": "rank 2 is lost"} | OLD
    assert state_of(run, "7", status, past, has, known=True, now=NOW).kind == "failed"
    retried = [*past, Attempt("", 2, 2, 0, RETRIED)]
    assert state_of(run, "7", status, retried, has, known=True, now=NOW).kind == ("pending" if has else said)


def test_why_a_job_ended_before_its_run_began_is_told(tmp_path) -> None:
    folder = SweepFolder(tmp_path / "s")
    folder.add(runs(folder.path, "a", "b"))
    folder.note(Submission(1.0, "slurm", {"7_0": ["a"], "7_1": ["b"]}))
    (folder.logs / "7_0_0_log.out").write_text("python: command not found\nslurmstepd: error: step 1\n")
    assert [(each.kind, each.error) for each in look(folder, {})] == [("new", "python: command not found"), ("new", "")]


def test_what_is_told_of_a_run() -> None:
    run = Planned("a", "lr=1", Resources())
    status = {
        "state": "running", "epoch": 3, "epochs": 9, "samples_per_second": 35.1, "seconds_left": 170.0, "error": "no",
        "started": 5.0,
    } | FRESH  # fmt: skip
    past = [Attempt("7", 0, 1, 75, "stopped"), Attempt("7", 1, 2, 1, "failed", "why")]
    state = state_of(run, "7", status, past, "running", known=True, now=NOW)
    assert (state.epoch, state.epochs, state.samples_per_second, state.seconds_left) == (3, 9, 35.1, 170.0)
    assert (state.starts, state.stops, state.error, state.accuracy) == (3, 1, "", None)
    failed = state_of(run, "7", {"state": "failed", "error": "one\ntwo"}, past, None, known=True, now=NOW)
    assert (failed.error, failed.starts, failed.seconds_left) == ("one", 2, None)
    done = state_of(run, "7", {"state": "done", "test_accuracy": 0.9}, past, None, known=True, now=NOW)
    assert done.accuracy == 0.9


def runs(folder: Path, *names: str) -> list[Run]:
    config = validate({})
    return [Run(name, f"is {name}", replace(config, run_dir=str(folder / name)), Resources(ranks=2)) for name in names]


def test_a_sweeps_folder_knows_its_runs_and_jobs(tmp_path) -> None:
    folder = SweepFolder(tmp_path / "s")
    folder.add(runs(folder.path, "a", "b"))
    folder.add([replace(each, resources=Resources(ranks=3)) for each in runs(folder.path, "b", "c")])
    again = SweepFolder.existing(tmp_path / "s")
    assert list(again.runs()) == ["a", "b", "c"]
    assert [each.resources.ranks for each in again.runs().values()] == [2, 3, 3]
    folder.note(Submission(1.0, "slurm", {"7_0": ["a", "b"], "7_1": ["c"]}))
    with (again.own / SUBMISSIONS).open("a") as file:
        file.write('{"time": 2.0, "clus\n')
    folder.note(Submission(3.0, "local", {"1": ["b"]}))
    assert newest_jobs(again.submissions()) == {"a": ("slurm", "7_0"), "b": ("local", "1"), "c": ("slurm", "7_1")}


def test_the_states_of_a_sweep(tmp_path) -> None:
    folder = SweepFolder(tmp_path)
    folder.add(runs(tmp_path, "a", "b", "c", "d"))
    folder.note(Submission(1.0, "slurm", {"7_0": ["a"], "7_1": ["b"], "7_2": ["c"]}))
    for name, status in {"a": {"state": "done", "test_accuracy": 0.5}, "b": {"state": "running", **FRESH}}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "status.json").write_text(json.dumps(status))
    note(tmp_path / "b", Attempt("7_1", 0, 1, 75, "stopped"))
    found = look(folder, {"7_1": "running", "7_2": "pending"}, NOW)
    assert [(each.id, each.kind, each.label, each.job) for each in found] == [
        ("a", "done", "is a", "7_0"), ("b", "running", "is b", "7_1"), ("c", "pending", "is c", "7_2"),
        ("d", "new", "is d", ""),
    ]  # fmt: skip
    assert found[1].stops == 1


def test_a_folder_that_is_none_is_told(tmp_path) -> None:
    with pytest.raises(ConfigError, match="holds no sweep; give the run_dir"):
        SweepFolder.existing(tmp_path)
    (tmp_path / OWN).mkdir()
    (tmp_path / OWN / RUNS).write_text('{"runs": {"a": {}}}')
    with pytest.raises(ConfigError, match=r"runs\.json: cannot be read"):
        SweepFolder.existing(tmp_path).runs()
