"""The end of a run that cannot go on: its exit code, its message, its status."""

import json
import os
import socket
import subprocess
import sys
import threading
import time

import pytest

from hpc.alone import Alone
from hpc.config.read import validate
from hpc.errors import RankTimeoutError, RunError
from hpc.failure import end_all


class Leaving(Alone):
    """Two ranks, the other of which is gone."""

    rank, size = 1, 2

    def lost(self, error):
        return isinstance(error, ConnectionError)


GONE = ConnectionError("read failed")
CASES = [  # (what went wrong, is there a checkpoint, the exit code, the state, words of the message)
    (
        GONE,
        True,
        75,
        "stopped",
        ["another rank, or the network to it, is gone (ConnectionError: read failed)", "again"],
    ),
    (GONE, False, 1, "failed", ["is gone"]),
    (RankTimeoutError("waited 3 s"), True, 75, "stopped", ["waited 3 s. Last signs of life", "again"]),
    (RankTimeoutError("waited 3 s"), False, 1, "failed", ["waited 3 s"]),
    (RunError("the disk is full"), True, 1, "failed", ["the disk is full"]),
    (ValueError("a mistake"), True, 1, "failed", ["ValueError: a mistake"]),
]


@pytest.mark.parametrize(("error", "checkpoint", "code", "state", "words"), CASES)
def test_what_ends_a_run_decides_whether_it_can_go_on(error, checkpoint, code, state, words, tmp_path, capsys):
    (tmp_path / "logs").mkdir()
    if checkpoint:
        (tmp_path / "checkpoints" / "step-00000001").mkdir(parents=True)
        (tmp_path / "checkpoints" / "step-00000001" / "manifest.json").touch()
    config = validate({"run_dir": str(tmp_path)})
    assert end_all(error, config, Leaving(), holding=True) == code
    status = json.loads((tmp_path / "status.json").read_text())
    assert status["state"] == state
    said = capsys.readouterr().err
    for word in words:
        assert word in said
        assert word in status["error"]
    assert said.startswith("structlearn: rank 1: ")
    kept = (tmp_path / "logs" / "rank-0001.err").exists()
    assert kept == (not isinstance(error, RunError))  # nobody foresaw it


def test_a_rank_that_is_lost_is_gone_for_mpi_a_moment_before_it_is_for_the_kernel(tmp_path, capsys):
    (tmp_path / "logs").mkdir()
    victim = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    for rank, pid in ((0, victim.pid), (1, os.getpid())):
        sign = {"rank": rank, "pid": pid, "host": socket.gethostname(), "heartbeat": time.time(), "doing": "training"}
        (tmp_path / "logs" / f"rank-{rank:04d}.json").write_text(json.dumps(sign))
    later = threading.Timer(0.05, victim.kill)
    later.start()
    end_all(GONE, validate({"run_dir": str(tmp_path)}), Leaving(), holding=True)
    later.join()
    victim.wait()
    assert f"rank 0 ({socket.gethostname()}, pid {victim.pid}): training at start, 0 s ago; that process is gone" in (
        capsys.readouterr().err
    )
