"""Strategies with a centre among ranks of MPI: nothing is lost, nothing hangs, and the answer is the centre.

mpiexec -n 3 python test_master.py SEED NAME MASTER PROGRESS
"""

import importlib.util
import json
import math
import shutil
import sys
import zlib
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from hpc.comm import connect
from hpc.config.training import Downpour as DownpourConfig
from hpc.config.training import Easgd, workers
from hpc.exchange import easgd
from hpc.exchange.agenda import Agenda
from hpc.exchange.downpour import Downpour

FILE = Path(__file__)
SUPPORT = FILE.parent.parent / "support"


def _load(name):
    spec = importlib.util.spec_from_file_location(name, SUPPORT / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


masters = _load("masters")
identical = _load("identical")


def chaos(seed, name, master, progress):
    """Random speeds, pauses, sizes; all that workers did is in the centre and in the workers, once."""
    chance = np.random.default_rng(seed)
    comm = connect(30.0)
    tau, width = int(chance.integers(1, 6)), int(chance.choice([2, 1000, 200_000]))
    agenda_of = (int(chance.integers(20, 60)), int(chance.integers(3, 30)))
    slow = chance.uniform(0, 0.006, size=comm.size)[comm.rank]
    model = torch.nn.Sequential(torch.nn.Linear(width, 4), torch.nn.BatchNorm1d(4))
    start = torch.Generator().manual_seed(100 * seed + comm.rank)
    with torch.no_grad():
        for value in model.parameters():
            value.copy_(torch.randn(value.shape, generator=start))
    config = (Easgd if name == "easgd" else DownpourConfig)(tau=tau, master=master, progress=progress)
    agenda = Agenda(*agenda_of, workers(config, comm.size))
    make = easgd.build if name == "easgd" else Downpour
    strategy = make(comm, model, config, agenda, seed=0, deadline_s=300.0)

    def together():
        """Of easgd, weights and centre; of downpour, the centre and what has not been sent yet."""
        own = torch.from_numpy(masters.weights(model)) * strategy.trains
        if name == "downpour" and strategy.trains:
            own -= torch.from_numpy(bases[-1])
        if comm.rank == 0:
            own += strategy._centre[: len(own)].double() if strategy._centre is not None else masters.weights(model)
        comm.sum_(own, "add up")
        return own

    bases = [masters.weights(model)]
    before = together()
    ended = masters.train(strategy, model, epochs=2, scale=0.125, slow=slow)
    steps = comm.gather(ended.steps, "count")
    bases.append(strategy._bottom.double().numpy() if name == "downpour" and strategy.trains else bases[0])
    done = sum(
        0.125 * masters.update(rank, step, len(before))
        for rank, last in enumerate(steps)
        for step in range(1, last + 1)
    )
    error = float((together() - before - done).abs().max()) / max(1.0, float(np.abs(done).max()))
    assert error < 1e-5, error
    counters = comm.gather([strategy.counters.sent, strategy.counters.received, strategy.counters.mass], "count")
    sent, received, mass = (sum(column) for column in zip(*counters, strict=True))
    assert sent == received > 0
    assert mass == 1.0
    with strategy.consensus():
        digests = comm.gather(zlib.crc32(masters.numbers(model).tobytes()), "compare")
    assert len(set(digests)) == 1
    comm.barrier("end")
    print("passed", flush=True)


@pytest.mark.parallel
@pytest.mark.parametrize("progress", ["thread", "inline"])
@pytest.mark.parametrize("master", ["beside", "own"])
@pytest.mark.parametrize("name", ["easgd", "downpour"])
def test_nothing_is_lost_whatever_happens_when(name, master, progress, ranks):
    seed = zlib.crc32(f"{name} {master} {progress}".encode())
    done = ranks(3, str(FILE), str(seed), name, master, progress)
    assert done.stdout.count("passed") == 3, done.stderr


COMMON = (
    *("--data.name", "digits", "--model.name", "troubled:build", "--epochs", "3"),
    *("--checkpoint.every_steps", "15", "--record.every_steps", "5"),
)
SYNC = ("--exchange.name", "easgd", "--exchange.mode", "sync", "--exchange.tau", "4")
ASYNC = {
    "easgd": ("--exchange.name", "easgd", "--exchange.tau", "4"),
    "downpour": ("--exchange.name", "downpour", "--exchange.tau", "4", "--optimizer.momentum", "0.0"),
}


@pytest.fixture(autouse=True)
def model(tmp_path):
    shutil.copy(SUPPORT / "troubled.py", tmp_path)


@pytest.mark.parallel
@pytest.mark.slow
@pytest.mark.parametrize("trouble", ["kill", "term"])
def test_an_interrupted_synchronous_run_ends_bit_identical(trouble, train, tmp_path):
    options = (*COMMON, *SYNC, "--ranks", "2")
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert train(*options, "--run_dir", str(whole)).returncode == 0
    first = train(*options, "--run_dir", str(broken), env={"TROUBLE": f"{trouble} 1 27"})
    assert first.returncode == 75, first.stderr
    second = train(*options, "--run_dir", str(broken))
    assert second.returncode == 0, second.stderr
    assert "resumed at epoch" in second.stdout
    assert identical.differences(whole, broken) == []


@pytest.mark.parallel
@pytest.mark.slow
@pytest.mark.parametrize("home", ["beside", "own"])
@pytest.mark.parametrize("trouble", ["kill 1 27", "term 0 27"])
@pytest.mark.parametrize("name", ASYNC)
def test_an_interrupted_run_goes_on_from_its_centre(name, trouble, home, train, tmp_path):
    """Its workers have their own clocks: no two runs are the same, but each makes its steps and knows its place.

    Epochs enough that even a slow rank comes to its trouble, and late enough that there is a checkpoint.
    """
    run_dir = tmp_path / "run"
    options = (*COMMON, *ASYNC[name], "--exchange.master", home, "--ranks", "3", "--run_dir", str(run_dir), "--json")
    options = (*options, "--epochs", "9")
    trouble = trouble.replace("0", "2") if home == "own" else trouble
    first = train(*options, env={"TROUBLE": trouble})
    assert first.returncode == 75, first.stderr
    second = train(*options)
    assert second.returncode == 0, second.stderr
    assert "resumed at epoch" in second.stderr
    summary = json.loads(second.stdout.splitlines()[-1])
    assert summary["state"] == "done"
    assert summary["exchange"]["mass"] == 1.0
    assert summary["exchange"]["sent"] == summary["exchange"]["received"] > 0
    assert math.isfinite(summary["test_loss"])
    with h5py.File(run_dir / "record.h5") as file:
        assert list(file["epochs/epoch"][()]) == list(range(1, 10))
        assert list(file["exchange/mass"][()]) == [1.0, 0.0, 0.0]


if __name__ == "__main__":
    chaos(int(sys.argv[1]), *sys.argv[2:])
