"""Train with Alrao over a grid of intervals of learning rates, and with SGD at their ends (W fig. 2.3).

    python experiments/alrao_sensitivity/run.py [FILE.yaml]

One row a run goes to ``results/runs.csv`` as soon as the run is done; a run that is there is not made again. All in
this process, on one thread.
"""

import math
import time
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter
from torch import nn
from torch.nn.functional import cross_entropy

from analysis.experiment import parser
from analysis.rows import Rows
from hpc import data
from hpc.config import yamls
from hpc.config.data import DataConfig
from hpc.data import Feed
from hpc.seeding import seed_for
from structlearn import alrao, models

HERE = Path(__file__).parent
COLUMNS = [
    "seed",
    "width",
    "lr_min",
    "lr_max",
    "side",
    "state",
    "loss",
    "first_loss",
    "test_loss",
    "test_accuracy",
    "units",
    "lost",
]


@torch.no_grad()
def score(network: nn.Module, feed: Feed) -> tuple[float, float]:
    """Test loss and accuracy."""
    network.eval()
    loss, right, count = 0.0, 0, 0
    for x, y in feed.evaluation("test"):
        outputs = network(x)
        loss += cross_entropy(outputs, y, reduction="sum").item()
        right += int((outputs.argmax(-1) == y).sum())
        count += len(y)
    return loss / count, right / count


def train(
    plan: dict[str, Any],
    feed: Feed,
    shape: tuple[int, ...],
    classes: int,
    low: float,
    high: float,
    width: float,
    seed: int,
) -> dict[str, Any]:
    """One run: the mean loss over the steps of the last epoch. Plain SGD where the interval is one rate."""
    options = dict(plan["model"])
    torch.manual_seed(seed_for(seed, "init"))
    network: nn.Module = models.build(options.pop("name"), shape, classes, width=width, **options)
    net, optimizer = None, None
    if low < high:
        net, optimizer = alrao.adopt(network, heads=plan["heads"], lr_min=low, lr_max=high, seed=seed)
    chosen: Any = optimizer or torch.optim.SGD(network.parameters(), lr=low)
    first, mean = math.nan, math.nan
    for epoch in range(plan["epochs"]):
        losses = []
        for x, y in feed.epoch(epoch):
            loss = net.loss(net(x), y) if net else cross_entropy(network(x), y)
            losses.append(loss.item())
            if not math.isfinite(losses[-1]):
                return {"state": "not finite", "side": "sgd"}
            loss.backward()
            chosen.step()
            chosen.zero_grad()
        mean = sum(losses) / len(losses)
        first = mean if epoch == 0 else first
    test_loss, test_accuracy = score(net or network, feed)
    return {
        "state": "done",
        "side": "alrao" if net else "sgd",
        "loss": f"{mean:.6g}",
        "first_loss": f"{first:.6g}",
        "test_loss": f"{test_loss:.6g}",
        "test_accuracy": f"{test_accuracy:.6g}",
        "units": len(optimizer.param_groups[0]["rates"]) if optimizer else "",
        "lost": int(optimizer.lost) if optimizer else "",
    }


def main() -> None:
    arguments = parser(__doc__, HERE).parse_args()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)  # weights that hardly move make numbers that take ten times as long
    plan = yamls.load(arguments.file)
    rows = Rows(arguments.results / "runs.csv", COLUMNS, key=COLUMNS[:4])
    config: Any = TypeAdapter(DataConfig).validate_python(plan["data"])
    ends = [(low, high) for low in plan["rates"] for high in plan["rates"] if low <= high]
    for seed in range(plan["seeds"]):
        found = data.load(config, seed)
        feed = Feed(found, config, torch.device("cpu"), seed=seed, rank=0, world_size=1)
        for width in plan["widths"]:
            start = time.perf_counter()
            for low, high in ends:
                facts = {"seed": str(seed), "width": str(width), "lr_min": f"{low:g}", "lr_max": f"{high:g}"}
                if rows.has(*facts.values()):
                    continue
                rows.append(facts | train(plan, feed, found.input_shape, found.outputs, low, high, width, seed))
            print(f"seed {seed}, width {width}: {time.perf_counter() - start:.0f} s", flush=True)


if __name__ == "__main__":
    main()
