"""One run at a time in a folder."""

import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest

from hpc import lock
from hpc.alone import Alone
from hpc.errors import ConfigError, RunError
from hpc.lock import alone_in

ROOT = Path(lock.__file__).parent.parent

HOLD = """
import sys, time
from pathlib import Path
from hpc.alone import Alone
from hpc.lock import alone_in
with alone_in(Path(sys.argv[1]), Alone()):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture(autouse=True)
def _impatient(monkeypatch):
    monkeypatch.setattr(lock._lock, "__defaults__", (0.3,))


@pytest.fixture
def holder(tmp_path):
    """Another process that trains in the folder."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


@pytest.fixture
def taken(tmp_path):
    """The folder's lock, held by somebody."""
    descriptor = os.open(tmp_path / ".lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    yield
    os.close(descriptor)


def test_a_second_process_is_refused_until_the_first_is_killed(tmp_path, holder):
    with pytest.raises(RunError, match="another process is training in this folder"), alone_in(tmp_path, Alone()):
        raise AssertionError("two runs in one folder")
    holder.kill()
    assert holder.wait() == -9
    with alone_in(tmp_path, Alone()):
        pass


def test_one_whose_meeting_fails_lets_go_of_the_folder(tmp_path):
    """A rank that is lost while the others take over its folder: those who are left try again."""

    class Lost(Alone):
        def gather(self, value, what):
            raise RuntimeError("a rank is lost")

    with pytest.raises(RuntimeError, match="a rank is lost"), alone_in(tmp_path, Lost()):
        raise AssertionError("it never comes so far")
    with alone_in(tmp_path, Alone()):
        pass


def test_a_run_waits_a_moment_for_one_that_is_just_ending(tmp_path, monkeypatch):
    monkeypatch.setattr(lock._lock, "__defaults__", (30.0,))
    descriptor = os.open(tmp_path / ".lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    tries = []

    def sleep(seconds: float) -> None:
        tries.append(seconds)
        os.close(descriptor)

    monkeypatch.setattr(lock.time, "sleep", sleep)
    with alone_in(tmp_path, Alone()):
        assert len(tries) == 1


def test_the_folder_is_made_where_there_is_none(tmp_path):
    with alone_in(tmp_path / "new" / "run", Alone()):
        assert (tmp_path / "new" / "run").is_dir()


def test_the_lock_is_released_at_the_end_and_after_an_error(tmp_path):
    with alone_in(tmp_path, Alone()):
        pass
    with pytest.raises(ValueError, match="the run failed"), alone_in(tmp_path, Alone()):
        raise ValueError("the run failed")
    with alone_in(tmp_path, Alone()):
        pass


def test_two_folders_do_not_disturb_each_other(tmp_path, taken):
    with alone_in(tmp_path / "other", Alone()):
        pass


def open_files() -> int:
    return len(list(Path("/proc/self/fd").glob("*")))


def test_no_file_stays_open_when_the_lock_is_refused(tmp_path, taken):
    before = open_files()
    for _ in range(2):
        with pytest.raises(RunError), alone_in(tmp_path, Alone()):
            pass
    assert open_files() == before


class Second(Alone):
    """A rank that is not the first: it hears what rank 0 found, and what it has written into the folder."""

    rank, size = 1, 2

    def __init__(self, problem: str | None, mark: str) -> None:
        self.of_rank_0 = {"lock the run folder": [problem, mark], "look for the run folder": mark}

    def gather(self, value, what):
        return [self.of_rank_0[what], value]


def test_only_the_first_rank_locks_and_all_of_them_refuse(tmp_path, taken):
    (tmp_path / ".lock").write_text("mark")  # it does not take the lock, though another has it
    with alone_in(tmp_path, Second(None, "mark")):
        pass
    with pytest.raises(RunError, match="taken"), alone_in(tmp_path, Second("taken", "")):
        raise AssertionError("this rank must not go on")


@pytest.mark.parametrize("there", [True, False])
def test_a_rank_that_does_not_see_the_folder_of_the_first_refuses(there, tmp_path, monkeypatch):
    """Another folder of the same name, or none: after some patience, for a network file system may be late."""
    folder = tmp_path / "run"
    if there:
        folder.mkdir()
        (folder / ".lock").write_text("of another run")
    clock = iter(range(100))
    monkeypatch.setattr(lock.time, "monotonic", lambda: float(next(clock)))
    monkeypatch.setattr(lock.time, "sleep", lambda _: None)
    with pytest.raises(ConfigError, match="rank 1 does not see"), alone_in(folder, Second(None, "mark")):
        raise AssertionError("this rank must not go on")


def test_a_file_system_without_locks_is_taken_as_it_is(tmp_path, monkeypatch):
    def unsupported(*_):
        raise OSError(95, "Operation not supported")

    def wait(_):
        raise AssertionError("a lock that there is not will not come free")

    monkeypatch.setattr(lock.fcntl, "flock", unsupported)
    monkeypatch.setattr(lock.time, "sleep", wait)
    with alone_in(tmp_path, Alone()):
        assert (tmp_path / ".lock").exists()
