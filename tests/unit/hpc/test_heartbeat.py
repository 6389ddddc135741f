"""Signs of life, and what is read from them."""

import json
import os
import signal
import socket
import subprocess
import sys
import time

import pytest

from hpc import heartbeat as module
from hpc.heartbeat import EVERY_S, Heartbeat, forget, last_seen, rank_file


@pytest.fixture
def run_dir(tmp_path):
    (tmp_path / "logs").mkdir()
    return tmp_path


def beating(run_dir, rank=0, size=1, **facts):
    return Heartbeat(run_dir, rank, size, {"run_id": "abc", **facts})


def status(run_dir):
    return json.loads((run_dir / "status.json").read_text())


class Time:
    """Clocks that tests set."""

    def __init__(self):
        self.now = 1000.0

    def monotonic(self):
        return self.now

    def time(self):
        return 5000.0 + self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Time()
    monkeypatch.setattr(module, "time", clock)
    return clock


def test_a_beat_is_due_at_once_and_then_every_few_seconds(run_dir, clock):
    heart = beating(run_dir)
    assert heart.due()
    heart.beat("running", "training")
    assert not heart.due()
    clock.now += EVERY_S - 0.01
    assert not heart.due()
    clock.now += 0.01
    assert heart.due()
    heart.beat("running", "training")
    assert not heart.due()


def test_the_status_says_what_the_run_is_doing_and_where(run_dir, clock):
    beating(run_dir, size=3, epochs=7).beat("running", "evaluating", epoch=2, step=40, seconds_left=1.5)
    assert status(run_dir) == {
        "state": "running", "run_id": "abc", "epochs": 7, "world_size": 3, "host": socket.gethostname(),
        "pid": os.getpid(), "started": 6000.0, "heartbeat": 6000.0, "doing": "evaluating",
        "epoch": 2, "step": 40, "seconds_left": 1.5,
    }  # fmt: skip


def test_each_rank_writes_its_own_sign_and_only_the_first_the_status(run_dir):
    beating(run_dir, rank=2, size=3).beat("running", "training", step=4)
    assert not (run_dir / "status.json").exists()
    sign = json.loads(rank_file(run_dir, 2).read_text())
    assert (sign["rank"], sign["doing"], sign["step"], sign["pid"]) == (2, "training", 4, os.getpid())
    assert abs(sign["heartbeat"] - time.time()) < 60


def test_the_start_stays_while_the_heartbeat_moves(run_dir, clock):
    heart = beating(run_dir)
    heart.beat("running", "training")
    clock.now += 100
    heart.beat("running", "training")
    assert status(run_dir)["heartbeat"] - status(run_dir)["started"] == 100


@pytest.mark.parametrize(("state", "durable"), [("running", False), ("done", True), ("stopped", True)])
def test_only_an_end_is_waited_for_until_it_is_on_the_disk(run_dir, monkeypatch, state, durable):
    waited = []
    monkeypatch.setattr(os, "fsync", waited.append)
    beating(run_dir).status(state)
    assert bool(waited) == durable
    assert status(run_dir)["state"] == state


def test_no_temporary_file_is_left(run_dir):
    heart = beating(run_dir)
    for _ in range(3):
        heart.beat("running", "training")
    names = sorted(path.name for path in run_dir.rglob("*"))
    assert names == ["logs", "rank-0000.json", "status.json"]


def test_the_longest_silent_rank_comes_first(run_dir, clock):
    for rank, (now, doing) in enumerate([(1000.0, "training"), (1003.0, "evaluating"), (940.0, "training")]):
        clock.now = now
        beating(run_dir, rank, 3).beat("running", doing, step=rank * 10)
    lines = last_seen(run_dir, lambda: 6010.0).split("\n")
    host, pid = socket.gethostname(), os.getpid()
    assert [line.strip() for line in lines] == [
        f"rank 2 ({host}, pid {pid}): training at step 20, 70 s ago",
        f"rank 0 ({host}, pid {pid}): training at step 0, 10 s ago",
        f"rank 1 ({host}, pid {pid}): evaluating at step 10, 7 s ago",
    ]


def test_a_rank_that_has_made_no_step_is_at_the_start(run_dir):
    beating(run_dir).beat("running", "loading")
    assert "loading at start, 0 s ago" in last_seen(run_dir)


@pytest.mark.parametrize("broken", ["", "{", "not json"])
def test_a_sign_that_cannot_be_read_does_not_hide_the_others(run_dir, broken):
    beating(run_dir, 1, 2).beat("running", "training", step=1)
    rank_file(run_dir, 0).write_text(broken)
    assert last_seen(run_dir).startswith("rank 1 ")
    assert "\n" not in last_seen(run_dir)


def test_without_any_sign_there_is_nothing_to_say(tmp_path):
    assert last_seen(tmp_path) == ""


@pytest.fixture
def sleeper():
    """A process that does nothing, as somebody's child."""
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    yield process
    process.kill()
    process.wait()


def sign_of(run_dir, rank, pid, ago):
    beating(run_dir, rank, 3).beat("running", "training", step=7)
    sign = json.loads(rank_file(run_dir, rank).read_text())
    rank_file(run_dir, rank).write_text(json.dumps(sign | {"pid": pid, "heartbeat": 6000.0 - ago}))


@pytest.mark.skipif(sys.platform != "linux", reason="Linux tells what a process does")
def test_a_rank_that_is_stopped_comes_first_however_long_the_others_are_silent(run_dir, sleeper):
    sleeper.send_signal(signal.SIGSTOP)
    os.waitid(os.P_PID, sleeper.pid, os.WSTOPPED)
    sign_of(run_dir, 0, os.getpid(), 30)
    sign_of(run_dir, 1, sleeper.pid, 2)
    first, second = last_seen(run_dir, lambda: 6000.0).split("\n  ")
    assert first.startswith("rank 1 ")
    assert first.endswith("training at step 7, 2 s ago; that process is stopped (SIGSTOP)")
    assert second.endswith("training at step 7, 30 s ago")


@pytest.mark.skipif(sys.platform != "linux", reason="Linux tells what a process does")
@pytest.mark.parametrize("reaped", [True, False])
def test_a_rank_that_is_gone_is_told_whether_or_not_its_parent_knows(run_dir, sleeper, reaped):
    sleeper.kill()
    if reaped:
        sleeper.wait()
    else:
        os.waitid(os.P_PID, sleeper.pid, os.WEXITED | os.WNOWAIT)
    sign_of(run_dir, 0, os.getpid(), 30)
    sign_of(run_dir, 1, sleeper.pid, 2)
    assert last_seen(run_dir, lambda: 6000.0).split("\n")[0].endswith("2 s ago; that process is gone")


def test_nothing_is_said_about_the_processes_of_other_machines(run_dir):
    sign_of(run_dir, 0, os.getpid(), 1)
    sign_of(run_dir, 1, 2**22 + 1, 2)
    sign = json.loads(rank_file(run_dir, 1).read_text())
    rank_file(run_dir, 1).write_text(json.dumps(sign | {"host": "elsewhere"}))
    assert last_seen(run_dir, lambda: 6000.0).split("\n")[0].endswith("2 s ago")


@pytest.mark.parametrize(("rank", "kept"), [(0, [1]), (1, [0, 2])])
def test_signs_of_an_earlier_start_are_forgotten(run_dir, rank, kept):
    """Each rank forgets its own, and the first those of ranks that there are no more."""
    for number in range(3):
        beating(run_dir, number, 3).beat("running", "training")
    (run_dir / "logs" / "rank-0001.err").write_text("kept")
    forget(run_dir, rank, 2)
    assert sorted(path.name for path in (run_dir / "logs").iterdir()) == sorted(
        ["rank-0001.err", *(f"rank-{number:04d}.json" for number in kept)]
    )


@pytest.mark.skipif(sys.platform != "linux", reason="Linux tells what a process does")
def test_before_this_process_has_given_a_sign_those_of_others_are_of_an_earlier_start(run_dir, sleeper):
    sleeper.kill()
    sleeper.wait()
    sign_of(run_dir, 0, sleeper.pid, 3600)
    assert last_seen(run_dir, lambda: 6000.0).endswith("3600 s ago")
