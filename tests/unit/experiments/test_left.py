"""What a run leaves behind is seen by the folder that it names, and ended."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

psutil = pytest.importorskip("psutil")
FILE = Path(__file__).parents[3] / "experiments" / "left.py"
SLEEP = "import time; time.sleep(60)"


@pytest.fixture
def left(monkeypatch):
    spec = importlib.util.spec_from_file_location("left", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "ORPHAN_S", 0.3)
    return module


def start(*words, **environment):
    return subprocess.Popen([sys.executable, *words], env=environment)


def test_a_command_that_ends_leaves_nothing(left, tmp_path):
    command = start("-c", "raise SystemExit(3)", str(tmp_path))
    end = left.wait(command, tmp_path, 60.0)
    assert (end.hang, end.orphans, command.returncode) == (False, 0, 3)


def test_a_command_that_hangs_is_killed(left, tmp_path):
    command = start("-c", SLEEP, f"--run_dir={tmp_path}")
    end = left.wait(command, tmp_path, 0.2)
    assert (end.hang, end.orphans) == (True, 0)
    assert command.returncode == -9


@pytest.mark.parametrize("by", ["command line", "one word of it", "environment"])
def test_what_outlives_a_command_is_counted_and_killed(left, tmp_path, by):
    words = {"command line": [str(tmp_path)], "one word of it": [f"sh -c 'run {tmp_path} 2'"], "environment": []}[by]
    orphan = start("-c", SLEEP, *words, **({"RUN": str(tmp_path)} if by == "environment" else {}))
    other = start("-c", SLEEP, f"{tmp_path}0", RUN=f"{tmp_path}0")
    try:
        assert [process.pid for process in left.named(tmp_path, "RUN")] == [orphan.pid]
        end = left.wait(start("-c", ""), tmp_path, 60.0, "RUN")
        assert (end.hang, end.orphans) == (False, 1)
        assert orphan.wait(10) == -9
        assert other.poll() is None
    finally:
        orphan.kill()
        other.kill()
        other.wait()
