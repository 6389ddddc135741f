"""Train B's small CNN on few images: without regularisation, and with four kinds of it (B 4.4.3, figure 4.2).

    python experiments/small_samples/run.py [FILE.yaml] [--results DIR]

One row a run goes to ``results/runs.csv`` as soon as the run is done; a run that is there is not made again. For each
number of images the strength of each method is chosen first, by the mean validation accuracy of ``choosing_seeds``; the
runs that are compared have other seeds.

All runs of a seed have the same test and validation images, the same start and as many steps, and see the images in
the same order; the images of a smaller number are among those of a larger. What is tested is the network with the best
validation accuracy among ``looks`` in a run, and the last one; runs to choose by are not tested.
"""

import copy
import math
import multiprocessing
import time
import zlib
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from pydantic import TypeAdapter
from torch import nn
from torch.nn.functional import cross_entropy, interpolate

from analysis.experiment import parser
from analysis.rows import Rows
from hpc import data
from hpc.config import yamls
from hpc.config.data import DataConfig
from hpc.data import DataSet, Feed
from hpc.data.dataset import Part
from hpc.seeding import seed_for
from structlearn.models.base import Net, plain_convnet
from structlearn.regularizers import Dropout, Regularizer, Reve, Shade

HERE = Path(__file__).parent


class Run(NamedTuple):
    """What a run is, as in the columns of these names."""

    samples: str
    method: str
    """none, weight_decay, dropout, shade or reve."""
    strength: str
    """Of weight decay the factor that Adam adds; of dropout the rate; of SHADE and REVE the factor in the loss."""
    seed: str


MEASURED = ["steps", "state", "train_loss", "best_step", "valid_accuracy", "test_accuracy", "last_valid_accuracy",
            "last_test_accuracy", "seconds"]  # fmt: skip
COLUMNS = [*Run._fields, *MEASURED]


def choices(plan: dict[str, Any], samples: int) -> Iterator[Run]:
    """The runs among which the strengths of a number of images are chosen."""
    for seed in plan["choosing_seeds"]:
        for method, strengths in plan["methods"].items():
            for strength in strengths:
                yield Run(str(samples), method, f"{strength:g}", str(seed))


def chosen(rows: Iterable[dict[str, str]], plan: dict[str, Any], samples: int) -> dict[str, str]:
    """For each method the strength with the best mean validation accuracy, and of equal ones the least."""
    seeds = {str(seed) for seed in plan["choosing_seeds"]}
    sums: dict[str, dict[str, float]] = {method: {} for method in plan["methods"]}
    for row in rows:
        if row["samples"] == str(samples) and row["seed"] in seeds and row["method"] in sums:
            mine = sums[row["method"]]
            mine[row["strength"]] = mine.get(row["strength"], 0.0) + float(row["valid_accuracy"])
    return {method: max(sorted(mine, key=float), key=mine.__getitem__) for method, mine in sums.items()}


def build(dataset: DataSet, filters: int) -> Net:
    """B's network of 4.4.3.1, which has 64 filters in each layer; weights start as everywhere in the package."""
    (channels, height, width), outputs = dataset.input_shape, dataset.outputs
    kernels = ((channels, 5), (filters, 3), (filters, 3))
    blocks = [(nn.Conv2d(before, filters, size, padding=size // 2), nn.MaxPool2d(2)) for before, size in kernels]
    shape = (channels, height, width)
    return plain_convnet("B 4.4.3.1", shape, outputs, blocks=blocks, hidden=[], activation="relu", dropout=0.0)


def attach(network: Net, dataset: DataSet, run: Run) -> Regularizer | None:
    """The run's regulariser; weight decay is the optimiser's."""
    strength = float(run.strength)
    match run.method:
        case "dropout":
            return Dropout(network, strength, layers=["head"])
        case "shade":
            return Shade(network, torch.zeros(2, *dataset.input_shape), strength=strength)
        case "reve":
            return Reve(network, strength=strength)
    return None


def cluttered(part: Part, seed: int) -> Part:
    """Each image and a smooth texture of its own, by their absolute difference, as digits become MNIST-M (B 4.4.3.1).

    The texture depends on the seed and on the image alone, whatever other images there are.
    """
    made = [np.random.default_rng([seed, zlib.crc32(image)]).random((1, 7, 7)) for image in part.inputs.numpy()]
    coarse = torch.from_numpy(np.stack(made)).float()
    texture = 255 * interpolate(coarse, size=part.inputs.shape[-2:], mode="bilinear")
    return Part((part.inputs - texture).abs().round().to(torch.uint8), part.targets)


@lru_cache(maxsize=2)
def images(config: str, samples: int, seed: int, device: str, *, clutter: bool) -> tuple[DataSet, Feed]:
    """The images of a seed, from -1 to 1 (B), and who feeds them: read once for all runs in a row that share them."""
    settings: Any = TypeAdapter(DataConfig).validate_python({**yamls.parse(config, "data"), "train_size": samples})
    dataset = data.load(settings, seed)
    half = torch.full_like(dataset.mean, 127.5)
    dataset = replace(dataset, mean=half, std=half)
    if clutter:
        train, valid, test = (cluttered(part, seed) for part in (dataset.train, dataset.valid, dataset.test))
        dataset = replace(dataset, train=train, valid=valid, test=test)
    return dataset, Feed(dataset, settings, torch.device(device), seed=seed, rank=0, world_size=1, channels_last=True)


@torch.no_grad()
def accuracy(network: nn.Module, feed: Feed, part: Any) -> float:
    """On the validation or the test set."""
    network.eval()
    right, count = 0, 0
    for x, y in feed.evaluation(part):
        right += int((network(x).argmax(1) == y).sum())
        count += len(y)
    network.train()
    return right / count


def train(plan: dict[str, Any], run: Run, steps: int) -> dict[str, Any]:
    """One run's row."""
    dataset, feed = images(
        yamls.dump(plan["data"]), int(run.samples), int(run.seed), plan["device"], clutter=plan["cluttered"]
    )
    start = time.perf_counter()
    torch.manual_seed(seed_for(int(run.seed), "init"))
    network: Any = build(dataset, plan["filters"])
    regularizer = attach(network, dataset, run)
    network = network.to(plan["device"], memory_format=torch.channels_last)
    decay = float(run.strength) if run.method == "weight_decay" else 0.0
    optimizer = torch.optim.Adam(network.parameters(), lr=plan["rate"], weight_decay=decay, fused=True)
    torch.manual_seed(seed_for(int(run.seed), "forward"))
    best, best_step, kept = accuracy(network, feed, "valid"), 0, copy.deepcopy(network.state_dict())
    every, mean, valid = steps // plan["looks"], math.nan, best
    batches, total = feed.batches(0), torch.zeros((), device=plan["device"])
    for step in range(1, steps + 1):
        x, y = next(batches)
        loss = cross_entropy(network(x), y)
        total += loss.detach()
        if regularizer is not None and (term := regularizer.loss(y)) is not None:
            loss = loss + term
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % every == 0:
            mean, valid = total.item() / every, accuracy(network, feed, "valid")
            total.zero_()
            if not math.isfinite(mean):
                break
            if valid > best:
                best, best_step, kept = valid, step, copy.deepcopy(network.state_dict())
    tested = {}
    if int(run.seed) not in plan["choosing_seeds"]:
        tested["last_test_accuracy"] = f"{accuracy(network, feed, 'test'):.6g}"
        network.load_state_dict(kept)
        tested["test_accuracy"] = f"{accuracy(network, feed, 'test'):.6g}"
    return run._asdict() | {
        "steps": steps,
        "state": "done" if math.isfinite(mean) else "not finite",
        "train_loss": f"{mean:.6g}",
        "best_step": best_step,
        "valid_accuracy": f"{best:.6g}",
        "last_valid_accuracy": f"{valid:.6g}",
        "seconds": f"{time.perf_counter() - start:.1f}",
        **tested,
    }


def prepare() -> None:
    """One thread; numbers that hardly are any count as 0, for they take ten times as long."""
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)


def work(rows: Rows, plan: dict[str, Any], runs: Iterable[Run], steps: int, pool: ProcessPoolExecutor) -> None:
    """Those runs that the file does not have."""
    for done in as_completed([pool.submit(train, plan, run, steps) for run in runs if not rows.has(*run)]):
        row = done.result()
        rows.append(row)
        print(" ".join(str(row.get(name, "-")) for name in COLUMNS), flush=True)


def main() -> None:
    arguments = parser(__doc__, HERE).parse_args()
    plan = yamls.load(arguments.file)
    rows = Rows(arguments.results / "runs.csv", COLUMNS, key=Run._fields)
    context = multiprocessing.get_context("spawn")  # torch's threads do not survive a fork
    with ProcessPoolExecutor(plan["processes"], mp_context=context, initializer=prepare) as pool:
        for samples, steps in plan["sizes"]:
            work(rows, plan, choices(plan, samples), steps, pool)
            best = chosen(rows, plan, samples)
            compared = [
                Run(str(samples), method, strength, str(seed))
                for seed in range(plan["seeds"])
                for method, strength in best.items()
            ]
            work(rows, plan, compared, steps, pool)


if __name__ == "__main__":
    main()
