"""Prune perceptrons [N, N, classes] by several methods, and fine-tune what is left (W 3.5.4, 3.5.5).

    python experiments/prune.py experiments/scalp_widths/small.yaml [--seeds N] [--methods NAME ...]

One row a run goes to the experiment's ``results/runs.csv`` as soon as the run is done; a run that is there is not made
again. Runs go seed by seed: what is broken off leaves whole seeds behind. All in this process, on one thread.

A run has the two phases of :class:`structlearn.pruning.Pruner`, but for what saves time: pruning also ends after
``pruning_epochs``, and fine-tuning has a fixed number of epochs at each learning rate. What is tested is the network of
fine-tuning with the best validation accuracy.
"""

import argparse
import copy
import math
import time
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path
from typing import Any, NamedTuple

import torch
from pydantic import TypeAdapter
from torch import nn
from torch.nn.functional import cross_entropy

from analysis.rows import Rows
from hpc import data
from hpc.config import yamls
from hpc.config.data import DataConfig
from hpc.data import DataSet, Feed
from hpc.seeding import seed_for
from structlearn import models, scala, shrinknets
from structlearn.pruning import BnLasso, Norm, Pruner, ScaLP
from structlearn.structure import Structure

PRUNERS: dict[str, type[Pruner]] = {
    "scalp": ScaLP, "norm": Norm, "bn_lasso": BnLasso, "shrinknets": shrinknets.ShrinkNets,
}  # fmt: skip
OPTIMIZERS: dict[str, Any] = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}


class Run(NamedTuple):
    """What a run is, as in the columns of these names."""

    seed: str
    units: str
    """N."""
    method: str
    strength: str
    rate: str


COLUMNS = [
    *Run._fields,
    "state",
    "pruning_epochs",
    "pruning_ended_by",
    "first",
    "second",
    "pruned_valid_accuracy",
    "valid_accuracy",
    "test_accuracy",
    "seconds",
    "widths",
    "valid_accuracies",
]


def runs(plan: dict[str, Any], seed: int) -> Iterator[Run]:
    """All runs of a seed: the first strength of all methods, then the second, ..."""
    for units in plan["units"]:
        for strengths in zip_longest(*(method["strengths"] for method in plan["methods"].values())):
            for (name, method), strength in zip(plan["methods"].items(), strengths, strict=True):
                for rate in method["rates"] if strength is not None else []:
                    yield Run(str(seed), str(units), name, f"{strength:g}", f"{rate:g}")


def build(method: dict[str, Any], run: Run, dataset: DataSet) -> nn.Module:
    """The network, with the scalings or switches that the method needs."""
    torch.manual_seed(seed_for(int(run.seed), "init"))
    widths = [int(run.units), int(run.units), dataset.outputs]
    network: nn.Module = models.build(
        "mlp", dataset.input_shape, dataset.outputs, widths=widths, batch_norm=method["batch_norm"]
    )
    if method["pruner"] == "shrinknets":
        return shrinknets.adopt(network, torch.zeros(2, *dataset.input_shape))
    return scala.adopt(network, scaling=method["scaling"]) if method.get("scaling") else network


class Training:
    """One network while it is pruned and fine-tuned."""

    def __init__(self, plan: dict[str, Any], run: Run, dataset: DataSet, feed: Feed) -> None:
        method = plan["methods"][run.method]
        self.network, self.feed, self.rate = build(method, run, dataset), feed, float(run.rate)
        self.structure = Structure(self.network, feed.some()[:2])
        self.pruner = PRUNERS[method["pruner"]](
            self.structure, strength=float(run.strength), patience=plan["patience"], **method.get("options", {})
        )  # type: ignore[call-arg]
        self.optimizer = OPTIMIZERS[method.get("optimizer", "sgd")](self.network.parameters(), lr=self.rate, fused=True)
        self.epochs, self.widths, self.accuracies = 0, [self.left], [math.nan]

    @property
    def left(self) -> tuple[int, ...]:
        """Units of the two hidden layers."""
        return tuple(self.structure.widths.values())

    def epoch(self, *, pruning: bool, factor: float = 1.0) -> bool:
        """Train for an epoch, cut if pruning, look at the validation set. Are all losses finite?"""
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate * factor
        self.network.train()
        total = torch.zeros(())
        for x, y in self.feed.epoch(self.epochs):
            loss = cross_entropy(self.network(x), y)
            self.optimizer.zero_grad()
            loss.backward()
            if pruning:
                self.pruner.regularise()
            self.optimizer.step()
            if pruning:
                self.pruner.after_step(self.optimizer)
            total += loss.detach()
        if not math.isfinite(total.item()):
            return False
        if pruning:
            self.pruner.cut(self.pruner.plan(), self.optimizer)
        self.epochs += 1
        self.widths.append(self.left)
        self.accuracies.append(self.accuracy("valid"))
        return True

    @torch.no_grad()
    def accuracy(self, part: Any) -> float:
        """On the validation or the test set."""
        self.network.eval()
        right, count = 0, 0
        for x, y in self.feed.evaluation(part):
            right += int((self.network(x).argmax(1) == y).sum())
            count += len(y)
        return right / count

    def prune(self, epochs: int) -> bool:
        """The first phase, of so many epochs at most. Are all losses finite?"""
        while self.pruner.phase == "pruning" and self.epochs < epochs:
            if not self.epoch(pruning=True):
                return False
            self.pruner.after_epoch(self.accuracies[-1])
        return True

    def fine_tune(self, stages: list[list[float]]) -> bool:
        """The second phase; leaves its best network behind. Are all losses finite?"""
        best, state = -1.0, {}
        for factor, epochs in stages:
            for _ in range(int(epochs)):
                if not self.epoch(pruning=False, factor=factor):
                    return False
                if self.accuracies[-1] > best:
                    best, state = self.accuracies[-1], copy.deepcopy(self.network.state_dict())
        self.network.load_state_dict(state)
        return True


def train(plan: dict[str, Any], run: Run, dataset: DataSet, feed: Feed) -> dict[str, Any]:
    """One run."""
    start = time.perf_counter()
    training = Training(plan, run, dataset, feed)
    finite = training.prune(plan["pruning_epochs"])
    pruned, epochs, ended = training.accuracies[-1], training.epochs, training.pruner.phase != "pruning"
    finite = finite and training.fine_tune(plan["fine_tuning"])
    first, second = training.left
    return {
        "state": "done" if finite else "not finite",
        "pruning_epochs": epochs,
        "pruning_ended_by": "patience" if ended else "epochs",
        "first": first,
        "second": second,
        "pruned_valid_accuracy": f"{pruned:.6g}",
        "valid_accuracy": f"{max(training.accuracies[epochs + 1 :]) if finite else math.nan:.6g}",
        "test_accuracy": f"{training.accuracy('test') if finite else math.nan:.6g}",
        "seconds": f"{time.perf_counter() - start:.1f}",
        "widths": " ".join("/".join(map(str, each)) for each in training.widths[: epochs + 1]),
        "valid_accuracies": " ".join(f"{each:.4g}" for each in training.accuracies[1:]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--results", type=Path, help="another folder than the experiment's own")
    parser.add_argument("--seeds", type=int, help="fewer than the file says")
    parser.add_argument("--methods", nargs="+", help="these only")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)  # weights that hardly move make numbers that take ten times as long
    plan = yamls.load(arguments.file)
    results = arguments.results or arguments.file.parent / "results"
    rows = Rows(results / "runs.csv", COLUMNS, key=Run._fields)
    config: Any = TypeAdapter(DataConfig).validate_python(plan["data"])
    for seed in range(arguments.seeds or plan["seeds"]):
        dataset = data.load(config, seed)
        feed = Feed(dataset, config, torch.device("cpu"), seed=seed, rank=0, world_size=1)
        for run in runs(plan, seed):
            if rows.has(*run) or (arguments.methods and run.method not in arguments.methods):
                continue
            row = run._asdict() | train(plan, run, dataset, feed)
            rows.append(row)
            facts = f"{row['first']}/{row['second']} after {row['pruning_epochs']} ({row['pruning_ended_by']})"
            print(f"{' '.join(run)}: {row['state']}, {facts}, {row['test_accuracy']}, {row['seconds']} s", flush=True)


if __name__ == "__main__":
    main()
