"""The doctor on a real SLURM: what it finds there, and a job that proves it."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

BARE = "from jobs import cli, doctor; doctor.CHECKS = {}; cli.main()"
"""The command without its questions to this machine, which cost time and are no matter of the cluster."""
pytestmark = [pytest.mark.slurm, pytest.mark.slow]


@pytest.fixture
def start(tmp_path, environment):
    """The command on a login node, in a folder of its own."""

    def begin(cluster, *arguments: str) -> subprocess.Popen[str]:
        (tmp_path / "here").mkdir(exist_ok=True)
        program = ["-c", BARE] if "--test-job" in arguments else ["-m", "jobs"]
        line = [sys.executable, *program, "doctor", "--json", *arguments]
        pipe = subprocess.PIPE
        return subprocess.Popen(
            line, env=environment | cluster.env(), cwd=tmp_path / "here", stdout=pipe, stderr=pipe, text=True
        )

    return begin


@pytest.fixture
def doctor(start):
    """(exit code, findings by name, standard error)."""

    def ask(cluster, *arguments: str) -> tuple[int, dict, str]:
        child = start(cluster, *arguments)
        out, err = child.communicate(timeout=400)
        assert out, err + cluster.logs()
        return child.returncode, {each["what"]: each for each in json.loads(out)["checks"]}, err

    return ask


def left(tmp_path: Path) -> list[str]:
    return [path.name for path in (tmp_path / "here").iterdir()]


def queue(cluster) -> str:
    return cluster.run("squeue", "--noheader", "--name=structlearn-doctor", "--states=PENDING,RUNNING")


def test_what_a_cluster_without_accounting_offers(doctor, slurm):
    code, found, err = doctor(slurm)
    assert code == 0, (found, err)
    assert found["partition main"]["finding"] == (
        "default; 2 node(s), 2 idle; 2 core(s), 4 GB, no GPU each; at most 1:00:00"
    )
    assert "(requeue, 10 s after the notice)" in found["partition low"]["finding"]
    assert found["srun"]["status"] == "ok"
    assert "the MPI library here takes" in found["srun"]["finding"]
    assert found["arrays"]["finding"].startswith("up to 1,001 jobs")
    assert "waits 5 s at least" in found["requeue"]["finding"]
    assert "told at once (SIGUSR2)" in found["preemption"]["finding"]
    assert "after 5 s (KillWait)" in found["end"]["finding"]
    assert "sacct does not answer, and is not needed" in found["accounting"]["finding"]
    assert found["accounts"]["status"] == "ok"
    assert "test job" not in found


def test_two_ranks_on_two_nodes_find_each_other(doctor, slurm, tmp_path):
    _, found, err = doctor(slurm, "--test-job")
    assert {each["status"] for each in found.values()} == {"ok"}, (found, err)
    assert "rank 0 on n1, rank 1 on n2" in found["ranks"]["finding"]
    assert "structlearn: job " in err
    assert (left(tmp_path), queue(slurm)) == ([], "")


def test_accounts_are_told_where_there_is_accounting(doctor, slurm_accounting):
    slurm_accounting.run("sacctmgr", "-i", "add", "account", "physics")
    slurm_accounting.run("sacctmgr", "-i", "add", "user", "root", "account=physics")
    _, found, _ = doctor(slurm_accounting)
    assert found["accounting"]["finding"].startswith("sacct answers")
    assert "physics" in found["accounts"]["finding"].partition(";")[0].split(", ")


def test_a_plugin_that_does_not_suit_is_named(doctor, slurm, tmp_path):
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "sweep.yaml").write_text("run_dir: x\nresources: {mpi: none, partition: high, ranks: 6}\n")
    code, found, _ = doctor(slurm, "--test-job", "--sweep", "sweep.yaml")
    assert code == 1
    assert found["ranks"]["status"] == "fail"
    assert "each finds itself alone (world size 1)" in found["ranks"]["finding"]
    assert found["ranks"]["remedy"].startswith("set resources.mpi: pmi")
    code, found, _ = doctor(slurm, "--test-job", "--resources.mpi", "nonsense")
    assert (code, found["ranks"]["status"]) == (1, "fail")
    assert "srun --mpi=list" in found["ranks"]["remedy"]


def test_what_the_site_refuses_is_told_with_its_remedy(doctor, slurm, tmp_path):
    code, found, _ = doctor(slurm, "--test-job", "--resources.partition", "nowhere")
    assert code == 1
    assert "Invalid partition name" in found["test job"]["finding"]
    assert "resources.partition" in found["test job"]["remedy"]
    assert left(tmp_path) == []


def test_a_job_that_fails_before_its_ranks_says_so(doctor, slurm):
    code, found, _ = doctor(slurm, "--test-job", "--resources.setup", "['module load mpi || exit 3']")
    assert code == 1
    assert "command not found" in found["test job"]["finding"]
    assert "resources.setup" in found["test job"]["remedy"]


def test_a_job_that_waits_too_long_is_cancelled(doctor, slurm, tmp_path):
    blocker = slurm.sbatch("sleep 600", "-N2", "--exclusive", "-p", "high")
    slurm.wait_for(blocker, "RUNNING")
    try:
        code, found, _ = doctor(slurm, "--test-job", "--wait", "0.1")
    finally:
        slurm.run("scancel", blocker)
    assert code == 1
    assert "has not started in time" in found["test job"]["finding"]
    assert (left(tmp_path), queue(slurm)) == ([], "")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_one_leaves_nothing_behind(number, start, slurm, tmp_path):
    blocker = slurm.sbatch("sleep 600", "-N2", "--exclusive", "-p", "high")
    slurm.wait_for(blocker, "RUNNING")
    try:
        child = start(slurm, "--test-job")
        slurm.wait(lambda: queue(slurm), "there is no test job", 120)
        time.sleep(1)  # it may not know its job's name yet
        os.kill(child.pid, number)
        child.communicate(timeout=120)
        assert child.returncode == 130
    finally:
        slurm.run("scancel", blocker)
    assert (left(tmp_path), queue(slurm)) == ([], "")
