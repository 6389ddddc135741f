"""A rank that is lost is named, with what it was doing (a sample of experiments/faults)."""

import contextlib
import json
import shutil
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).parents[2]
COMMON = (
    *(
        "--data.name",
        "digits",
        "--model.name",
        "troubled:build",
        "--epochs",
        "3",
        "--ranks",
        "3",
        "--data.batch_size",
        "8",
    ),
    *("--checkpoint.every_steps", "5", "--compute.deadline_s", "15"),
)


@pytest.fixture(autouse=True)
def model(tmp_path):
    shutil.copy(ROOT / "tests" / "support" / "troubled.py", tmp_path)


@pytest.mark.parallel
@pytest.mark.parametrize(
    ("trouble", "message"),
    [
        ("kill", "rank 1 (HOST, pid PID), last seen training at step 35, was ended by a signal (mpiexec returned"),
        ("freeze", "Last signs of life:\n  rank 1 (HOST, pid PID): training at step 35, "),
    ],
)
def test_a_rank_that_is_lost_is_named_with_what_it_was_doing(trouble, message, train, tmp_path):
    """With an exchange that keeps MPICH from reading the memory of the rank that is killed: see test_gossip.py."""
    run_dir = tmp_path / "run"
    done = train(*COMMON, "--exchange.name", "none", "--run_dir", str(run_dir), env={"TROUBLE": f"{trouble} 1 38"})
    assert done.returncode == 75, done.stderr
    sign = json.loads((run_dir / "logs" / "rank-0001.json").read_text())
    message = message.replace("HOST", sign["host"]).replace("PID", str(sign["pid"]))
    assert message in done.stderr
    assert ("; that process is stopped (SIGSTOP)" in done.stderr) == (trouble == "freeze")
    assert "un the same command again to go on from the last checkpoint" in done.stderr
    status = json.loads((run_dir / "status.json").read_text())
    assert (status["state"], status["exit_code"]) == ("stopped", 75)
    assert message in status["error"]
    with contextlib.suppress(psutil.NoSuchProcess):  # a zombie is for this machine's first process to bury
        assert psutil.Process(sign["pid"]).status() == psutil.STATUS_ZOMBIE
