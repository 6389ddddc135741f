"""A run goes on with another number of ranks: from the one network that they stood for, in the same epoch.

mpiexec -n 4 python test_resize.py NAME RUN_DIR STEPS
"""

import json
import sys
from pathlib import Path

import h5py
import pytest
import torch

from hpc import tensorfile

FILE = Path(__file__)
ROOT = FILE.parents[2]
EPOCHS = 5
EXCHANGES = {
    "none": {"name": "none"},
    "sync": {"name": "sync"},
    "persyn": {"name": "persyn", "tau": 7, "momentum": "mix"},
    "gossip": {"name": "gossip", "rho": 0.5, "slices": 2},
    "easgd in step": {"name": "easgd", "tau": 3, "mode": "sync"},
    "easgd": {"name": "easgd", "tau": 3},
    "downpour": {"name": "downpour", "tau": 3},
    "easgd, a master by itself": {"name": "easgd", "tau": 3, "master": "own"},
    "gossip of Alrao": {"name": "gossip", "rho": 0.5, "slices": 2},
    "persyn, pruned": {"name": "persyn", "tau": 7, "momentum": "mix"},
    "gossip, pruned": {"name": "gossip", "rho": 0.5, "slices": 2},
    "downpour by itself, pruned": {"name": "downpour", "tau": 3, "master": "own"},
}
IN_STEP = {"none", "sync", "persyn", "easgd in step", "persyn, pruned"}
SGD = {"name": "sgd", "lr": 0.01, "momentum": 0.5}
PRUNING = {"name": "norm", "threshold": 0.6, "strength": 0.0, "patience": 2}
ALRAO = {"name": "alrao", "lr_max": 0.1, "momentum": 0.5, "rates": "per_rank"}


class Impatient:
    """Somebody who asks a rank to stop after so many of its steps; 0: nobody."""

    def __init__(self, steps):
        self.steps, self.made = steps, 0

    @property
    def requested(self):
        self.made += 1
        return 0 < self.steps <= self.made


def newest(run_dir):
    """(the name, the shared state, the state of each rank) of the last checkpoint, by the documented names."""
    manifest = max((run_dir / "checkpoints").glob("step-*/manifest.json"))
    files = json.loads(manifest.read_text())["manifest"]["files"]
    states = {name: tensorfile.read(manifest.with_name(name), files[name]) for name in sorted(files)}
    return manifest.parent.name, states.pop("shared.h5"), list(states.values())


def stood_for(name, shared, states):
    """The network of a checkpoint, by hand: parameters, then float buffers, in one row."""
    networks = [{**own.get("network", shared.get("network"))["parameters"], **own["buffers"]} for own in states]
    networks = [{key: value.double() for key, value in own.items() if value.is_floating_point()} for own in networks]
    rows = torch.stack([torch.cat([value.flatten() for value in own.values()]) for own in networks])
    exchange = [own["exchange"] for own in states]
    if "centre" in exchange[0]:
        centre = exchange[0]["centre"]
        row = torch.cat([value.flatten() for value in centre]) if isinstance(centre, list) else centre
    elif name.startswith("gossip"):  # two slices
        masses = torch.tensor([own["masses"] for own in exchange], dtype=torch.float64)
        first, second = (masses / masses.sum(0)).T
        half = rows.shape[1] // 2
        if "pruned" in name:  # there they end where tensors end
            half = sum(value.numel() for value in list(networks[0].values())[: exchange[0]["ends"][0]])
        row = torch.cat([first @ rows[:, :half], second @ rows[:, half:]])
    else:
        row = rows[0] if name == "none" else rows.mean(0)
    parts = row.split([value.numel() for value in networks[0].values()])
    return {key: part.view(networks[0][key].shape) for key, part in zip(networks[0], parts, strict=True)}


def live(name, run_dir, steps):
    """Train from what is there to the end, or until a rank has made so many steps (not 0); say where it began."""
    from hpc.comm import connect
    from hpc.config.folder import freeze
    from hpc.config.read import validate
    from hpc.engine import Engine
    from hpc.progress import Silent
    from hpc.run import assemble

    comm = connect(60.0)
    config = validate(
        {
            "run_dir": str(run_dir), "epochs": EPOCHS, "data": {"name": "digits", "batch_size": 4},
            "model": {"name": "troubled:build"},
            "optimizer": ALRAO if "Alrao" in name else SGD, "exchange": EXCHANGES[name],
            **({"pruning": PRUNING} if "pruned" in name else {}),
        }
    )  # fmt: skip
    if comm.rank == 0:
        freeze(config)
    comm.barrier("make the folder")
    engine = Engine(assemble(config, comm, Impatient(steps if comm.rank == comm.size - 1 else 0), print))
    loaded = engine.parts.checkpoints.load()
    if loaded is not None:
        _, shared, states = newest(run_dir)
        engine.restore(loaded)
        network = {key: value for key, value in engine.parts.model.state_dict().items() if value.is_floating_point()}
        expected = stood_for(name, shared, states)
        assert network.keys() == expected.keys()
        for key, value in expected.items():
            torch.testing.assert_close(network[key], value.to(network[key].dtype), rtol=2e-7, atol=1e-12)
    began = comm.gather(engine.taken, "tell")
    each = engine.parts.feed.steps_per_epoch
    place = {"taken": began, "epoch": engine.place.epoch, "step": engine.place.step, "steps_per_epoch": each}
    state = engine.run(Silent())
    if comm.rank == 0:
        print(json.dumps({**place, "state": state}), flush=True)


@pytest.mark.parallel
@pytest.mark.slow
@pytest.mark.parametrize("name", EXCHANGES)
def test_a_run_goes_on_with_fewer_ranks_and_then_with_more(name, ranks, tmp_path):
    run_dir, before = tmp_path / "run", None
    for size, stop, resized in ((4, 100, 0), (2, 60, 1), (3, 0, 2)):
        path = f"{ROOT}:{ROOT / 'tests' / 'support'}"
        done = ranks(size, str(FILE), name, str(run_dir), str(stop), env={"PYTHONPATH": path})
        assert done.returncode == 0, done.stderr
        (line,) = [line for line in done.stdout.splitlines() if line.startswith("{")]
        told = json.loads(line)
        assert told["state"] == ("stopped" if stop else "done")
        if before is not None:
            workers = size - ("by itself" in name)
            whole, made = workers * told["steps_per_epoch"], sum(own["taken"] for own in before[2])
            within = made - told["epoch"] * before[1]["epoch_steps"]
            total = told["epoch"] * whole + within * whole // before[1]["epoch_steps"]
            assert told["epoch"] == before[1]["place"]["epoch"]
            assert told["step"] == total // workers
            if name in IN_STEP:
                assert told["taken"] == [told["step"]] * size
                assert 0 <= told["step"] - told["epoch"] * told["steps_per_epoch"] < told["steps_per_epoch"]
            else:
                assert sum(told["taken"]) == total
        before = newest(run_dir)
        assert (before[1]["answer"] is None) == bool(stop)
        assert before[0].startswith(f"step-r{resized:05d}-" if resized else "step-0")
    assert before[0].endswith(f"-epoch-{EPOCHS:05d}")
    _, shared, states = before
    assert shared["answer"].keys() == {*(shared | states[0])["network"]["parameters"], *states[0]["buffers"]}
    if "pruned" in name:
        assert 1 < len(shared["answer"]["layers.1.weight"]) < 32
    for key, value in stood_for(name, shared, states).items():
        torch.testing.assert_close(shared["answer"][key], value.to(shared["answer"][key].dtype), rtol=1e-5, atol=1e-6)
    with h5py.File(run_dir / "record.h5") as file:
        assert list(file["epochs/epoch"][()]) == list(range(1, EPOCHS + 1))
        assert list(file["resized/ranks_before"][()]) == [4, 2]
        assert list(file["resized/ranks"][()]) == [2, 3]
        assert list(file["exchange/rank"][()]) == [0, 1, 2]
        assert file.attrs["world_size"] == 3


if __name__ == "__main__":
    live(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
