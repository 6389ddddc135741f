"""Gossip over MPI: nothing is lost in a sample of the chaos experiment, nor when a whole run is stopped or killed.

As a program, on as many ranks as wrote it: what a run holds once its last checkpoint is loaded.

mpiexec -n 2 python test_gossip.py RUN_DIR
"""

import json
import shutil
import sys
import zlib
from collections import Counter
from pathlib import Path

import psutil
import pytest
import torch

from hpc import tensorfile
from hpc.exchange import mass

ROOT = Path(__file__).parents[2]
CHAOS = ROOT / "experiments" / "gossip_chaos"
FIRST = 1_000_000  # a seed that the experiment does not reach
SAMPLE = 20
COMMON = (
    *("--data.name", "digits", "--model.name", "troubled:build", "--epochs", "6", "--ranks", "2"),
    *("--data.augment.pad", "1", "--checkpoint.every_steps", "10", "--record.every_steps", "5"),
    *("--exchange.name", "gossip", "--exchange.rho", "0.5", "--exchange.consensus_every", "5"),
)


@pytest.fixture(autouse=True)
def model(tmp_path):
    shutil.copy(ROOT / "tests" / "support" / "troubled.py", tmp_path)


@pytest.mark.parallel
@pytest.mark.slow
def test_a_sample_of_the_chaos_experiment(ranks):
    """Its worlds look at themselves: masses, counts, means, states; one that is wrong ends all with code 1.

    The gate runs this in four lanes (`make lanes`).
    """
    done = ranks(8, str(CHAOS / "body.py"), str(CHAOS / "small.yaml"), str(FIRST), str(SAMPLE), timeout=1000)
    assert done.returncode == 0, done.stderr[-3000:]
    rows = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert sorted(row["seed"] for row in rows) == list(range(FIRST, FIRST + SAMPLE))
    assert sum(row["sent"] for row in rows) == sum(row["received"] for row in rows) > 100
    for key in ("ranks", "payload", "peers", "progress", "momentum", "slices"):  # a sample of everything
        assert len(Counter(row[key] for row in rows)) >= 2, key
    assert min(sum(row[key] for row in rows) for key in ("pauses_save", "pauses_epoch", "pauses_stop", "restarts")) > 0


def digest(parameters):
    flat = {name: value.contiguous().view(-1).view(torch.uint8) for name, value in parameters.items()}
    return {name: zlib.crc32(value.numpy()) for name, value in flat.items()}


def written(run_dir):
    """The state of each rank in the last checkpoint."""
    folder = max((run_dir / "checkpoints").glob("step-*/manifest.json")).parent
    files = json.loads((folder / "manifest.json").read_text())["manifest"]["files"]
    return [tensorfile.read(folder / name, files[name]) for name in sorted(files) if name.startswith("rank")]


def assert_whole(states):
    assert sum(units for own in states for units in own["exchange"]["masses"]) == mass.UNITS * len(states)
    counters = [own["exchange"]["counters"] for own in states]
    assert sum(own["sent"] for own in counters) == sum(own["received"] for own in counters)
    assert sum(own["mass"] for own in counters) == 1.0


def assert_nobody_left(run_dir):
    lines = (" ".join(process.info["cmdline"] or ()) for process in psutil.process_iter(["cmdline"]))
    assert not [line for line in lines if str(run_dir) in line]


@pytest.mark.parallel
@pytest.mark.slow
@pytest.mark.parametrize("progress", ["thread", "inline"])
@pytest.mark.parametrize("trouble", ["term", "kill"])
def test_a_run_that_was_stopped_or_killed_goes_on_with_all_that_it_had(trouble, progress, train, ranks, tmp_path):
    run_dir = tmp_path / "run"
    options = (*COMMON, "--exchange.progress", progress, "--run_dir", str(run_dir))
    first = train(*options, env={"TROUBLE": f"{trouble} 1 35"})
    assert first.returncode == 75, first.stderr
    assert_nobody_left(run_dir)
    states = written(run_dir)
    assert_whole(states)
    taken = [own["taken"] for own in states]
    if trouble == "term":
        assert taken[1] >= 35  # where it was asked, or soon after

    loaded = ranks(2, str(Path(__file__)), str(run_dir), env={"PYTHONPATH": f"{ROOT}:{tmp_path}"})
    assert loaded.returncode == 0, loaded.stderr
    found = [json.loads(line) for line in loaded.stdout.splitlines() if line.startswith("{")]
    for rank, own in enumerate(states):
        (mine,) = [each for each in found if each["rank"] == rank]
        assert mine["parameters"] == digest(own["network"]["parameters"])
        assert mine["masses"] == own["exchange"]["masses"]
        assert (mine["taken"], mine["counters"]) == (own["taken"], own["exchange"]["counters"])

    second = train(*options)
    assert second.returncode == 0, second.stderr
    assert "resumed at epoch" in second.stdout
    status = json.loads((run_dir / "status.json").read_text())
    assert (status["state"], status["epoch"]) == ("done", 6)
    ended = written(run_dir)
    assert_whole(ended)
    assert all(own["taken"] > before for own, before in zip(ended, taken, strict=True))
    assert all(
        own["exchange"]["counters"]["sent"] >= before["exchange"]["counters"]["sent"]
        for own, before in zip(ended, states, strict=True)
    )
    assert_nobody_left(run_dir)


def show(run_dir):
    """Print what this rank holds after loading, as one line of JSON."""
    from dataclasses import replace

    from hpc.comm import connect
    from hpc.config.folder import frozen
    from hpc.engine import Engine
    from hpc.run import assemble
    from hpc.signals import StopRequest

    comm = connect(60.0)
    config = frozen(run_dir)
    parts = assemble(replace(config, run_dir=str(run_dir)), comm, StopRequest(), print)
    engine = Engine(parts)
    loaded = parts.checkpoints.load()
    engine.restore(loaded)
    state = parts.exchange.state_dict()
    told = {"rank": comm.rank, "taken": engine.taken, "masses": state["masses"], "counters": state["counters"]}
    told["parameters"] = digest({name: value.detach() for name, value in parts.model.named_parameters()})
    line = json.dumps(told)
    for rank in range(comm.size):  # one line at a time
        comm.barrier("take turns")
        if rank == comm.rank:
            print(line, flush=True)


if __name__ == "__main__":
    show(Path(sys.argv[1]))
