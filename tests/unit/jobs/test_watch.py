"""Which rank ended first."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from jobs.watch import LOOK_S, FirstToEnd

linux = pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="needs Linux's pidfd_open")
Processes = list["subprocess.Popen[bytes]"]


@pytest.fixture
def processes() -> Iterator[Processes]:
    """Three that do nothing."""
    started = [subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) for _ in range(3)]
    yield started
    for process in started:
        process.kill()
        process.wait()


def sign(run_dir: Path, rank: int, pid: int, heartbeat: float) -> None:
    (run_dir / "logs").mkdir(exist_ok=True)
    text = {"rank": rank, "pid": pid, "host": "here", "heartbeat": heartbeat, "doing": "training", "step": 10 * rank}
    (run_dir / "logs" / f"rank-{rank:04d}.json").write_text(json.dumps(text))


def settle() -> None:
    """Let the watch look a few times."""
    time.sleep(5 * LOOK_S)


@linux
@pytest.mark.parametrize("killed", [0, 1, 2])
def test_the_rank_that_was_killed_is_named_though_the_others_follow(
    killed: int, processes: Processes, tmp_path: Path
) -> None:
    with FirstToEnd(tmp_path, 3) as first:
        for rank, process in enumerate(processes):
            sign(tmp_path, rank, process.pid, time.time())
        settle()
        assert str(first) == "a rank"
        processes[killed].kill()
        processes[killed].wait()
        time.sleep(0.1)
        for process in processes:
            process.kill()
            process.wait()
    pid = processes[killed].pid
    assert str(first) == f"rank {killed} (here, pid {pid}), last seen training at step {10 * killed},"


@linux
def test_signs_of_an_earlier_start_name_nobody(processes: Processes, tmp_path: Path) -> None:
    sign(tmp_path, 0, processes[0].pid, time.time() - 100)
    with FirstToEnd(tmp_path, 3) as first:
        settle()
        processes[0].kill()
        processes[0].wait()
        settle()
    assert str(first) == "a rank"


def test_ranks_that_never_gave_a_sign_are_not_waited_for(tmp_path: Path) -> None:
    with FirstToEnd(tmp_path, 3) as first:
        pass
    assert str(first) == "a rank"


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs Linux's /proc")
def test_no_descriptor_stays_open(processes: Processes, tmp_path: Path) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    with FirstToEnd(tmp_path, 3):
        for rank, process in enumerate(processes):
            sign(tmp_path, rank, process.pid, time.time())
        settle()
    assert len(list(Path("/proc/self/fd").iterdir())) == before
