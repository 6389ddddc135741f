"""What a job does with its runs: start them again, leave the hopeless, stop when it is told to."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from typing import TYPE_CHECKING

import pytest

from hpc.config.folder import held, read_status
from jobs import controller as module
from jobs.attempts import ATTEMPTS, CANCELLED, Attempt, history, hopeless, mark, note
from jobs.controller import Controller
from jobs.origin import code_version

if TYPE_CHECKING:
    from pathlib import Path

# Ranks that end as their run's folder says, line by line: one line for each start.
RANKS = """
import json, os, pathlib, signal, sys, time
here = pathlib.Path(sys.argv[1])
lines = (here / "script").read_text().splitlines()
word, *rest = (lines[0] if lines else "done").split()
(here / "script").write_text("\\n".join(lines[1:]))
started = here / "started"
started.write_text(str(int(started.read_text() or 0) + 1 if started.exists() else 1))
def say(**status):
    (here / "status.json").write_text(json.dumps({"heartbeat": time.time(), **status}))
def checkpoint(name):
    folder = here / "checkpoints" / name
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text("{}")
if word == "done":
    say(state="done")
elif word == "fail":
    say(state="failed", error=" ".join(rest), exit_code=1)
    sys.exit(1)
elif word == "usage":
    say(state="failed", error="a bad key", exit_code=2)
    sys.exit(2)
elif word == "killed":
    os.kill(os.getpid(), signal.SIGKILL)
elif word == "unheard":
    os.kill(os.getpid(), signal.SIGUSR2)
elif word == "further":
    checkpoint(rest[0])
    say(state="stopped", error="a rank is gone", exit_code=75)
    sys.exit(75)
elif word == "hangs":  # as srun, which waits for a node that was lost
    checkpoint("step-000000003-epoch-00001")
    say(state="stopped", error="rank 1 does not answer", exit_code=75)
    signal.signal(signal.SIGTERM, signal.SIG_IGN if rest else signal.SIG_DFL)
    time.sleep(1000)
elif word == "orphaned":
    import socket, subprocess
    rank = subprocess.Popen(["sleep", "1"])
    say(state="running", host=socket.gethostname(), pid=rank.pid)
    rank.wait()
    time.sleep(1000)
elif word == "says":
    print("srun: error: something\\n", " ".join(rest), os.getpid())
    print("srun: error: task 0 exited", flush=True)
    sys.exit(1)
elif word == "silent":
    time.sleep(1000)
elif word == "mute":  # as srun, after a rank that MPI's start has ended on this node; others were on one that is lost
    import subprocess
    (here / "hpc").mkdir()
    (here / "hpc" / "rank.py").write_text("import time; time.sleep(1)")
    subprocess.run([sys.executable, "-m", "hpc.rank", str(here)], cwd=here, env={})
    time.sleep(1000)
elif word == "elsewhere":
    import socket
    say(state="running", host=socket.gethostname(), pid=2**22 + 1)
    time.sleep(1)
    say(state="done")
elif word == "until":
    asked = []
    signal.signal(signal.SIGUSR1, lambda *_: asked.append(1))
    say(state="running")
    while not asked:
        time.sleep(0.01)
    checkpoint("step-000000007-epoch-00001")
    say(state="stopped", ended_by="signal")
    sys.exit(75)
"""


@pytest.fixture(autouse=True)
def _hurry(monkeypatch) -> None:
    monkeypatch.setattr(module, "PAUSE_S", 0.01)


@pytest.fixture
def run_of(tmp_path):
    def make(*script: str, name: str = "run") -> Path:
        folder = tmp_path / name
        folder.mkdir()
        (folder / "script").write_text("\n".join(script))
        return folder

    return make


def command(run_dir: Path) -> list[str]:
    return [sys.executable, "-c", RANKS, str(run_dir)]


def made(*folders: Path) -> int:
    return Controller(folders, command, "12_3")()


def starts(folder: Path) -> int:
    return int((folder / "started").read_text()) if (folder / "started").exists() else 0


def test_a_run_that_is_done_is_not_started_again(run_of) -> None:
    folder = run_of("done")
    assert made(folder) == 0
    assert made(folder) == 0
    assert starts(folder) == 1
    (only,) = history(folder)
    assert (only.job, only.code, only.how, only.reason) == ("12_3", 0, "done", "")
    assert only.began <= only.ended <= time.time()


def test_what_may_have_been_chance_is_started_again(run_of) -> None:
    folder = run_of("fail the disk is full", "killed", "done")
    assert made(folder) == 0
    assert [each.how for each in history(folder)] == ["failed", "failed", "done"]


@pytest.mark.parametrize(
    ("word", "reason"),
    [
        ("fail the loss is nan", "the loss is nan"),
        ("killed", "code 137"),
        ("says libmpi is missing", "libmpi is missing"),
    ],
)
def test_three_failures_alike_are_the_end(run_of, word, reason) -> None:
    folder = run_of(*[word] * 9)
    assert made(folder) == 1
    assert starts(folder) == 3
    assert all(reason in each.reason for each in history(folder))
    assert reason in read_status(folder)["error"]
    assert made(folder) == 1  # nor is it started again by another job
    assert starts(folder) == 3


def test_a_run_that_gets_further_each_time_may_fail_often(run_of) -> None:
    places = [f"step-{step:09d}-epoch-00001" for step in range(1, 6)]
    folder = run_of(*[f"further {place}" for place in places], "done")
    assert made(folder) == 0
    assert [each.place for each in history(folder)] == [*places, places[-1]]


def test_a_mistake_in_the_configuration_is_not_tried_again(run_of) -> None:
    folder = run_of("usage", "done")
    assert made(folder) == 1
    assert starts(folder) == 1


def test_other_runs_are_made_whatever_becomes_of_one(run_of) -> None:
    bad, good = run_of("usage", name="bad"), run_of("done", name="good")
    assert made(bad, good) == 1
    assert read_status(good)["state"] == "done"


@pytest.mark.parametrize("number", [signal.SIGUSR2, signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_stops_the_run_and_leaves_the_others_for_later(run_of, number) -> None:
    first, second = run_of("until", "done", name="first"), run_of("done", name="second")

    def tell() -> None:
        while read_status(first).get("state") != "running":
            time.sleep(0.01)
        os.kill(os.getpid(), number)

    thread = threading.Thread(target=tell)
    thread.start()
    assert made(first, second) == 75
    thread.join()
    assert (starts(first), starts(second)) == (1, 0)
    assert [(each.how, each.place) for each in history(first)] == [("stopped", "step-000000007-epoch-00001")]
    assert made(first, second) == 0
    assert (starts(first), starts(second)) == (2, 1)


def test_a_stop_before_the_ranks_listen_is_a_stop(run_of) -> None:
    """SLURM's --signal goes to the ranks of a step, also to those that are still loading Python."""
    folder = run_of("unheard", "done")
    assert made(folder) == 75
    assert [(each.code, each.how) for each in history(folder)] == [(140, "stopped")]
    assert read_status(folder)["state"] == "stopped"
    assert made(folder) == 0


def test_stops_do_not_count_as_failures(run_of) -> None:
    folder = run_of("done")
    for _ in range(5):
        note(folder, Attempt("1", 0.0, 1.0, 75, "stopped"))
    assert made(folder) == 0


def test_a_history_that_was_broken_off_is_read(run_of) -> None:
    folder = run_of()
    one = Attempt("1", 0.0, 1.0, 1, "failed", "why", "step-000000001-epoch-00001")
    note(folder, one)
    with (folder / ATTEMPTS).open("a") as file:
        file.write(json.dumps({"job": "2"})[:-3] + "\n[1]\n")
    note(folder, one)
    assert history(folder) == [one, one]
    with (folder / ATTEMPTS).open("a") as file:
        file.write('{"job": "3", "be')  # cut off: the next line is a line of its own
    assert not hopeless(history(folder))
    note(folder, one)
    assert hopeless(history(folder))


@pytest.mark.parametrize("how", ["", " deaf"])
def test_a_command_that_outlives_its_ranks_is_ended_and_the_job_goes_back(run_of, monkeypatch, how) -> None:
    monkeypatch.setattr(module, "LINGER_S", 0.2)
    monkeypatch.setattr(module, "LOOK_S", 0.1)
    monkeypatch.setattr(module, "POLITE_S", 0.3)
    folder = run_of(f"hangs{how}", "done")
    assert Controller([folder], command, "12_3", sound=lambda: False)() == 75
    (only,) = history(folder)
    assert (only.how, only.reason, only.place) == ("failed", "rank 1 does not answer", "step-000000003-epoch-00001")
    assert made(folder) == 0


def test_a_command_whose_rank_0_is_gone_without_a_word_is_ended(run_of, monkeypatch) -> None:
    monkeypatch.setattr(module, "LINGER_S", 0.2)
    monkeypatch.setattr(module, "LOOK_S", 0.1)
    folder = run_of("orphaned", "done")
    assert made(folder) == 0
    assert [each.how for each in history(folder)] == ["failed", "done"]


def test_a_command_whose_ranks_ended_before_their_first_sign_of_life_is_ended(run_of, monkeypatch) -> None:
    monkeypatch.setattr(module, "LINGER_S", 0.2)
    monkeypatch.setattr(module, "LOOK_S", 0.1)
    folder = run_of("mute", "done")
    assert made(folder) == 0
    assert [each.how for each in history(folder)] == ["failed", "done"]


def test_ranks_that_never_come_are_not_waited_for(run_of, monkeypatch) -> None:
    for name, seconds in {"LINGER_S": 0.2, "LOOK_S": 0.1, "SILENT_S": 0.5}.items():
        monkeypatch.setattr(module, name, seconds)
    folder = run_of("silent", "done")
    assert made(folder) == 0
    assert [each.how for each in history(folder)] == ["failed", "done"]


def test_ranks_in_another_container_are_let_be(run_of, monkeypatch) -> None:
    monkeypatch.setattr(module, "LINGER_S", 0.0)
    monkeypatch.setattr(module, "LOOK_S", 0.01)
    folder = run_of("elsewhere", "done")
    assert made(folder) == 0
    assert starts(folder) == 1


def test_a_run_that_is_cancelled_stops_and_the_others_are_made(run_of) -> None:
    first, second, third = run_of("until", name="1"), run_of("done", name="2"), run_of("done", name="3")
    mark(third, CANCELLED)

    def tell() -> None:
        while read_status(first).get("state") != "running":
            time.sleep(0.01)
        mark(first, CANCELLED)

    thread = threading.Thread(target=tell)
    thread.start()
    assert made(first, second, third) == 0
    thread.join()
    assert [each.how for each in history(first)] == ["cancelled", "stopped"]
    assert (starts(first), starts(second), starts(third)) == (1, 1, 0)


def test_a_run_that_another_job_was_made_for_is_left_alone(run_of) -> None:
    mine, others = run_of("done", name="mine"), run_of("done", name="others")
    assert Controller([others, mine], command, "12_3", mine=lambda run_dir: run_dir == mine)() == 0
    assert (starts(mine), starts(others)) == (1, 0)


def test_a_start_is_noted_with_the_code_that_made_it(run_of) -> None:
    folder = run_of("done")
    made(folder)
    assert history(folder)[0].code_version == code_version()


def test_no_run_is_started_when_the_jobs_time_is_nearly_over(run_of) -> None:
    folder = run_of("done")
    assert Controller([folder], command, "12_3", seconds=0.0)() == 75
    assert starts(folder) == 0


def test_a_run_that_somebody_else_makes_is_left_for_later(run_of, monkeypatch) -> None:
    monkeypatch.setattr(module, "LETTING_GO_S", 0.3)
    folder = run_of("done")
    with held(folder) as mine:
        assert mine
        assert made(folder) == 75
    assert (starts(folder), history(folder)) == (0, [])
    assert made(folder) == 0
    assert starts(folder) == 1
