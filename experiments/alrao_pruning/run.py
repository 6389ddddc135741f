"""Train a network with Alrao, then prune each of its layers alone by learning rate (W 2.6.4, Alg. 2, fig. 2.4).

    python experiments/alrao_pruning/run.py [FILE.yaml] [--results DIR]

Writes to ``results``: ``training.csv`` (by epoch), ``networks.csv`` (what was pruned, and how good it is),
``rates.csv`` (the rate of each unit) and ``pruning.csv`` (one row for each interval of each layer and filling).
Accuracies are shares.
"""

import copy
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from analysis.experiment import keep, parser
from hpc.config import yamls
from hpc.config.data import ImageFiles
from hpc.data import DataSet, Feed, Part, load
from hpc.seeding import seed_for
from structlearn import alrao, models

HERE = Path(__file__).parent
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
BATCH = 250  # images that are evaluated at once


def padded(data: DataSet, width: int) -> DataSet:
    """The same images with a border of zeros: VGG takes no smaller ones than 32 x 32."""
    parts = {
        name: Part(pad(part.inputs, (width,) * 4), part.targets)
        for name, part in (("train", data.train), ("valid", data.valid), ("test", data.test))
    }
    return replace(data, **parts, input_shape=tuple(parts["train"].inputs.shape[1:]))


@dataclass
class Trained:
    """A network after the epoch with the best validation accuracy."""

    net: alrao.Alrao
    rates: dict[str, Tensor]
    lost: int
    initial: dict[str, Tensor]
    epochs: list[dict[str, Any]]
    """One row for each epoch; those after the best one, too."""


def train(plan: dict[str, Any], data: DataSet, feed: Feed, seed: int) -> Trained:
    """Train for a fixed number of epochs; keep the best."""
    torch.manual_seed(seed_for(seed, "init"))
    model = models.build(**plan["model"], input_shape=data.input_shape, outputs=len(data.labels)).to(DEVICE)
    initial = copy.deepcopy(model.state_dict())
    net = alrao.Alrao(model, heads=plan["heads"])
    low, high = plan["interval"]
    optimizer = alrao.SGD(net, lr_min=low, lr_max=high, seed=seed)
    rows: list[dict[str, Any]] = []
    best = None
    for epoch in range(plan["epochs"]):
        net.train()
        losses, start = [], time.perf_counter()
        for x, y in feed.epoch(epoch):
            loss = net.loss(net(x), y)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.detach())
        seconds = time.perf_counter() - start
        row = {"seed": seed, "epoch": epoch + 1, "loss": float(torch.stack(losses).mean()), "seconds": seconds}
        row["validation"] = accuracy(net.eval(), feed.evaluation("valid"))
        if best is None or row["validation"] > max(before["validation"] for before in rows):
            rates = {name: each.clone() for name, each in optimizer.rates.items()}
            best = Trained(copy.deepcopy(net), rates, int(optimizer.lost), initial, rows)
        rows.append(row)
        print(row, flush=True)
    assert best is not None
    return best


@torch.no_grad()
def accuracy(net: nn.Module, batches: Iterator[tuple[Tensor, Tensor]]) -> float:
    """The share of images whose likeliest class is the right one."""
    right, count = 0, 0
    for x, y in batches:
        right += int((net(x).argmax(1) == y).sum())
        count += len(y)
    return right / count


@torch.no_grad()
def prune(
    plan: dict[str, Any], plain: nn.Module, trained: Trained, images: Tensor, y: Tensor, seed: int
) -> Iterator[dict[str, Any]]:
    """One row for each interval. What lies before a layer is computed once, for it stays as it is."""
    batches, targets = images.split(BATCH), y.split(BATCH)
    place = 0
    for number, block in enumerate(plain.features):
        if next(block.parameters(), None) is not None:
            place += 1
            layer = f"features.{number}.0"
            rest = nn.Sequential(*plain.features[number:], plain.head)

            def evaluate(rest: nn.Module = rest, batches: tuple[Tensor, ...] = batches) -> float:
                return accuracy(rest, zip(batches, targets, strict=True))

            for filling in plan["fillings"]:
                found = alrao.narrow(
                    plain,
                    trained.rates,
                    layer,
                    evaluate,
                    filling=filling,
                    initial=trained.initial,
                    interval=tuple(plan["interval"]),
                    seed=seed,
                )
                facts = {"seed": seed, "place": place, "layer": layer, "of": found[0].units, "filling": filling}
                yield from ({**facts, "step": step, **kept._asdict()} for step, kept in enumerate(found))
                print(layer, filling, [round(kept.performance, 3) for kept in found], flush=True)
        batches = tuple(block(batch) for batch in batches)


def main() -> None:
    arguments = parser(__doc__, HERE).parse_args()
    arguments.results.mkdir(parents=True, exist_ok=True)  # a folder that cannot be made is told now, not in an hour
    plan = yamls.load(arguments.file)
    frames: dict[str, list[dict[str, Any]]] = {"training": [], "networks": [], "rates": [], "pruning": []}
    for seed in plan["seeds"]:
        config = ImageFiles(**plan["data"])
        data = padded(load(config, seed), plan["pad"])
        feed = Feed(data, config, DEVICE, seed=seed, rank=0, world_size=1)
        trained = train(plan, data, feed, seed)
        frames["training"] += trained.epochs
        plain = trained.net.best().eval()
        x, y = (torch.cat(parts)[: plan["images"]] for parts in zip(*feed.evaluation("valid"), strict=True))
        facts = {"seed": seed, "images": len(x), "lost": trained.lost}
        for name, batches in (("pruned_on", [(x, y)]), ("validation", feed.evaluation("valid"))):
            facts[name] = accuracy(plain, iter(batches))
        facts["test"] = accuracy(plain, feed.evaluation("test"))
        facts["test_mixture"] = accuracy(trained.net, feed.evaluation("test"))
        frames["networks"].append(facts)
        print(facts, flush=True)
        for name, rates in trained.rates.items():
            layer = name.removeprefix("model.")
            values = enumerate(rates.tolist())
            frames["rates"] += [{"seed": seed, "layer": layer, "unit": unit, "rate": rate} for unit, rate in values]
        frames["pruning"] += prune(plan, plain, trained, x, y, seed)
    keep({name: pd.DataFrame(rows) for name, rows in frames.items()}, arguments.results)


if __name__ == "__main__":
    main()
