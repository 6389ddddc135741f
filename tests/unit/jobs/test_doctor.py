"""The doctor: right about what it finds, and never stuck."""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from jobs import doctor as table
from jobs.doctor import doctor, examine
from jobs.machine import Finding
from jobs.resources import Resources

Check = Callable[[], Iterator[Finding]]


@pytest.fixture
def checks(monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[str, Check]], None]:
    """Other checks than the real ones."""
    return lambda given: monkeypatch.setattr(table, "CHECKS", given)


def finding(*found: Finding) -> Check:
    return lambda: iter(found)


WORKS = Finding("training", "ok", "one rank made 6 steps")


# --- the whole -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("status", "code"), [("ok", 0), ("warn", 1), ("fail", 1)])
def test_the_exit_code_is_whether_training_works(status: Any, code: int, checks: Any, capsys: Any) -> None:
    checks({"training": finding(Finding("training", status, "so")), "mpi": finding(Finding("mpi", "fail", "no"))})
    assert doctor(as_json=True) == code
    assert json.loads(capsys.readouterr().out) == {
        "works": code == 0,
        "checks": [
            {"what": "training", "status": status, "finding": "so", "remedy": ""},
            {"what": "mpi", "status": "fail", "finding": "no", "remedy": ""},
        ],
    }


@pytest.mark.parametrize(
    ("job", "code", "words"), [("ok", 0, "The test job worked."), ("warn", 0, "worked"), ("fail", 1, "see above what")]
)
def test_a_test_job_counts(job: Any, code: int, words: str, checks: Any, capsys: Any, monkeypatch: Any) -> None:
    asked: list[Any] = []
    ranks = [Finding("test job", "ok", "quick"), Finding("ranks", job, "so")]
    monkeypatch.setattr(table, "trial", lambda *given: asked.append(given) or ranks)
    checks({"training": finding(WORKS)})
    assert doctor(as_json=True, job=Resources(ranks=2), wait_s=5) == code
    found = json.loads(capsys.readouterr().out)
    assert (found["works"], [each["what"] for each in found["checks"]]) == (not code, ["training", "test job", "ranks"])
    assert doctor(as_json=False, job=Resources(ranks=2), wait_s=5) == code
    shown = capsys.readouterr().out
    assert shown.index("One rank can train here.") < shown.index("quick") < shown.index(words)
    assert asked == [(Resources(ranks=2), 5)] * 2
    checks({"training": finding(Finding("training", "fail", "no torch on this node"))})
    assert doctor(as_json=False, job=Resources(ranks=2)) == 1
    assert words in capsys.readouterr().out


def test_the_table_shows_everything_as_it_is(checks: Any, capsys: Any) -> None:
    """Brackets in a path or a remedy are no markup."""
    checks({"training": finding(WORKS, Finding("mpi", "warn", "[red]none[/red]", "pip install 'structlearn[mpich]'"))})
    assert doctor(as_json=False) == 0
    shown = capsys.readouterr().out
    assert "[red]none[/red]" in shown
    assert "pip install 'structlearn[mpich]'" in shown
    assert "One rank can train here." in shown


def test_checks_run_side_by_side_and_answer_in_order(checks: Any) -> None:
    under_way = threading.Barrier(6, timeout=600)

    def waiting_for_the_others(what: str) -> Check:
        def check() -> Iterator[Finding]:
            under_way.wait()
            yield Finding(what, "ok", "")

        return check

    checks({what: waiting_for_the_others(what) for what in "abcdef"})
    assert [(found.what, found.status) for found in examine()] == [(what, "ok") for what in "abcdef"]


def test_a_check_that_hangs_or_breaks_does_not_hold_up_the_others(checks: Any, monkeypatch: Any) -> None:
    def hang() -> Iterator[Finding]:
        time.sleep(30)
        yield WORKS

    def broken() -> Iterator[Finding]:
        yield Finding("half", "ok", "told before it broke")
        raise ZeroDivisionError("division by zero")

    monkeypatch.setattr(table, "DEADLINE_S", 0.3)
    checks({"training": hang, "mpi": broken, "cpu": finding(Finding("cpu", "ok", "2"))})
    training, mpi, cpu = examine()
    assert (training.status, training.finding) == ("fail", "no answer within 0.3 s")
    assert (mpi.status, mpi.finding) == ("fail", "the check itself failed: ZeroDivisionError: division by zero")
    assert cpu.status == "ok"


def test_a_check_that_hangs_does_not_keep_the_program_from_ending() -> None:
    program = """
import sys, time
from jobs import doctor
doctor.DEADLINE_S = 0.2
doctor.CHECKS = {"training": lambda: time.sleep(60)}
sys.exit(doctor.doctor(as_json=True))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=600, check=False)
    assert (done.returncode, done.stderr) == (1, "")


@pytest.mark.slow
def test_it_works_on_this_machine(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    line = [sys.executable, "-m", "jobs", "doctor", "--json"]
    done = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True, timeout=600, check=False)
    found = json.loads(done.stdout)
    assert (done.returncode, done.stderr, found["works"]) == (0, "", True)
    names = [check["what"] for check in found["checks"]]
    assert {"training", "python", "torch", "mpi", "slurm", "hdf5", "disk", "data sets", "environment"} <= set(names)
    assert len(names) == len(set(names))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_it_works_without_torch_and_mpi4py(tmp_path: Path) -> None:
    for name in ("torch", "mpi4py"):
        (tmp_path / name).mkdir()
        text = f'raise ModuleNotFoundError("No module named {name!r}", name={name!r})\n'
        (tmp_path / name / "__init__.py").write_text(text, encoding="utf-8")
    env = os.environ | {"PYTHONPATH": str(tmp_path)}
    line = [sys.executable, "-m", "jobs", "doctor", "--json"]
    done = subprocess.run(line, env=env, cwd=tmp_path, capture_output=True, text=True, timeout=600, check=False)
    found = {check["what"]: check for check in json.loads(done.stdout)["checks"]}
    assert done.returncode == 1
    assert done.stderr == ""
    assert found["torch"]["finding"] == "ModuleNotFoundError: No module named 'torch'"
    assert "pip install 'structlearn[mpich]'" in found["torch"]["remedy"]
    assert found["mpi"]["finding"] == "ModuleNotFoundError: No module named 'mpi4py'"
    assert found["hdf5"]["status"] == "ok"
