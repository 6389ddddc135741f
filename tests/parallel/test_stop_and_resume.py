"""A run that was stopped, killed or broken goes on as if nothing had happened, and leaves nobody behind."""

import importlib.util
import json
import shutil
import threading
import time
from pathlib import Path

import psutil
import pytest

SUPPORT = Path(__file__).parent.parent / "support"
_spec = importlib.util.spec_from_file_location("identical", SUPPORT / "identical.py")
assert _spec is not None
assert _spec.loader is not None
identical = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(identical)

COMMON = (
    *("--data.name", "digits", "--model.name", "troubled:build", "--epochs", "3"),
    *("--data.augment.pad", "1", "--checkpoint.every_steps", "15", "--record.every_steps", "5"),
)
SCALP = (  # units are sorted and cut after each epoch
    *("--pruning.name", "scalp", "--pruning.threshold", "0.05", "--pruning.strength", "0.01"),
    *("--optimizer.lr", "1.0", "--optimizer.momentum", "0.5"),
)
REGULARISED = (  # all that carries something from step to step, or draws numbers
    *("--penalties", "[{name: group_lasso}]", "--regularizers"),
    "[{name: shade}, {name: reve, refresh: 7}, {name: dropconnect, rate: 0.1}, {name: variational, samples: 2}]",
)
EXCHANGES = {  # and what is trained under them
    "none": ("--exchange.name", "none"),
    "sync": ("--exchange.name", "sync"),
    "persyn": ("--exchange.name", "persyn", "--exchange.tau", "7", "--exchange.momentum", "mix"),
    "sync, Alrao": ("--exchange.name", "sync", "--optimizer.name", "alrao", "--optimizer.posterior_every", "5"),
    "persyn, Alrao": (
        "--exchange.name",
        "persyn",
        "--exchange.tau",
        "7",
        "--exchange.momentum",
        "mix",
        "--optimizer.name",
        "alrao",
        "--optimizer.momentum",
        "0.9",
        "--optimizer.rates",
        "per_rank",
        "--optimizer.drop_heads_after",
        "1",
    ),
    "persyn, penalties": (
        "--exchange.name",
        "persyn",
        "--exchange.tau",
        "7",
        "--penalties",
        "[{name: l1, proximal: true}, {name: l2}]",
    ),
    "sync, ScaLP": ("--exchange.name", "sync", *SCALP),
    "persyn, ScaLP": ("--exchange.name", "persyn", "--exchange.tau", "7", "--exchange.momentum", "mix", *SCALP),
    "sync, ScaLP, regularised": ("--exchange.name", "sync", *SCALP, *REGULARISED),
    "persyn, ScaLP, regularised": ("--exchange.name", "persyn", "--exchange.tau", "7", *SCALP, *REGULARISED),
    "easgd, ScaLP": ("--exchange.name", "easgd", "--exchange.tau", "3", "--exchange.mode", "sync", *SCALP),
}


@pytest.fixture(autouse=True)
def model(tmp_path):
    shutil.copy(SUPPORT / "troubled.py", tmp_path)


def alive(run_dir):
    """Processes whose command line names the folder: the ranks, mpiexec and its helpers."""
    return [
        process for process in psutil.process_iter(["cmdline", "status"])
        if str(run_dir) in " ".join(process.info["cmdline"] or ()) and process.info["status"] != psutil.STATUS_ZOMBIE
    ]  # fmt: skip


def assert_nobody_left(run_dir):
    until = time.monotonic() + 5
    while alive(run_dir) and time.monotonic() < until:
        time.sleep(0.05)
    assert not alive(run_dir)


@pytest.mark.parallel
@pytest.mark.parametrize("trouble", ["kill", "term"])
@pytest.mark.parametrize(
    ("exchange", "number"),
    [("none", 1), ("none", 2), ("sync, ScaLP", 1), *((name, 2) for name in EXCHANGES if name != "none")],
)
def test_an_interrupted_run_ends_bit_identical(exchange, number, trouble, train, tmp_path):
    options = (*COMMON, *EXCHANGES[exchange], "--ranks", str(number))
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert train(*options, "--run_dir", str(whole)).returncode == 0

    first = train(*options, "--run_dir", str(broken), env={"TROUBLE": f"{trouble} {number - 1} 27"})
    killed_alone = trouble == "kill" and number == 1
    assert first.returncode == (-9 if killed_alone else 75), first.stderr
    assert_nobody_left(broken)
    assert json.loads((broken / "status.json").read_text())["state"] == ("running" if killed_alone else "stopped")

    second = train(*options, "--run_dir", str(broken))
    assert second.returncode == 0, second.stderr
    assert "resumed at epoch" in second.stdout
    assert identical.differences(whole, broken) == []


@pytest.mark.parallel
def test_an_exception_in_one_rank_ends_all_with_its_message(train, tmp_path):
    run_dir = tmp_path / "run"
    done = train(*COMMON, "--ranks", "3", "--run_dir", str(run_dir), env={"TROUBLE": "raise 1 5"})
    assert done.returncode == 1
    assert "structlearn: rank 1: ValueError: the model has had enough" in done.stderr
    assert "Traceback" not in done.stderr
    assert "the model has had enough" in (run_dir / "logs" / "rank-0001.err").read_text()
    status = json.loads((run_dir / "status.json").read_text())
    assert status["state"] == "failed"
    assert "rank 1" in status["error"]
    assert_nobody_left(run_dir)


@pytest.mark.parallel
@pytest.mark.parametrize(("trouble", "code"), [("sleep 1 5", 1), ("freeze 1 20", 75)])
def test_a_rank_that_does_not_answer_is_named_and_nothing_hangs(trouble, code, train, tmp_path):
    """Before the first checkpoint there is nothing to resume from (1); after it there is (75)."""
    run_dir = tmp_path / "run"
    options = (*COMMON, "--compute.deadline_s", "15", "--ranks", "2", "--run_dir", str(run_dir))
    done = train(*options, env={"TROUBLE": trouble})
    assert done.returncode == code, done.stderr
    assert "rank 0: waited 15 s for another rank in: average gradients" in done.stderr
    assert "rank 1 (" in done.stderr  # its last sign of life
    assert_nobody_left(run_dir)


@pytest.mark.parallel
def test_another_number_of_ranks_goes_on_and_changes_nothing_of_a_run_that_is_done(train, tmp_path):
    run_dir = tmp_path / "run"
    options = (*COMMON, "--run_dir", str(run_dir))
    assert train(*options, "--ranks", "2", env={"TROUBLE": "term 1 27"}).returncode == 75
    other = train(*options, "--json")
    assert other.returncode == 0, other.stderr
    assert "from a checkpoint of 2 rank(s)" in other.stderr
    before = identical.datasets(run_dir / "record.h5")
    again = train(*options, "--json", "--ranks", "2")
    assert again.returncode == 0, again.stderr
    assert "was done (epochs)" in again.stderr
    summary = json.loads(again.stdout.splitlines()[-1])
    assert summary == json.loads(other.stdout.splitlines()[-1])
    status = json.loads((run_dir / "status.json").read_text())
    assert status["state"] == "done"
    assert summary["world_size"] == status["world_size"] == 1
    assert identical.datasets(run_dir / "record.h5") == before


@pytest.mark.parallel
def test_a_finished_run_is_not_trained_again(train, tmp_path):
    options = (*COMMON, "--run_dir", str(tmp_path / "run"), "--json")
    first, second = train(*options), train(*options)
    assert json.loads(first.stdout.splitlines()[-1]) == json.loads(second.stdout.splitlines()[-1])
    assert "was done" in second.stderr


@pytest.mark.parallel
def test_a_stop_while_the_ranks_start_can_be_resumed(train, tmp_path):
    """mpiexec is there, the ranks are importing: they end at once, and the run starts again."""
    run_dir = tmp_path / "run"
    options = (*COMMON, "--ranks", "2", "--run_dir", str(run_dir))

    def stop_early():
        until = time.monotonic() + 30
        while time.monotonic() < until:
            lines = {process: " ".join(process.info["cmdline"] or ()) for process in alive(run_dir)}
            started = [line for line in lines.values() if "-m hpc.rank" in line and "mpiexec" not in line]
            if started:
                next(process for process, line in lines.items() if "-m jobs train" in line).terminate()
                return
            time.sleep(0.01)

    stopper = threading.Thread(target=stop_early)
    stopper.start()
    first = train(*options)
    stopper.join()
    assert first.returncode == 75, first.stderr
    assert "stopped while the ranks were starting" in first.stderr
    assert_nobody_left(run_dir)
    assert train(*options).returncode == 0
