"""The test job: what its ranks say, what is made of that, and what is left behind."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hpc.errors import ConfigError, RunError
from jobs import slurm, trial
from jobs.controller import last_line
from jobs.machine import Finding
from jobs.partitions import QUESTION
from jobs.probe import Answer
from jobs.resources import Resources
from jobs.trial import OUTCOME, OUTPUT, Trial, needs
from jobs.trial import trial as make
from jobs.verdict import refused, verdict, without_ranks

TWO = Resources(ranks=2, nodes=2)
GPUS = replace(TWO, gpus_per_rank=1)


def ok(out: str) -> Answer:
    return Answer(ok=True, out=out, problem="")


def rank(number: int, **changes: Any) -> str:
    """What a rank that works prints."""
    words = {
        "task": str(number), "rank": number, "size": 2, "node": f"n{number + 1}", "library": "MPICH Version: 5.0.2",
        "cores": 4, "sum": 2.0, "torch": "2.9", "cuda": None, "devices": [],
    }  # fmt: skip
    return json.dumps({key: value for key, value in (words | changes).items() if value != "-"}) + "\n"


def device(number: int, identity: str, visible: str = "0") -> str:
    return rank(number, cuda=visible, devices=[["H100", identity]])


# --- what is made of it --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("output", "needs", "what", "status", "words", "remedy"),
    [
        (rank(1) + rank(0), TWO, "ranks", "ok", "pmi2: rank 0 on n1, rank 1 on n2; MPICH Version: 5.0.2; 4", ""),
        (rank(0) + rank(1, node="n1"), TWO, "nodes", "warn", "all ranks are on one", "sbatch"),
        (rank(0) + rank(1), TWO, "torch", "ok", "torch 2.9", ""),
        (rank(0, size=1) + rank(1, rank=0, size=1), TWO, "ranks", "fail", "alone (world size 1)", "cray_shasta"),
        (
            rank(0, size=1, library="Open MPI v5") + rank(1, size=1, library="Open MPI v5"),
            TWO, "ranks", "fail", "pmi2, and each finds itself alone", "set resources.mpi: pmix",
        ),
        (rank(0) + "srun: error: n2: task 1: Killed", TWO, "ranks", "fail", "srun: error: n2: task 1: Killed", "see"),
        (rank(0, sum="-") + rank(1, sum="-", torch="-"), TWO, "ranks", "fail", "no message comes", "FI_PROVIDER"),
        (rank(0) + rank(1, torch="-", problem="OSError: libx"), TWO, "torch", "fail", "OSError: libx", "see"),
        (
            "python: can't open: [Errno 2] No such file or directory\nsrun: error: n1: task 0: Exited",
            TWO, "ranks", "fail", "do not come up under --mpi=pmi2: python: can't open", "disk that all nodes share",
        ),
        ("srun: error: Invalid MPI type 'pmi2'", TWO, "ranks", "fail", "Invalid MPI type", "srun --mpi=list"),
        ("RuntimeError: cannot load MPI library", TWO, "ranks", "fail", "cannot load", "module load"),
        ("", TWO, "ranks", "fail", "srun ended with code 7", "see what they have printed"),
        (device(0, "a") + device(1, "b"), GPUS, "gpus", "ok", "rank 1: 1 device(s) (H100), CUDA_VISIBLE_DEVICES 0", ""),
        (device(0, "a") + device(1, "b"), TWO, "gpus", "ok", "rank 0: 1 device(s)", ""),
        (rank(0) + rank(1), GPUS, "gpus", "fail", "0 device(s), CUDA_VISIBLE_DEVICES not set", "gpus-per-node"),
        (device(0, "a") + rank(1, node="n1", devices=[["H", "a"]]), GPUS, "gpus", "fail", "share", "bind"),
        (rank(0, devices=[["H", "a"], ["H", "b"]]) + device(1, "a"), GPUS, "gpus", "warn", "more than the 1", "Cons"),
    ],
)  # fmt: skip
def test_the_verdict(output: str, needs: Resources, what: str, status: str, words: str, remedy: str) -> None:
    found = {each.what: each for each in verdict(output, 7, "pmi2", needs)}
    assert found[what].status == status
    assert words in found[what].finding
    assert remedy in found[what].remedy
    assert bool(remedy) == bool(found[what].remedy)


def test_without_gpus_not_a_word_of_them() -> None:
    assert [each.what for each in verdict(rank(0) + rank(1), 0, "pmi2", TWO)] == ["ranks", "torch"]


@pytest.mark.parametrize(
    ("said", "remedy"),
    [
        (
            "sbatch: error: Batch job submission failed: Invalid account or account/partition combination",
            "resources.account",
        ),
        ("sbatch: error: Batch job submission failed: Invalid partition name specified", "resources.partition"),
        ("sbatch: error: Batch job submission failed: Invalid qos specification", "resources.qos"),
        ("sbatch: error: Batch job submission failed: Requested node configuration is not available", "less of it"),
        ("sbatch: error: Batch job submission failed: Invalid feature specification", "less of it"),
        ("sbatch: error: Invalid generic resource (gres) specification", "gpus-per-node"),
        ("sbatch: error: Batch job submission failed: Invalid wckey specification", "wckey: NAME"),
        ("sbatch: error: no tuesdays", "staff"),
    ],
)
def test_what_sbatch_refuses(said: str, remedy: str) -> None:
    assert remedy in refused(said).remedy


@pytest.mark.parametrize(
    ("state", "reason", "said", "words", "remedy"),
    [
        ("PENDING", "Priority", None, "has not started in time: Priority; cancelled", "--wait MINUTES"),
        ("PENDING", "QOSMaxJobsPerUserLimit", None, "QOSMaxJobsPerUserLimit", "limit of your account or QOS"),
        ("PENDING", "launch_failed_requeued_held", None, "held", "scontrol release"),
        ("RUNNING", "None", None, "did not end in time", "--wait MINUTES"),
        ("FAILED", "NonZeroExitCode", "bash: module: command not found\n", "command not found", "module load"),
        ("FAILED", "NonZeroExitCode", "", "without a word", "resources.setup"),
        ("", "", None, "left nothing (it is gone): does its node see", "disk that all nodes share"),
    ],
)
def test_no_outcome(state: str, reason: str, said: str | None, words: str, remedy: str) -> None:
    found = without_ranks("7", state, reason, said, Path("/home/me/.f"))
    assert words in found.finding
    assert remedy in found.remedy


def test_a_ranks_own_words_come_before_those_of_slurm() -> None:
    said = '{"task": "0"}\nImportError: so\nsrun: error: n1: task 0: Exited with exit code 1\n'
    assert last_line(said) == "ImportError: so"
    assert last_line(said.replace("ImportError: so\n", "")).endswith("exit code 1")
    assert last_line("") == ""


# --- what it asks for ----------------------------------------------------------------------------------


@pytest.fixture
def three_partitions(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = "a*|up|1:00|1-infinite|0/4/0/4|2|4000|OFF|(null)\nb|up|1:00|1|0/9/0/9|2|4000|OFF|(null)\n"
    monkeypatch.setattr("jobs.probe.ask", lambda line, _: ok(lines) if line == QUESTION else ok(""))


@pytest.mark.usefixtures("three_partitions")
@pytest.mark.parametrize(
    ("options", "nodes"),
    [
        ([], 2),
        (["--resources.partition", "b"], 1),
        (["--resources.partition", "a,b"], 1),
        (["--resources.partition", "unknown"], 1),
        (["--resources.nodes", "1"], 1),
        (["--resources.nodes", "8", "--resources.ranks", "16"], 2),
    ],
)
def test_two_nodes_where_there_are_two(options: list[str], nodes: int) -> None:
    assert (needs(None, options).nodes, needs(None, options).ranks) == (nodes, 2)


@pytest.mark.usefixtures("three_partitions")
def test_what_the_runs_of_a_sweep_need(tmp_path: Path) -> None:
    text = (
        "run_dir: x\ndata: {name: not-here}\nresources: {ranks: 8, nodes: 4, timeout_min: 600, account: me, mem_gb: 9}"
    )
    (tmp_path / "s.yaml").write_text(text)
    found = needs(tmp_path / "s.yaml", ["--resources.qos=short"])
    assert (found.ranks, found.nodes, found.timeout_min) == (2, 2, trial.MINUTES)
    assert (found.account, found.mem_gb, found.qos) == ("me", 9, "short")


@pytest.mark.parametrize(
    ("options", "words"),
    [(["--epochs", "3"], "--epochs"), (["--resources.rank", "3"], "rank"), (["--resources.ranks", "x"], "ranks")],
)
def test_mistakes_are_told_before_anything_starts(options: list[str], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        needs(None, options)


# --- the job, and what is left behind ------------------------------------------------------------------

Scheduler = Callable[..., list[tuple[str, ...]]]


@pytest.fixture
def scheduler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Scheduler:
    """A SLURM that has the job, 7, in this state until it is cancelled; `does` is done in its place at once."""

    def start(state: str, does: Callable[[Path], None] = lambda _: None) -> list[tuple[str, ...]]:
        asked: list[tuple[str, ...]] = []

        def ask(line: tuple[str, ...], _limit: float) -> Answer:
            asked.append(tuple(line))
            gone = ("scancel", "7") in asked
            return ok("" if line[0] != "squeue" else "CANCELLED|None|\n" if gone else f"{state}\n")

        def submit_one(call: Trial, _resources: Resources, logs: Path, _name: str) -> str:
            assert logs == call.folder
            does(logs)
            return "7"

        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr("jobs.probe.ask", ask)
        monkeypatch.setattr(slurm, "check_there", lambda _: None)
        monkeypatch.setattr(slurm, "submit_one", submit_one)
        monkeypatch.setattr(trial, "plugin", lambda: "pmi2")
        monkeypatch.setattr(trial, "PAUSE_S", 0.01)
        monkeypatch.setattr(trial, "SETTLE_S", 0.05)
        return asked

    return start


def writes(output: str, code: int = 0) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / OUTPUT).write_text(output)
        now = time.time()
        (folder / OUTCOME).write_text(json.dumps({"began": now + 3, "ended": now + 5, "code": code}))

    return write


def kinds(found: list[Finding]) -> list[tuple[str, str]]:
    return [(each.what, each.status) for each in found]


def test_a_job_that_works_leaves_nothing(scheduler: Scheduler, tmp_path: Path) -> None:
    asked = scheduler("COMPLETED|None|n[1-2]", writes(rank(0) + rank(1)))
    found = make(TWO, 10)
    assert kinds(found) == [("test job", "ok"), ("ranks", "ok"), ("torch", "ok")]
    assert found[0].finding == "job 7: 3 s in the queue, 2 s of work"
    assert ("scancel", "7") not in asked
    assert list(tmp_path.iterdir()) == []


def test_what_a_job_that_fails_has_printed_is_kept(scheduler: Scheduler, tmp_path: Path) -> None:
    scheduler("COMPLETED|None|n[1-2]", writes("boom", 1))
    found = make(TWO, 10)
    assert kinds(found) == [("test job", "ok"), ("ranks", "fail"), ("files", "warn")]
    (folder,) = tmp_path.iterdir()
    assert str(folder / OUTPUT) in found[-1].finding


@pytest.mark.parametrize("state", ["PENDING|Priority|", "RUNNING|None|n1"])
def test_a_job_that_takes_too_long_is_cancelled(state: str, scheduler: Scheduler, tmp_path: Path, capsys: Any) -> None:
    asked = scheduler(state)
    (found,) = make(TWO, 0.05)
    assert found.status == "fail"
    assert "in time" in found.finding
    assert asked.count(("scancel", "7")) == 1
    assert list(tmp_path.iterdir()) == []
    assert "structlearn: cancelling job 7" in capsys.readouterr().err


@pytest.mark.parametrize("answer", ["FAILED|RaisedSignal|n1", ""])
def test_a_job_that_ends_without_a_word_is_not_waited_for(answer: str, scheduler: Scheduler, tmp_path: Path) -> None:
    scheduler(answer)
    (found,) = make(TWO, 600)
    assert "left nothing" in found.finding
    assert list(tmp_path.iterdir()) == []


def test_a_scheduler_that_does_not_answer_for_a_while_is_asked_again(scheduler: Scheduler, monkeypatch: Any) -> None:
    scheduler("")
    folders: list[Path] = []
    monkeypatch.setattr(slurm, "submit_one", lambda call, *_: folders.append(call.folder) or "7")
    answers = iter([Answer(ok=False, out="", problem="no answer within 10 s"), ok("???"), ok("RUNNING|None|n1")])

    def ask(*_: object) -> Answer:
        answer = next(answers, None)
        if answer is None:
            writes(rank(0) + rank(1))(folders[0])
        return answer or ok("COMPLETED|None|n1")

    monkeypatch.setattr("jobs.probe.ask", ask)
    assert kinds(make(TWO, 60))[1] == ("ranks", "ok")


def test_what_slurm_refuses_leaves_nothing(scheduler: Scheduler, tmp_path: Path, monkeypatch: Any) -> None:
    asked = scheduler("")

    def no(*_: object) -> str:
        raise RunError("SLURM did not take the jobs: sbatch: error: Invalid account")

    monkeypatch.setattr(slurm, "submit_one", no)
    (found,) = make(TWO, 10)
    assert (found.status, "resources.account" in found.remedy) == ("fail", True)
    assert (list(tmp_path.iterdir()), asked) == ([], [])


def test_without_slurm_it_is_said(monkeypatch: Any, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert kinds(make(TWO, 10)) == [("test job", "fail")]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_cancels_the_job_and_removes_its_files(number: int, scheduler: Scheduler, tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGHUP)
    asked = scheduler("PENDING|Priority|", lambda _: signal.setitimer(signal.ITIMER_REAL, 0.3) and None)
    handler = signal.signal(signal.SIGALRM, lambda *_: os.kill(os.getpid(), number))
    try:
        with pytest.raises(KeyboardInterrupt):
            make(TWO, 600)
    finally:
        signal.signal(signal.SIGALRM, handler)
    assert ("scancel", "7") in asked
    assert list(tmp_path.iterdir()) == []
    assert signal.getsignal(signal.SIGHUP) == before


SRUN = """#!/bin/sh
gpus=0
while true; do
    case "$1" in
    --gpus-per-task=*) gpus=1; shift ;;
    --*) shift ;;
    *) break ;;
    esac
done
for i in 0 1; do
    [ $gpus = 0 ] || export CUDA_VISIBLE_DEVICES=$i
    SLURMD_NODENAME=n$i SLURM_PROCID=$i "$@" || exit $?
done
"""
MPI = """
import os
IN_PLACE = None
def Get_library_version(): return "MPICH Version: 9\\nmore\\0"
class COMM_WORLD:
    rank, size = int(os.environ["SLURM_PROCID"]), 2
    Allreduce = staticmethod(lambda _, values: values.__imul__(2))
    Barrier = staticmethod(lambda: None)
"""
TORCH = """
import os
__version__ = "9.9"
class cuda:
    device_count = staticmethod(lambda: len(os.environ["CUDA_VISIBLE_DEVICES"].split(",")))
    class get_device_properties:
        name = "H900"
        def __init__(self, number): self.uuid = "GPU-" + os.environ["CUDA_VISIBLE_DEVICES"].split(",")[number]
"""


def test_the_ranks_say_which_devices_they_see(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "srun").write_text(SRUN)
    (tmp_path / "bin" / "srun").chmod(0o755)
    for name, text in (("mpi4py/MPI.py", MPI), ("mpi4py/__init__.py", ""), ("torch/__init__.py", TORCH)):
        (tmp_path / "lib" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "lib" / name).write_text(text)
    program = f"""
from pathlib import Path
from jobs.resources import Resources
from jobs.trial import Trial
Trial(Path({str(tmp_path)!r}), Resources(ranks=2, nodes=2, gpus_per_rank=1), "pmi2")()
"""
    path = os.pathsep.join([str(tmp_path / "lib"), str(Path(__file__).parents[3])])
    env = os.environ | {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "PYTHONPATH": path}
    done = subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, timeout=600, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    outcome = json.loads((tmp_path / OUTCOME).read_text())
    found = {each.what: each for each in verdict((tmp_path / OUTPUT).read_text(), outcome["code"], "pmi2", GPUS)}
    assert outcome["code"] == 0
    assert "rank 0 on n0, rank 1 on n1; MPICH Version: 9" in found["ranks"].finding
    assert found["torch"].finding == "torch 9.9"
    assert found["gpus"].status == "ok"
    assert found["gpus"].finding == (
        "rank 0: 1 device(s) (H900), CUDA_VISIBLE_DEVICES 0; rank 1: 1 device(s) (H900), CUDA_VISIBLE_DEVICES 1"
    )
