"""Which code made a sweep's runs."""

import json
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata

import pytest

from jobs import origin as module
from jobs.origin import code_version, origin


@pytest.fixture(autouse=True)
def _afresh() -> Iterator[None]:
    for each in (code_version, origin):
        each.cache_clear()
    yield
    for each in (code_version, origin):
        each.cache_clear()


def git(folder, *arguments: str) -> str:
    line = ["git", "-C", str(folder), "-c", "user.name=a", "-c", "user.email=a@b", *arguments]
    return subprocess.run(line, check=True, capture_output=True, text=True).stdout.strip()


def test_a_clone_is_named_by_its_commit_and_whether_it_was_changed(tmp_path, monkeypatch) -> None:
    version = metadata.version("structlearn")
    (tmp_path / "jobs").mkdir()
    monkeypatch.setattr(module, "__file__", str(tmp_path / "jobs" / "origin.py"))
    assert code_version() == version
    git(tmp_path, "init", "--quiet")
    (tmp_path / "a").write_text("1")
    git(tmp_path, "add", "a")
    git(tmp_path, "commit", "--quiet", "-m", "one")
    commit = git(tmp_path, "rev-parse", "HEAD")
    code_version.cache_clear()
    assert code_version() == f"{version}+{commit[:12]}"
    (tmp_path / "a").write_text("2")
    code_version.cache_clear()
    assert code_version() == f"{version}+{commit[:12]}-dirty"


def test_without_git_the_version_is_told(tmp_path, monkeypatch) -> None:
    (tmp_path / ".git").mkdir()
    monkeypatch.setattr(module, "__file__", str(tmp_path / "jobs" / "origin.py"))
    monkeypatch.setenv("PATH", str(tmp_path))
    assert code_version() == metadata.version("structlearn")


def test_the_environment_is_told(monkeypatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/bin/structlearn", "submit", "my sweep.yaml"])
    found = json.loads(json.dumps(origin()))
    assert found["packages"]["torch"] == metadata.version("torch")
    assert found["command"] == "structlearn submit 'my sweep.yaml'"
