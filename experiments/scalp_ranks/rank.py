"""One rank of a run that prunes; writes down what each rank itself holds after every epoch.

    mpiexec -n 4 python experiments/scalp_ranks/rank.py CONFIG.yaml RANKS.csv

One row for each epoch and rank: the digest of all cuts that this rank has made, composed from the plans that it
applied; the widths that its weights have; its mass; for each hidden layer the mean, over its units, of the sum of
squares of their incoming weights, before the scaling.
"""

import csv
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from hpc.comm import connect
from hpc.config import yamls
from hpc.config.folder import freeze
from hpc.config.read import validate
from hpc.engine import Engine
from hpc.exchange import Exchange
from hpc.progress import Silent
from hpc.pruning import Decision
from hpc.run import assemble
from hpc.signals import StopRequest
from structlearn.structure import Plan

COLUMNS = ("epoch", "rank", "digest", "widths", "mass", "norms")


def layers(model: nn.Module) -> list[torch.Tensor]:
    """The weights of the linear layers, [outputs, inputs], from the first to the last."""
    return [each.weight.detach() for each in model.modules() if isinstance(each, nn.Linear)]


def widths(model: nn.Module) -> str:
    """Units of the hidden layers, read off the weights; what a layer gives must be what the next one takes."""
    shapes = [tuple(weight.shape) for weight in layers(model)]
    assert all(layer[0] == after[1] for layer, after in pairwise(shapes)), shapes
    return "/".join(str(shape[0]) for shape in shapes[:-1])


def norms(model: nn.Module) -> str:
    """Of the hidden layers."""
    return "/".join(f"{weight.square().sum(1).mean().item():.6g}" for weight in layers(model)[:-1])


def watch(engine: Engine) -> list[tuple[Any, ...]]:
    """A list that gets a row of this rank after every epoch."""
    parts = engine.parts
    pruning, cut, follow = parts.pruning, parts.pruning.cut, parts.pruning.follow
    rows: list[tuple[Any, ...]] = []
    made = [Plan()]

    def followed(decision: Decision, exchange: Exchange, optimizer: Optimizer) -> None:
        follow(decision, exchange, optimizer)
        made.append(made[-1].then(decision.plan))

    def noted(epoch: int, exchange: Exchange, optimizer: Optimizer) -> bool:
        changed = cut(epoch, exchange, optimizer)
        mass = repr(exchange.counters.mass)
        rows.append((epoch, parts.comm.rank, made[-1].digest, widths(parts.model), mass, norms(parts.model)))
        return changed

    pruning.follow, pruning.cut = followed, noted  # type: ignore[method-assign]
    return rows


def main() -> None:
    config = validate(yamls.load(Path(sys.argv[1])))
    comm = connect(config.compute.deadline_s)
    if comm.rank == 0:
        freeze(config)
    comm.barrier("make the run folder")
    engine = Engine(assemble(config, comm, StopRequest(), print))
    rows = watch(engine)
    state = engine.run(Silent())
    everyone = comm.gather(rows, "tell what each rank held")
    if comm.rank == 0:
        with Path(sys.argv[2]).open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(COLUMNS)
            writer.writerows(sorted(row for rank in everyone for row in rank))
    comm.leave()
    assert state == "done", state


if __name__ == "__main__":
    main()
