"""Train networks of many widths, with a scaling at one rate and without at each of a grid (W fig. 3.3).

    python experiments/scala_rates/run.py [FILE.yaml] [--seeds N]

One row a run goes to ``results/runs.csv`` as soon as the run is done; a run that is there is not made again. Runs go
seed by seed: what is broken off leaves whole seeds behind. All in this process, on one thread.
"""

import math
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch
from pydantic import TypeAdapter
from torch import nn
from torch.nn.functional import cross_entropy

from analysis.experiment import parser
from analysis.rows import Rows
from hpc import data
from hpc.config import yamls
from hpc.config.data import DataConfig
from hpc.data import DataSet, Feed
from hpc.seeding import seed_for
from structlearn import models
from structlearn.scala import adopt, unscaled

HERE = Path(__file__).parent


class Side(NamedTuple):
    """What a run is, as in the columns of these names."""

    seed: str
    activation: str
    units: str
    scaling: str
    """"none" without."""
    rate: str


COLUMNS = [*Side._fields, "state", "epochs", "best_epoch", "valid_accuracy", "train_loss", "valid_accuracies"]


def sides(plan: dict[str, Any], seed: int) -> list[Side]:
    """All runs of a seed."""
    found = []
    for activation in plan["activations"]:
        for units in plan["units"]:
            more = plan["search"]["rates"] if units == plan["search"]["units"] else []
            chosen = [(scaling, rate) for scaling in plan["scalings"] for rate in (plan["rate"], *more)]
            chosen += [("none", rate) for rate in plan["plain_rates"]]
            found += [Side(str(seed), activation, str(units), scaling, f"{rate:g}") for scaling, rate in chosen]
    return found


def build(side: Side, dataset: DataSet) -> nn.Module:
    """A network with one hidden layer: scaled, or what the uniformly scaled one stands for, with plain layers."""
    torch.manual_seed(seed_for(int(side.seed), "init"))
    widths = [int(side.units), dataset.outputs]
    network = models.build("mlp", dataset.input_shape, dataset.outputs, widths=widths, activation=side.activation)
    if side.scaling == "none":
        return unscaled(adopt(network, scaling="uniform"))
    return adopt(network, scaling=side.scaling)


@torch.no_grad()
def accuracy(network: nn.Module, feed: Feed) -> float:
    """On the validation set."""
    right, count = 0, 0
    for x, y in feed.evaluation("valid"):
        right += int((network(x).argmax(1) == y).sum())
        count += len(y)
    return right / count


def train(plan: dict[str, Any], side: Side, dataset: DataSet, feed: Feed) -> dict[str, Any]:
    """One run: its best validation accuracy, and the epoch that it was reached in."""
    network = build(side, dataset)
    optimizer = torch.optim.SGD(network.parameters(), lr=float(side.rate))
    curve: list[float] = []
    mean = math.nan
    for epoch in range(plan["epochs"]):
        losses = []
        for x, y in feed.epoch(epoch):
            loss = cross_entropy(network(x), y)
            losses.append(loss.item())
            if not math.isfinite(losses[-1]):
                break
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        mean = sum(losses) / len(losses)
        if not math.isfinite(mean):
            break
        curve.append(accuracy(network, feed))
        if len(curve) - 1 - curve.index(max(curve)) >= plan["patience"]:
            break
    best = max(curve, default=math.nan)
    return {
        "state": "done" if math.isfinite(mean) else "not finite",
        "epochs": len(curve),
        "best_epoch": curve.index(best) + 1 if curve else 0,
        "valid_accuracy": f"{best:.6g}",
        "train_loss": f"{mean:.6g}",
        "valid_accuracies": " ".join(f"{each:.4g}" for each in curve),
    }


def main() -> None:
    options = parser(__doc__, HERE)
    options.add_argument("--seeds", type=int, help="fewer than the file says")
    arguments = options.parse_args()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)  # weights that hardly move make numbers that take ten times as long
    plan = yamls.load(arguments.file)
    rows = Rows(arguments.results / "runs.csv", COLUMNS, key=Side._fields)
    config: Any = TypeAdapter(DataConfig).validate_python(plan["data"])
    for seed in range(arguments.seeds or plan["seeds"]):
        dataset = data.load(config, seed)
        feed = Feed(dataset, config, torch.device("cpu"), seed=seed, rank=0, world_size=1)
        for side in sides(plan, seed):
            if rows.has(*side):
                continue
            start = time.perf_counter()
            row = side._asdict() | train(plan, side, dataset, feed)
            rows.append(row)
            print(
                f"{' '.join(side)}: {row['state']}, {row['valid_accuracy']} at {row['best_epoch']} of {row['epochs']}, "
                f"{time.perf_counter() - start:.1f} s",
                flush=True,
            )


if __name__ == "__main__":
    main()
