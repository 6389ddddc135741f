"""Ranks that prune: one structure on all of them after every cut, whatever the strategy, and the mass whole.

mpiexec -n 3 python test_pruning.py NAME RUN_DIR
"""

import json
import sys
from pathlib import Path

import pytest

FILE = Path(__file__)
ROOT = FILE.parents[2]
EXCHANGES = {
    "sync": {"name": "sync"},
    "persyn": {"name": "persyn", "tau": 7, "momentum": "mix"},
    "gossip": {"name": "gossip", "rho": 0.5},
    "gossip of slices": {"name": "gossip", "rho": 0.5, "slices": 2, "momentum": "mix", "payload": "int8"},
    "easgd in step": {"name": "easgd", "tau": 3, "mode": "sync"},
    "easgd": {"name": "easgd", "tau": 3},
    "easgd, a master by itself": {"name": "easgd", "tau": 3, "master": "own"},
    "downpour": {"name": "downpour", "tau": 3},
    "downpour, a master by itself": {"name": "downpour", "tau": 3, "master": "own"},
}
SGD = {"name": "sgd", "lr": 0.1, "momentum": 0.5}
METHODS = {
    "scalp": {"pruning": {"name": "scalp", "threshold": 0.1, "strength": 0.01}, "optimizer": SGD},
    "shrinknets": {"pruning": {"name": "shrinknets", "rule": "threshold", "threshold": 0.1, "strength": 0.01}},
    "norm, absorbed": {
        "pruning": {"name": "norm", "threshold": 1.3, "absorb": True},
        "optimizer": {"name": "alrao", "lr_max": 0.1, "rates": "per_rank"},
    },
}
LIVES = [
    *((name, 3 if "by itself" in name else 2, "scalp") for name in EXCHANGES if name != "gossip of slices"),
    *((name, 4, "scalp") for name in ("sync", "persyn", "gossip", "gossip of slices")),
    *((name, 3, "shrinknets") for name in ("persyn", "gossip", "easgd")),
    *((name, 2, "norm, absorbed") for name in ("gossip of slices", "easgd in step", "downpour")),
]


def live(name, method, run_dir):
    """Train, and say what each rank's structure was after every cut, and what its network then was.

    After each cut all units change places, which must not change the function that the ranks stand for.
    """
    import torch

    from hpc.comm import connect
    from hpc.config.folder import freeze
    from hpc.config.read import validate
    from hpc.engine import Engine
    from hpc.progress import Silent
    from hpc.pruning import Decision
    from hpc.run import assemble
    from hpc.signals import StopRequest
    from structlearn.structure import Plan

    comm = connect(60.0)
    config = validate(
        {
            "run_dir": run_dir, "epochs": 4, "data": {"name": "digits", "batch_size": 8},
            "model": {"name": "mlp", "widths": [32, 16]}, "exchange": EXCHANGES[name], **METHODS[method],
        }
    )  # fmt: skip
    if comm.rank == 0:
        freeze(config)
    comm.barrier("make the folder")
    engine = Engine(assemble(config, comm, StopRequest(), print))
    pruning, seen = engine.parts.pruning, []
    follow = pruning.follow

    inputs = engine.parts.feed.some()

    def stood_for(exchange):
        with exchange.consensus(), torch.no_grad():
            return engine.parts.model(inputs)

    def noted(decision, exchange, optimizer):
        follow(decision, exchange, optimizer)
        structure = pruning._pruner.structure
        before = stood_for(exchange)
        places = Plan({name: tuple(reversed(range(width))) for name, width in structure.widths.items()})
        follow(Decision(places), exchange, optimizer)
        torch.testing.assert_close(stood_for(exchange), before, rtol=1e-4, atol=1e-4)
        shapes = [list(parameter.shape) for parameter in engine.parts.model.parameters()]
        averages = [
            list(value.shape)
            for parameter in engine.parts.model.parameters()
            for value in optimizer.state.get(parameter, {}).values()
            if hasattr(value, "shape") and value.dim()
        ]
        assert all(shape in shapes for shape in averages)
        seen.append([structure.plan.digest, structure.widths, shapes, decision.as_dict(), engine.place.epoch + 1])

    pruning.follow = noted
    assert engine.run(Silent()) == "done"
    everyone = comm.gather([seen, engine.parts.exchange.counters.mass], "tell")
    if comm.rank == 0:
        print(json.dumps({"everyone": everyone, "epochs": engine.record["epochs"].columns}), flush=True)


@pytest.mark.parallel
@pytest.mark.slow
@pytest.mark.parametrize(("name", "size", "method"), LIVES, ids=str)
def test_every_rank_holds_one_structure_after_every_cut_and_the_mass_is_whole(name, size, method, ranks, tmp_path):
    done = ranks(size, str(FILE), name, method, str(tmp_path / "run"), env={"PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, done.stderr
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("{")]
    told = json.loads(line)
    structures, masses = zip(*told["everyone"], strict=True)
    assert len(structures) == size
    assert all(seen == structures[0] for seen in structures)
    cuts = structures[0]
    assert len(cuts) >= 1
    assert sum(cuts[-1][1].values()) < 48
    assert sum(masses) == pytest.approx(1.0, abs=1e-12)
    test_loss, first = told["epochs"]["test_loss"], cuts[0][4]  # an epoch's loss is of the network just cut
    assert min(test_loss[first:]) < test_loss[first - 1], "no epoch after the first cut has made the network better"


if __name__ == "__main__":
    live(*sys.argv[1:])
