"""Train B's small CNN with MaxMin and with ReLU, at equal numbers of parameters from small to large (B table 3.1).

    python experiments/maxmin/run.py [FILE.yaml] [--results DIR]

One row a run goes to ``results/runs.csv`` as soon as the run is done; a run that is there is not made again. First the
rate is chosen, one for all (as in B), at one size, by the mean validation accuracy of both activations and all seeds.
"""

import math
import multiprocessing
import time
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import cache
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
from structlearn.maxmin import convert

HERE = Path(__file__).parent


class Side(NamedTuple):
    """What a run is, as in the columns of these names."""

    seed: str
    network: str
    """relu; maxmin, with as many parameters; or maxmin-wide, with as many filters."""
    size: str
    """Parameters that are asked for."""
    rate: str


MEASURED = ["parameters", "filters", "train_loss", "valid_accuracy", "test_accuracy"]
COLUMNS = [*Side._fields, *MEASURED]


def build(plan: dict[str, Any], side: Side, dataset: DataSet) -> nn.Module:
    """B's CNN at a size; with MaxMin only the convolutions' filters are fewer. Both start from He's deviation."""
    torch.manual_seed(seed_for(int(side.seed), "init"))
    shape, outputs, options = dataset.input_shape, dataset.outputs, {"hidden": plan["hidden"]}
    channels = models.width_for(
        "cnn", shape, outputs, parameters=int(side.size), vary="channels", channels=plan["channels"], **options
    ).value
    network: nn.Module = models.build("cnn", shape, outputs, channels=channels, **options)
    if side.network == "relu":
        return network
    example = torch.zeros(2, *shape)
    if side.network == "maxmin-wide":
        return convert(network, example, draw=True).model
    hidden = [name for name, layer in network.named_modules() if isinstance(layer, nn.Linear) and name != "head"]
    return convert(network, example, keep="parameters", hold=hidden).model


@cache
def source(config: str, seed: int) -> tuple[DataSet, Any]:
    """A seed's images, once a process; and their configuration."""
    settings: Any = TypeAdapter(DataConfig).validate_json(config)
    return data.load(settings, seed), settings


@torch.no_grad()
def accuracy(network: nn.Module, feed: Feed, part: str) -> float:
    """In evaluation."""
    network.eval()
    right, count = 0, 0
    for x, y in feed.evaluation(part):
        right += int((network(x).argmax(1) == y).sum())
        count += len(y)
    network.train()
    return right / count


def fit(plan: dict[str, Any], side: Side) -> tuple[nn.Module, Feed, float]:
    """A trained network, its images, and the training loss of the last epoch."""
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    device = torch.device(plan["device"])
    dataset, settings = source(plan["config"], int(side.seed))
    feed = Feed(dataset, settings, device, seed=int(side.seed), rank=0, world_size=1)
    network = build(plan, side, dataset).to(device, memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(
        network.parameters(), lr=float(side.rate), momentum=plan["momentum"], weight_decay=plan["weight_decay"]
    )
    mean = math.nan
    for epoch in range(plan["epochs"]):
        if epoch == plan["drop"]:
            for group in optimizer.param_groups:
                group["lr"] /= 10
        losses = []
        for x, y in feed.epoch(epoch):
            loss = cross_entropy(network(x), y)
            losses.append(loss.item())
            loss.backward()
            nn.utils.clip_grad_norm_(network.parameters(), plan["clip"])
            optimizer.step()
            optimizer.zero_grad()
        mean = sum(losses) / len(losses)
        if not math.isfinite(mean):
            break
    return network, feed, mean


def train(plan: dict[str, Any], side: Side) -> dict[str, Any]:
    """One run: the columns of `MEASURED`."""
    network, feed, mean = fit(plan, side)
    filters = [str(layer.out_channels) for layer in network.modules() if isinstance(layer, nn.Conv2d)]
    return {
        "parameters": sum(each.numel() for each in network.parameters()),
        "filters": " ".join(filters),
        "train_loss": f"{mean:.6g}",
        "valid_accuracy": f"{accuracy(network, feed, 'valid'):.6g}",
        "test_accuracy": f"{accuracy(network, feed, 'test'):.6g}",
    }


def work(rows: Rows, plan: dict[str, Any], sides: Iterable[Side], pool: ProcessPoolExecutor) -> None:
    """Those runs that the file does not have."""
    start = time.perf_counter()
    running = {pool.submit(train, plan, side): side for side in sides if not rows.has(*side)}
    for each in as_completed(running):
        side, measured = running[each], each.result()
        rows.append(side._asdict() | measured)
        print(f"{time.perf_counter() - start:6.0f} s: {' '.join(side)}: {measured}", flush=True)


def chosen(rows: Rows, plan: dict[str, Any]) -> str:
    """The rate with the best validation accuracy at the middle size, in the mean over activations and seeds."""
    sums: dict[str, float] = {}
    for row in rows:
        if row["size"] == str(plan["middle"]) and row["network"] in {"relu", "maxmin"}:
            sums[row["rate"]] = sums.get(row["rate"], 0.0) + float(row["valid_accuracy"])
    return max(sums, key=lambda rate: sums[rate])


def read(path: Path) -> dict[str, Any]:
    """What a file asks for; the data's section as text, too, which can be a key."""
    plan: dict[str, Any] = yamls.load(path)
    config: Any = TypeAdapter(DataConfig)
    plan["config"] = config.dump_json(config.validate_python(plan["data"])).decode()
    return plan


def main() -> None:
    arguments = parser(__doc__, HERE).parse_args()
    plan = read(arguments.file)
    rows = Rows(arguments.results / "runs.csv", COLUMNS, key=Side._fields)
    seeds, middle, networks = range(plan["seeds"]), str(plan["middle"]), ("relu", "maxmin")
    with ProcessPoolExecutor(plan["processes"], multiprocessing.get_context("spawn")) as pool:
        rates = [f"{rate:g}" for rate in plan["rates"]]
        search = [Side(str(seed), network, middle, rate) for seed in seeds for network in networks for rate in rates]
        work(rows, plan, search, pool)
        best = chosen(rows, plan)
        largest = max(plan["parameters"])
        sides = [
            Side(str(seed), network, str(size), best)
            for size in sorted(plan["parameters"])
            for seed in seeds
            for network in networks
        ]
        sides += [Side(str(seed), "maxmin-wide", middle, best) for seed in seeds]
        sides += [
            Side(str(seed), network, str(size), f"{rate:g}") for network, size, rate in plan["more"] for seed in seeds
        ]
        # The longest last, so that all else is there early.
        work(rows, plan, sorted(sides, key=lambda side: side.size == str(largest)), pool)


if __name__ == "__main__":
    main()
