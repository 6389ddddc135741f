"""Prune W's CVNN under four penalties, whose layers have Bayesian or usual factors, at many strengths (W 4.6, 4.8).

    python experiments/penalty_factors/run.py [FILE.yaml] [--results DIR] [--workers N]

All strengths are run under ``seeds`` seeds; then the one of each side that did best on the validation set, and W's
1 / n, are run under further ones, up to ``best_seeds``. One row a run goes to ``results/runs.csv`` as soon as the run
is done; a run that is there is not made again. Two run at a time, each on one thread of a process of its own.

A run has the two phases of W 4.8.1, but for what saves time: pruning also ends after ``pruning_epochs``, and
fine-tuning has a fixed number of epochs at each learning rate. What is tested is the network of fine-tuning with the
best validation accuracy.
"""

import copy
import math
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import torch
from pydantic import TypeAdapter
from torch.nn.functional import cross_entropy

from analysis.experiment import parser
from analysis.rows import Rows
from hpc import data
from hpc.config import yamls
from hpc.config.data import DataConfig
from hpc.data import DataSet, Feed
from hpc.seeding import seed_for
from structlearn import models
from structlearn.pruning import Norm
from structlearn.structure import Structure

HERE = Path(__file__).parent


class Run(NamedTuple):
    """What a run is, as in the columns of these names."""

    seed: str
    penalty: str
    factors: str
    """bayesian, usual, or none: without a penalty."""
    exponent: str
    """lambda is 10 to this; with Bayesian factors over the number of training samples (W 4.8.2)."""
    rate: str


RESULTS = ["strength", "state", "pruning_epochs", "pruning_ended_by", "parameters", "widths", "pruned_valid_accuracy",
           "valid_accuracy", "test_accuracy", "seconds"]  # fmt: skip
COLUMNS = [*Run._fields, *RESULTS]


def runs(plan: dict[str, Any], seed: int) -> Iterator[Run]:
    """All strengths under a seed."""
    for rate in plan["baseline_rates"]:
        yield Run(str(seed), "", "none", "", f"{rate:g}")
    for penalty, sides in plan["penalties"].items():
        for factors, grid in sides.items():
            for exponent in grid["exponents"]:
                for rate in grid["rates"]:
                    yield Run(str(seed), penalty, factors, f"{exponent:g}", f"{rate:g}")


def best_runs(plan: dict[str, Any], rows: Iterable[dict[str, str]]) -> Iterator[Run]:
    """Under the further seeds: the best strength of each side, by what was run under the first ones, and 1 / n."""
    first = [row for row in rows if int(row["seed"]) < plan["seeds"] and row["factors"] != "none"]
    scores: dict[tuple[str, str], dict[tuple[str, str], float]] = {}
    for row in first:
        valid = float(row["valid_accuracy"]) if row["state"] == "done" else 0.0
        side = scores.setdefault((row["penalty"], row["factors"]), {})
        side[row["exponent"], row["rate"]] = side.get((row["exponent"], row["rate"]), 0.0) + valid
    for seed in map(str, range(plan["seeds"], plan["best_seeds"])):
        for rate in plan["baseline_rates"]:
            yield Run(seed, "", "none", "", f"{rate:g}")
        for (penalty, factors), side in scores.items():
            best = max(side, key=lambda each: side[each])
            theory = [each for each in side if factors == "bayesian" and each[0] == "0"]
            for exponent, rate in dict.fromkeys([best, *theory]):
                yield Run(seed, penalty, factors, exponent, rate)


class Training:
    """One network while it is pruned and fine-tuned."""

    def __init__(self, plan: dict[str, Any], run: Run, dataset: DataSet, feed: Feed) -> None:
        torch.manual_seed(seed_for(int(run.seed), "init"))
        network = models.build("cvnn", dataset.input_shape, dataset.outputs, width=plan["width"])
        self.network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.feed, self.rate = feed, float(run.rate)
        bare = run.factors == "none"
        samples = len(dataset.train) if run.factors == "bayesian" else 1
        self.strength = 0.0 if bare else 10 ** float(run.exponent) / samples
        penalty: Any = "l2" if bare else run.penalty
        self.pruner = Norm(
            Structure(self.network, torch.zeros(2, *dataset.input_shape)),
            penalty=penalty,
            factors="bayesian" if run.factors == "bayesian" else "usual",
            strength=self.strength,
            threshold=plan["threshold"],
            proximal=penalty != "l2",
            patience=plan["patience"],
        )
        self.optimizer = torch.optim.SGD(self.network.parameters(), lr=self.rate, momentum=plan["momentum"], fused=True)
        self.epochs, self.accuracies = 0, [math.nan]

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


@cache
def samples(config: str, seed: int) -> tuple[DataSet, Feed]:
    """The images of a seed, and who feeds them: read once in a process."""
    made: Any = TypeAdapter(DataConfig).validate_python(yamls.parse(config, "data"))
    dataset = data.load(made, seed)
    return dataset, Feed(dataset, made, torch.device("cpu"), seed=seed, rank=0, world_size=1, channels_last=True)


def train(plan: dict[str, Any], run: Run) -> dict[str, Any]:
    """One run's row."""
    dataset, feed = samples(yamls.dump(plan["data"]), int(run.seed))
    start = time.perf_counter()
    training = Training(plan, run, dataset, feed)
    finite = training.prune(plan["pruning_epochs"])
    pruned, epochs, ended = training.accuracies[-1], training.epochs, training.pruner.phase != "pruning"
    finite = finite and training.fine_tune(plan["fine_tuning"])
    return run._asdict() | {
        "strength": f"{training.strength:.6g}",
        "state": "done" if finite else "not finite",
        "pruning_epochs": epochs,
        "pruning_ended_by": "patience" if ended else "epochs",
        "parameters": sum(parameter.numel() for parameter in training.network.parameters()),
        "widths": "/".join(map(str, training.pruner.structure.widths.values())),
        "pruned_valid_accuracy": f"{pruned:.6g}",
        "valid_accuracy": f"{max(training.accuracies[epochs + 1 :]) if finite else math.nan:.6g}",
        "test_accuracy": f"{training.accuracy('test') if finite else math.nan:.6g}",
        "seconds": f"{time.perf_counter() - start:.1f}",
    }


def prepare() -> None:
    """One thread; numbers that hardly are any count as 0, for they take ten times as long."""
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)


def main() -> None:
    options = parser(__doc__, HERE)
    options.add_argument("--workers", type=int, default=2, help="processes at a time")
    arguments = options.parse_args()
    plan = yamls.load(arguments.file)
    rows = Rows(arguments.results / "runs.csv", COLUMNS, key=Run._fields)
    context = get_context("spawn")  # torch's threads do not survive a fork
    with ProcessPoolExecutor(arguments.workers, mp_context=context, initializer=prepare) as pool:

        def make(every: Iterable[Run]) -> None:
            for done in as_completed([pool.submit(train, plan, run) for run in every if not rows.has(*run)]):
                row = done.result()
                rows.append(row)
                print(" ".join(str(row[name]) for name in COLUMNS), flush=True)

        make(run for seed in range(plan["seeds"]) for run in runs(plan, seed))
        make(best_runs(plan, rows))


if __name__ == "__main__":
    main()
