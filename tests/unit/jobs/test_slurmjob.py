"""A job of SLURM from inside: what it starts, when it goes back into the queue, what it leaves alone."""

from __future__ import annotations

import json
import os
import sys
import time

import pytest
from slurm_commands import slurm_config

from hpc.errors import RunError
from jobs import slurmjob
from jobs.attempts import CANCELLED, Attempt, mark, note
from jobs.resources import Resources
from jobs.slurmjob import SlurmJob, job_name, no_step_left, pass_over_steps
from jobs.sweepfolder import Submission


def test_the_job_knows_its_name() -> None:
    assert job_name({"SLURM_JOB_ID": "12"}) == "12"
    assert job_name({"SLURM_JOB_ID": "15", "SLURM_ARRAY_JOB_ID": "12", "SLURM_ARRAY_TASK_ID": "0"}) == "12_0"


@pytest.mark.parametrize(("starts", "restarts", "steps"), [(0, 0, 0), (3, 0, 0), (0, 1, 1), (3, 2, 5)])
def test_numbers_of_earlier_steps_are_used_up(fake, pair, starts, restarts, steps) -> None:
    fake(srun="")
    for job in ["12_3"] * starts + ["11_3"]:
        note(pair.run_dir("a"), Attempt(job, 0, 1, 1, "failed"))
    pass_over_steps([pair.run_dir("a")], "12_3", restarts)
    assert len(fake.called("srun")) == steps


def ranks(script: str) -> str:
    """An srun that is the ranks of one run; its folder is the one argument that is a folder."""
    return f'for each in "$@"; do test -d "$each" && run="$each"; done\n{script}'


STOPPED = ranks(f"""
mkdir -p $run/checkpoints/step-000000007-epoch-00001
echo '{{}}' > $run/checkpoints/step-000000007-epoch-00001/manifest.json
echo '{{"state": "stopped", "heartbeat": {time.time() + 1e6}}}' > $run/status.json; exit 75""")
DONE = ranks(f"""echo '{{"state": "done", "heartbeat": {time.time() + 1e6}}}' > $run/status.json""")


@pytest.fixture
def inside(monkeypatch) -> None:
    """This process is in job 12."""
    for key in [key for key in os.environ if key.startswith("SLURM_")]:
        monkeypatch.delenv(key)
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    monkeypatch.setenv("SLURM_CONF", "/etc/slurm.conf")


@pytest.mark.usefixtures("inside")
def test_a_run_that_stopped_goes_back_into_the_queue(fake, pair) -> None:
    fake(srun=STOPPED, scontrol="", squeue="")
    pair.note(Submission(0, "slurm", {"12": ["a"]}))
    with pytest.raises(SystemExit, match="75"):
        SlurmJob([pair.run_dir("a")], Resources(), "pmi2")()
    assert fake.called("scontrol") == ["scontrol requeue 12"]


@pytest.mark.usefixtures("inside")
def test_the_last_task_of_an_array_goes_back_without_the_others(fake, pair, monkeypatch) -> None:
    """Its SLURM_JOB_ID is the array's."""
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "12")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "9")
    fake(srun=STOPPED, scontrol="", squeue="")
    pair.note(Submission(0, "slurm", {"12_9": ["a"]}))
    with pytest.raises(SystemExit, match="75"):
        SlurmJob([pair.run_dir("a")], Resources(), "pmi2")()
    assert fake.called("scontrol") == ["scontrol requeue 12_9"]


@pytest.mark.usefixtures("inside")
def test_a_job_that_is_in_the_queue_already_is_left_there(fake, pair) -> None:
    fake(srun=STOPPED, scontrol="echo Job is pending execution for job 12 >&2; exit 1", squeue="", sbatch="exit 1")
    pair.note(Submission(0, "slurm", {"12": ["a"]}))
    with pytest.raises(SystemExit, match="75"):
        SlurmJob([pair.run_dir("a")], Resources(), "pmi2")()
    assert fake.called("sbatch") == []


@pytest.mark.usefixtures("inside")
def test_a_controller_that_is_away_is_waited_for(fake, pair, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(slurmjob, "AGAIN_S", 0.01)
    count = tmp_path / "asked"
    away = f"echo >> {count}; case $(wc -l < {count}) in 1|2|4|5) echo connect failure >&2; exit 1;; esac"
    fake(srun=STOPPED, squeue=away, scontrol=away)
    pair.note(Submission(0, "slurm", {"12": ["a"]}))
    with pytest.raises(SystemExit, match="75"):
        SlurmJob([pair.run_dir("a")], Resources(), "pmi2")()
    called = [line.split()[0] for line in fake.calls.read_text().splitlines()]
    assert called == ["squeue"] * 3 + ["srun", "scontrol", "squeue", "scontrol"]


def test_a_step_that_does_not_come_is_not_waited_for_for_ever(fake, pair, monkeypatch) -> None:
    monkeypatch.setattr(slurmjob, "_EMPTY_STEP_S", 0.1)
    fake(srun="exec sleep 10")
    pass_over_steps([pair.run_dir("a")], "12_3", 1)
    assert len(fake.called("srun")) == 1


@pytest.mark.usefixtures("inside")
def test_where_that_is_forbidden_a_new_job_is_made(fake, pair, tmp_path) -> None:
    seen = tmp_path / "seen"
    fake(
        srun=STOPPED,
        scontrol=f'test "$1" = requeue && {{ echo disabled >&2; exit 1; }}\n{slurm_config(10)}',
        sbatch=f"env > {seen}; echo Submitted batch job 77",
        squeue="",
    )
    pair.note(Submission(0, "slurm", {"12": ["a"]}))
    with pytest.raises(SystemExit, match="75"):
        SlurmJob([pair.run_dir("a")], Resources(), "pmi2")()
    assert pair.submissions()[-1].jobs == {"77": ["a"]}
    left = [line for line in seen.read_text().splitlines() if line.startswith(("SLURM_", "SBATCH_"))]
    assert left == ["SLURM_CONF=/etc/slurm.conf"]


@pytest.mark.usefixtures("inside")
def test_a_new_job_takes_only_what_is_left(fake, pair) -> None:
    refused = f'test "$1" = requeue && {{ echo disabled >&2; exit 1; }}\n{slurm_config(10)}'
    fake(scontrol=refused, sbatch="echo Submitted batch job 77", squeue="")
    for name in ("c", "d"):
        pair.run_dir(name).mkdir()
    pair.note(Submission(0, "slurm", {"12": ["a", "b", "c", "d"]}))
    pair.note(Submission(1, "slurm", {"13": ["b"]}))
    (pair.run_dir("c") / "status.json").write_text('{"state": "done"}')
    mark(pair.run_dir("d"), CANCELLED)
    SlurmJob([pair.run_dir(name) for name in "abcd"], Resources(), "pmi2").go_on("12")
    assert pair.submissions()[-1].jobs == {"77": ["a"]}


@pytest.mark.usefixtures("inside")
def test_where_that_is_forbidden_too_the_run_stays_stopped(fake, pair) -> None:
    fake(srun=STOPPED, scontrol="echo disabled >&2; exit 1", sbatch="exit 1", squeue="")
    pair.note(Submission(0, "slurm", {"12": ["a"]}))
    with pytest.raises(RunError):
        SlurmJob([pair.run_dir("a")], Resources(), "pmi2")()
    assert len(pair.submissions()) == 1
    assert json.loads((pair.run_dir("a") / "status.json").read_text())["state"] == "stopped"


@pytest.mark.usefixtures("inside")
def test_a_job_that_nobody_could_note_notes_itself(fake, pair) -> None:
    fake(srun=DONE, squeue="")
    with pytest.raises(SystemExit, match="0"):
        SlurmJob([pair.run_dir("a")], Resources(), "pmi2")()
    assert [each.jobs for each in pair.submissions()] == [{"12": ["a"]}]
    assert json.loads((pair.run_dir("a") / "status.json").read_text())["state"] == "done"


@pytest.mark.usefixtures("inside")
@pytest.mark.parametrize("noted", [True, False])
def test_a_job_leaves_a_run_alone_that_a_newer_one_was_made_for(fake, pair, noted) -> None:
    fake(srun=DONE, squeue="")
    if noted:
        pair.note(Submission(0, "slurm", {"12": ["a", "b"]}))
    pair.note(Submission(1, "slurm", {"13": ["a"]}))
    with pytest.raises(SystemExit, match="0"):
        SlurmJob([pair.run_dir("a"), pair.run_dir("b")], Resources(), "pmi2")()
    assert not (pair.run_dir("a") / "status.json").exists()
    assert json.loads((pair.run_dir("b") / "status.json").read_text())["state"] == "done"


def test_ranks_are_started_as_their_needs_say(pair) -> None:
    needs = Resources(ranks=4, nodes=2, cpus_per_rank=3, gpus_per_rank=1)
    job = SlurmJob([pair.run_dir("a")], needs, "pmix")
    line = " ".join(job.command(pair.run_dir("a")))
    for option in ("--ntasks=4", "--nodes=2", "--cpus-per-task=3", "--mpi=pmix", "--gpus-per-task=1"):
        assert option in line
    assert line.endswith(f"{sys.executable} -m hpc.rank {pair.run_dir('a')} --progress plain")
    env = job.environment({"SUBMITIT_EXECUTOR": "slurm", "HOME": "/h", "SLURM_JOB_ID": "1"})
    assert env == {"HOME": "/h", "SLURM_JOB_ID": "1", "SLURM_OVERLAP": "1", "OMP_NUM_THREADS": "3"}


def test_a_step_that_does_not_end_is_waited_for_and_then_told(fake, monkeypatch) -> None:
    monkeypatch.setattr(slurmjob, "_STEP_S", 1.5)
    fake(squeue='printf "12.batch\\n12.extern\\n"')
    assert no_step_left("12")
    fake(squeue='printf "12.batch\\n12.3\\n"')
    assert not no_step_left("12")
    assert len(fake.called("squeue")) > 2
    fake(squeue="exit 1")
    assert no_step_left("12")
