"""SLURM as its commands answer: faked, for the cases that a real one does not produce on demand."""

from __future__ import annotations

import os
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
from slurm_commands import slurm_config

from hpc.errors import RunError
from jobs import slurm
from jobs.resources import Resources
from jobs.slurm import preview, reasons, scheduled, submit

if TYPE_CHECKING:
    from pathlib import Path


def counting(tmp_path: Path) -> str:
    """An sbatch that numbers its jobs."""
    count = tmp_path / "count"
    return f'echo x >> {count}; echo "Submitted batch job $((100 + $(wc -l < {count})))"'


def calls(count: int) -> list[Any]:
    return [partial(print, number) for number in range(count)]


@pytest.mark.parametrize(("limit", "sizes"), [(1001, [7]), (3, [3, 3, 1]), (1, [1] * 7)])
def test_as_many_arrays_as_the_limit_asks_for(fake, pair, tmp_path, limit, sizes) -> None:
    fake(srun="", sbatch=counting(tmp_path), scontrol=slurm_config(limit))
    taken = list(submit(calls(7), Resources(), pair.logs, "n"))
    assert [len(each) for each in taken] == sizes
    names = [name for each in taken for name in each]
    assert len(fake.called("sbatch")) == len(sizes)
    wanted = []
    for number, size in enumerate(sizes):
        wanted += [f"{101 + number}_{index}" for index in range(size)] if size > 1 else [f"{101 + number}"]
    assert names == wanted
    shown = preview(Resources(parallel=2), pair.logs, "n", 7)
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
    for key in ("no-requeue", "no_requeue"):
        assert "--requeue" not in preview(Resources(sbatch={key: True}), tmp_path, "n", 1)
    with pytest.raises(RunError, match="sbatch: not found, so there is no SLURM here"):
        list(submit(calls(1), needs, tmp_path, "n"))


@pytest.mark.parametrize("inside", [True, False])
def test_a_job_that_submits_does_not_pass_on_what_it_has_got(fake, pair, tmp_path, monkeypatch, inside) -> None:
    seen = tmp_path / "seen"
    fake(scontrol=slurm_config(10), sbatch=f"env > {seen}; echo Submitted batch job 77")
    given = {"SLURM_CPUS_PER_TASK": "4", "SLURM_CONF": "/c", "SBATCH_ACCOUNT": "mine", "PMI_RANK": "0"}
    for key, value in (given | ({"SLURM_JOB_ID": "12"} if inside else {})).items():
        monkeypatch.setenv(key, value)
    if not inside:
        monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    list(submit(calls(1), Resources(), pair.logs, "n"))
    passed = dict(line.split("=", 1) for line in seen.read_text().splitlines() if "=" in line)
    kept = {"SLURM_CONF", "SBATCH_ACCOUNT"} if inside else set(given)
    assert {key for key in given if key in passed} == kept
    assert os.environ["PMI_RANK"] == "0"


def test_a_shells_own_wishes_do_not_beat_the_sweeps(fake, pair, tmp_path, monkeypatch) -> None:
    seen = tmp_path / "seen"
    fake(scontrol=slurm_config(10), sbatch=f"env > {seen}; echo Submitted batch job 77")
    for key in ("SBATCH_PARTITION", "SBATCH_ACCOUNT", "SBATCH_TIMELIMIT"):
        monkeypatch.setenv(key, "x")
    list(submit(calls(1), Resources(partition="main"), pair.logs, "n"))
    assert {line.partition("=")[0] for line in seen.read_text().splitlines() if line.startswith("SBATCH_")} == {
        "SBATCH_ACCOUNT"
    }


def test_what_sbatch_refuses_is_told_in_its_words(fake, pair) -> None:
    fake(srun="", scontrol=slurm_config(10), sbatch="echo 'sbatch: error: invalid partition specified: x' >&2; exit 1")
    with pytest.raises(RunError, match=r"SLURM did not take the jobs.*invalid partition specified: x"):
        list(submit(calls(2), Resources(), pair.logs, "n"))


def test_jobs_wait_or_run_or_are_gone(fake) -> None:
    fake(squeue='printf "7_0|RUNNING\\n7_1|PENDING\\n8|COMPLETING\\n9|REQUEUE_HOLD\\n70|RUNNING\\n"')
    assert scheduled(["7_0", "7_1", "8", "9", "10"]) == {
        "7_0": "running", "7_1": "pending", "8": "running", "9": "pending",
    }  # fmt: skip
    assert "--jobs=7,8,9,10" in fake.called("squeue")[0]
    fake(squeue="echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1")  # it has forgotten them all
    assert scheduled(["7_0"]) == {}
    fake(squeue="exit 1")
    assert scheduled(["7_0"]) is None


def test_why_jobs_wait_is_told_with_what_to_do(fake) -> None:
    rows = ("7_0|Resources|N/A", "7_1|BeginTime|2026-11-22T12:28:30", "8|launch_failed_requeued_held|N/A", "9|None|N/A")
    fake(squeue=f"printf '{chr(10).join(rows)}'")
    assert reasons(["7_0", "7_1", "8", "10"]) == {
        "7_0": "Resources",
        "7_1": "it goes on at 2026-11-22 12:28:30",
        "8": "launch_failed_requeued_held: scontrol release 8",
    }
    fake(squeue="exit 1")
    assert reasons(["7_0"]) == {}


def test_a_scheduler_that_does_not_answer_is_not_waited_for(fake, monkeypatch) -> None:
    monkeypatch.setattr(slurm, "_TIMEOUT_S", 0.2)
    fake(squeue="sleep 100")
    assert scheduled(["7_0"]) is None
