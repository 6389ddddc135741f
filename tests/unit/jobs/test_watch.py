"""Which rank ended first, and that none is left."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from jobs.watch import HOST, LOOK_S, LocalRanks

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


def sign(run_dir: Path, rank: int, pid: int, heartbeat: float, host: str = HOST) -> None:
    (run_dir / "logs").mkdir(exist_ok=True)
    text = {"rank": rank, "pid": pid, "host": host, "heartbeat": heartbeat, "doing": "training", "step": 10 * rank}
    (run_dir / "logs" / f"rank-{rank:04d}.json").write_text(json.dumps(text))


def settle() -> None:
    """Let the watch look a few times."""
    time.sleep(5 * LOOK_S)


@linux
@pytest.mark.parametrize("killed", [0, 1, 2])
def test_the_rank_that_was_killed_is_named_though_the_others_follow(
    killed: int, processes: Processes, tmp_path: Path
) -> None:
    with LocalRanks(tmp_path, 3) as first:
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
    assert str(first) == f"rank {killed} ({HOST}, pid {pid}), last seen training at step {10 * killed},"


@linux
def test_signs_of_an_earlier_start_name_nobody(processes: Processes, tmp_path: Path) -> None:
    sign(tmp_path, 0, processes[0].pid, time.time() - 100)
    with LocalRanks(tmp_path, 3) as first:
        settle()
        processes[0].kill()
        processes[0].wait()
        settle()
    assert str(first) == "a rank"


def test_ranks_that_never_gave_a_sign_are_not_waited_for(tmp_path: Path) -> None:
    with LocalRanks(tmp_path, 3) as first:
        pass
    assert str(first) == "a rank"


@linux
@pytest.mark.parametrize("stopped", [False, True])
def test_no_rank_is_left_when_their_command_is_over(stopped: bool, processes: Processes, tmp_path: Path) -> None:
    with LocalRanks(tmp_path, 3):
        for rank, process in enumerate(processes):
            sign(tmp_path, rank, process.pid, time.time())
            if stopped:
                process.send_signal(signal.SIGSTOP)
        settle()
        processes[0].kill()  # the watch goes on after the first
        settle()
    assert [process.poll() for process in processes] == [-signal.SIGKILL] * 3


@linux
def test_a_rank_that_gives_its_first_sign_after_another_ended_is_ended_too(
    processes: Processes, tmp_path: Path
) -> None:
    with LocalRanks(tmp_path, 3) as ranks:
        sign(tmp_path, 0, processes[0].pid, time.time())
        settle()
        processes[0].kill()
        settle()
        sign(tmp_path, 1, processes[1].pid, time.time())
        settle()
    assert processes[1].poll() == -signal.SIGKILL
    assert str(ranks).startswith("rank 0 ")
    assert processes[2].poll() is None


@linux
def test_a_process_of_another_machine_with_the_same_number_is_left_alone(processes: Processes, tmp_path: Path) -> None:
    with LocalRanks(tmp_path, 3):
        sign(tmp_path, 0, processes[0].pid, time.time(), "elsewhere")
        settle()
    assert processes[0].poll() is None


@linux
@pytest.mark.parametrize("patience_s", [None, 0.2])
def test_ranks_that_do_not_end_after_the_first_are_ended_unless_they_may_go_on(
    patience_s: float | None, processes: Processes, tmp_path: Path
) -> None:
    """One that has stopped would keep mpiexec, and so the command, for ever."""
    with LocalRanks(tmp_path, 3, patience_s):
        for rank, process in enumerate(processes):
            sign(tmp_path, rank, process.pid, time.time())
        processes[1].send_signal(signal.SIGSTOP)
        settle()
        assert processes[2].poll() is None
        processes[0].kill()
        time.sleep(1.0)
        assert [process.poll() is None for process in processes[1:]] == [patience_s is None] * 2


@linux
def test_ranks_of_another_command_in_the_same_folder_are_left_alone(tmp_path: Path) -> None:
    """They train there; this command has come too late, and will be told so."""
    program = (
        "from subprocess import DEVNULL, Popen\n"
        "print(Popen(['sleep', '60'], stdout=DEVNULL, stderr=DEVNULL, start_new_session=True).pid)"
    )
    pid = int(subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout)
    try:
        with LocalRanks(tmp_path, 2) as ranks:
            sign(tmp_path, 0, pid, time.time())
            settle()
        assert psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
        assert str(ranks) == "a rank"
    finally:
        os.kill(pid, signal.SIGKILL)


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs Linux's /proc")
def test_no_descriptor_stays_open(processes: Processes, tmp_path: Path) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    with LocalRanks(tmp_path, 3):
        for rank, process in enumerate(processes):
            sign(tmp_path, rank, process.pid, time.time())
        settle()
    assert len(list(Path("/proc/self/fd").iterdir())) == before
