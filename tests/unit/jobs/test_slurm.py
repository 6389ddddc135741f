"""SLURM as its commands answer: faked, for the cases that a real one does not produce on demand."""

from __future__ import annotations

import json
import os
import sys
import time
from typing import TYPE_CHECKING

import pytest

from hpc.errors import RunError
from jobs import slurm
from jobs.attempts import Attempt, note
from jobs.resources import Resources
from jobs.slurm import SlurmJob, job_name, pass_over_steps, preview, scheduled, submit
from jobs.sweepfolder import Submission, SweepFolder

if TYPE_CHECKING:
    from pathlib import Path

CONFIG = "Configuration data as of 2026-11-22T12:00:00\nMaxArraySize            = {limit}\nMaxJobCount = 10000\n"


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """Commands of SLURM that are a few lines of shell each; every call is written down."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")

    class Fake:
        calls = tmp_path / "calls"

        def __call__(self, **scripts: str) -> None:
            for name, script in scripts.items():
                path = folder / name
                path.write_text(f'#!/bin/sh\necho "{name} $*" >> {self.calls}\n{script}\n')
                path.chmod(0o755)

        def called(self, name: str) -> list[str]:
            lines = self.calls.read_text().splitlines() if self.calls.exists() else []
            return [line for line in lines if line.startswith(f"{name} ")]

    return Fake()


@pytest.fixture
def sweep(tmp_path) -> SweepFolder:
    folder = SweepFolder(tmp_path / "s")
    folder.logs.mkdir(parents=True)
    for name in ("a", "b"):
        folder.run_dir(name).mkdir()
    return folder


def config(limit: int) -> str:
    return f"cat <<'E'\n{CONFIG.format(limit=limit)}E"


def counting(tmp_path: Path) -> str:
    """An sbatch that numbers its jobs."""
    count = tmp_path / "count"
    return f'echo x >> {count}; echo "Submitted batch job $((100 + $(wc -l < {count})))"'


def runs(sweep: SweepFolder, count: int) -> list[list[Path]]:
    return [[sweep.run_dir(f"r{number}")] for number in range(count)]


@pytest.mark.parametrize(("limit", "sizes"), [(1001, [7]), (3, [3, 3, 1]), (1, [1] * 7)])
def test_as_many_arrays_as_the_limit_asks_for(fake, sweep, tmp_path, limit, sizes) -> None:
    fake(srun="", sbatch=counting(tmp_path), scontrol=config(limit))
    taken = list(submit(runs(sweep, 7), Resources(), "pmi2", sweep.logs, "n"))
    assert [len(each) for each in taken] == sizes
    names = [name for each in taken for name in each]
    assert len(fake.called("sbatch")) == len(sizes)
    wanted = []
    for number, size in enumerate(sizes):
        wanted += [f"{101 + number}_{index}" for index in range(size)] if size > 1 else [f"{101 + number}"]
    assert names == wanted
    shown = preview(Resources(parallel=2), sweep.logs, "n", 7)
    assert shown.count("#!/bin/bash") == len(set(sizes))
    assert ("--array=0-2%2" in shown) == (limit == 3)
    assert ("2 array(s) of 3 job(s)" in shown) == (limit == 3)


def test_what_sbatch_would_get_is_shown_where_there_is_no_slurm(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    needs = Resources(
        ranks=4, nodes=2, cpus_per_rank=3, gpus_per_rank=1, mem_gb=1.5, timeout_min=30, signal_s=90, partition="p",
        account="a", qos="q", constraint="c", setup=("module load x",), sbatch={"exclusive": True, "wckey": "w"},
    )  # fmt: skip
    text = preview(needs, tmp_path, "n", 5)
    for line in (
        "array=0-4%5", "nodes=2", "ntasks-per-node=2", "cpus-per-task=3", "gpus-per-task=1", "mem=1536M", "time=30",
        "signal=USR2@90", "partition=p", "account=a", "qos=q", "constraint=c", "exclusive", "wckey=w", "requeue",
        "job-name=n", "open-mode=append",
    ):  # fmt: skip
        assert f"#SBATCH --{line}\n" in text
    assert "\nmodule load x\n" in text
    assert "--requeue" not in preview(Resources(sbatch={"no-requeue": True}), tmp_path, "n", 1)
    with pytest.raises(RunError, match="sbatch: not found, so there is no SLURM here"):
        list(submit([[tmp_path]], needs, "pmi2", tmp_path, "n"))


def test_what_sbatch_refuses_is_told_in_its_words(fake, sweep) -> None:
    fake(srun="", scontrol=config(10), sbatch="echo 'sbatch: error: invalid partition specified: x' >&2; exit 1")
    with pytest.raises(RunError, match=r"SLURM did not take the jobs.*invalid partition specified: x"):
        list(submit(runs(sweep, 2), Resources(), "pmi2", sweep.logs, "n"))


def test_jobs_wait_or_run_or_are_gone(fake) -> None:
    fake(squeue='printf "7_0 RUNNING\\n7_1 PENDING\\n8 COMPLETING\\n9 REQUEUE_HOLD\\n70 RUNNING\\n"')
    assert scheduled(["7_0", "7_1", "8", "9", "10"]) == {
        "7_0": "running", "7_1": "pending", "8": "running", "9": "pending",
    }  # fmt: skip
    fake(squeue="exit 1")
    assert scheduled(["7_0"]) is None


def test_a_scheduler_that_does_not_answer_is_not_waited_for(fake, monkeypatch) -> None:
    monkeypatch.setattr(slurm, "_TIMEOUT_S", 0.2)
    fake(squeue="sleep 100")
    assert scheduled(["7_0"]) is None


def test_the_job_knows_its_name() -> None:
    assert job_name({"SLURM_JOB_ID": "12"}) == "12"
    assert job_name({"SLURM_JOB_ID": "15", "SLURM_ARRAY_JOB_ID": "12", "SLURM_ARRAY_TASK_ID": "0"}) == "12_0"


@pytest.mark.parametrize(("starts", "restarts", "steps"), [(0, 0, 0), (3, 0, 0), (0, 1, 1), (3, 2, 5)])
def test_numbers_of_earlier_steps_are_used_up(fake, sweep, starts, restarts, steps) -> None:
    fake(srun="")
    for job in ["12_3"] * starts + ["11_3"]:
        note(sweep.run_dir("a"), Attempt(job, 0, 1, 1, "failed"))
    pass_over_steps([sweep.run_dir("a")], "12_3", restarts)
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
def test_a_run_that_stopped_goes_back_into_the_queue(fake, sweep) -> None:
    fake(srun=STOPPED, scontrol="", squeue="")
    sweep.note(Submission(0, "slurm", {"12": ["a"]}))
    with pytest.raises(SystemExit, match="75"):
        SlurmJob([sweep.run_dir("a")], Resources(), "pmi2")()
    assert fake.called("scontrol") == ["scontrol requeue 12"]


@pytest.mark.usefixtures("inside")
def test_the_last_task_of_an_array_goes_back_without_the_others(fake, sweep, monkeypatch) -> None:
    """Its SLURM_JOB_ID is the array's."""
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "12")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "9")
    fake(srun=STOPPED, scontrol="", squeue="")
    sweep.note(Submission(0, "slurm", {"12_9": ["a"]}))
    with pytest.raises(SystemExit, match="75"):
        SlurmJob([sweep.run_dir("a")], Resources(), "pmi2")()
    assert fake.called("scontrol") == ["scontrol requeue 12_9"]


@pytest.mark.usefixtures("inside")
def test_a_job_that_is_in_the_queue_already_is_left_there(fake, sweep) -> None:
    fake(srun=STOPPED, scontrol="echo Job is pending execution for job 12 >&2; exit 1", squeue="", sbatch="exit 1")
    sweep.note(Submission(0, "slurm", {"12": ["a"]}))
    with pytest.raises(SystemExit, match="75"):
        SlurmJob([sweep.run_dir("a")], Resources(), "pmi2")()
    assert fake.called("sbatch") == []


@pytest.mark.usefixtures("inside")
def test_a_controller_that_is_away_is_waited_for(fake, sweep, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(slurm, "AGAIN_S", 0.01)
    count = tmp_path / "asked"
    away = f"echo >> {count}; case $(wc -l < {count}) in 1|2|4|5) echo connect failure >&2; exit 1;; esac"
    fake(srun=STOPPED, squeue=away, scontrol=away)
    sweep.note(Submission(0, "slurm", {"12": ["a"]}))
    with pytest.raises(SystemExit, match="75"):
        SlurmJob([sweep.run_dir("a")], Resources(), "pmi2")()
    called = [line.split()[0] for line in fake.calls.read_text().splitlines()]
    assert called == ["squeue"] * 3 + ["srun", "scontrol", "squeue", "scontrol"]


def test_a_step_that_does_not_come_is_not_waited_for_for_ever(fake, sweep, monkeypatch) -> None:
    monkeypatch.setattr(slurm, "_EMPTY_STEP_S", 0.1)
    fake(srun="exec sleep 10")
    pass_over_steps([sweep.run_dir("a")], "12_3", 1)
    assert len(fake.called("srun")) == 1


@pytest.mark.usefixtures("inside")
def test_where_that_is_forbidden_a_new_job_is_made(fake, sweep, tmp_path) -> None:
    seen = tmp_path / "seen"
    fake(
        srun=STOPPED,
        scontrol=f'test "$1" = requeue && {{ echo disabled >&2; exit 1; }}\n{config(10)}',
        sbatch=f"env > {seen}; echo Submitted batch job 77",
        squeue="",
    )
    sweep.note(Submission(0, "slurm", {"12": ["a"]}))
    with pytest.raises(SystemExit, match="75"):
        SlurmJob([sweep.run_dir("a")], Resources(), "pmi2")()
    assert sweep.submissions()[-1].jobs == {"77": ["a"]}
    left = [line for line in seen.read_text().splitlines() if line.startswith(("SLURM_", "SBATCH_"))]
    assert left == ["SLURM_CONF=/etc/slurm.conf"]


@pytest.mark.usefixtures("inside")
def test_where_that_is_forbidden_too_the_run_stays_stopped(fake, sweep) -> None:
    fake(srun=STOPPED, scontrol="echo disabled >&2; exit 1", sbatch="exit 1", squeue="")
    sweep.note(Submission(0, "slurm", {"12": ["a"]}))
    with pytest.raises(RunError):
        SlurmJob([sweep.run_dir("a")], Resources(), "pmi2")()
    assert len(sweep.submissions()) == 1
    assert json.loads((sweep.run_dir("a") / "status.json").read_text())["state"] == "stopped"


@pytest.mark.usefixtures("inside")
def test_a_job_that_nobody_could_note_notes_itself(fake, sweep) -> None:
    fake(srun=DONE, squeue="")
    with pytest.raises(SystemExit, match="0"):
        SlurmJob([sweep.run_dir("a")], Resources(), "pmi2")()
    assert [each.jobs for each in sweep.submissions()] == [{"12": ["a"]}]
    assert json.loads((sweep.run_dir("a") / "status.json").read_text())["state"] == "done"


@pytest.mark.usefixtures("inside")
@pytest.mark.parametrize("noted", [True, False])
def test_a_job_leaves_a_run_alone_that_a_newer_one_was_made_for(fake, sweep, noted) -> None:
    fake(srun=DONE, squeue="")
    if noted:
        sweep.note(Submission(0, "slurm", {"12": ["a", "b"]}))
    sweep.note(Submission(1, "slurm", {"13": ["a"]}))
    with pytest.raises(SystemExit, match="0"):
        SlurmJob([sweep.run_dir("a"), sweep.run_dir("b")], Resources(), "pmi2")()
    assert not (sweep.run_dir("a") / "status.json").exists()
    assert json.loads((sweep.run_dir("b") / "status.json").read_text())["state"] == "done"


def test_ranks_are_started_as_their_needs_say(sweep) -> None:
    needs = Resources(ranks=4, nodes=2, cpus_per_rank=3, gpus_per_rank=1)
    job = SlurmJob([sweep.run_dir("a")], needs, "pmix")
    line = " ".join(job.command(sweep.run_dir("a")))
    for option in ("--ntasks=4", "--nodes=2", "--cpus-per-task=3", "--mpi=pmix", "--gpus-per-task=1"):
        assert option in line
    assert line.endswith(f"{sys.executable} -m hpc.rank {sweep.run_dir('a')} --progress plain")
    env = job.environment({"SUBMITIT_EXECUTOR": "slurm", "HOME": "/h", "SLURM_JOB_ID": "1"})
    assert env == {"HOME": "/h", "SLURM_JOB_ID": "1", "SLURM_OVERLAP": "1", "OMP_NUM_THREADS": "3"}


def test_a_step_that_does_not_end_is_waited_for_and_then_told(fake, monkeypatch) -> None:
    monkeypatch.setattr(slurm, "_STEP_S", 1.5)
    fake(squeue='printf "12.batch\\n12.extern\\n"')
    assert slurm.no_step_left("12")
    fake(squeue='printf "12.batch\\n12.3\\n"')
    assert not slurm.no_step_left("12")
    assert len(fake.called("squeue")) > 2
    fake(squeue="exit 1")
    assert slurm.no_step_left("12")
