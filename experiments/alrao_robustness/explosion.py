"""The first steps of many networks in which nothing is normalised: does any of them explode and not come out of it?

    python experiments/alrao_robustness/explosion.py

LeNet and perceptrons of six layers with 64 units on Fashion-MNIST, Alrao at its defaults, 60 steps. One row a network
goes to ``results/explosion.csv``.
"""

from itertools import islice
from pathlib import Path
from typing import Any, Final

import pandas as pd
import torch
from pydantic import TypeAdapter

from analysis.experiment import keep
from hpc import data
from hpc.config.data import DataConfig
from hpc.data import Feed
from hpc.seeding import seed_for
from structlearn import alrao, models

HERE = Path(__file__).parent
STEPS: Final = 60
NETWORKS: Final[dict[str, tuple[int, dict[str, Any]]]] = {
    "LeNet": (30, {"name": "lenet"}),
    "perceptron, 6 x 64": (15, {"name": "mlp", "widths": [64] * 6}),
}
FIRST_SEED: Final = 100  # others than those of run.py


def main() -> None:
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    config: Any = TypeAdapter(DataConfig).validate_python({"name": "fashion-mnist", "train_size": 10000})
    found = data.load(config, 0)
    rows = []
    for name, (count, options) in NETWORKS.items():
        for seed in range(FIRST_SEED, FIRST_SEED + count):
            torch.manual_seed(seed_for(seed, "init"))
            rest = {key: value for key, value in options.items() if key != "name"}
            model = models.build(options["name"], found.input_shape, found.outputs, **rest)
            net, optimizer = alrao.adopt(model, seed=seed)
            feed = Feed(found, config, torch.device("cpu"), seed=seed, rank=0, world_size=1)
            losses = []
            for x, y in islice(feed.epoch(0), STEPS):
                loss = net.loss(net(x), y)
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
                losses.append(loss.item())
            facts = {"highest": f"{max(losses):.6g}", "last": f"{sum(losses[-20:]) / 20:.6g}"}
            rows.append({"network": name, "seed": seed, **facts, "lost": int(optimizer.lost)})
    keep({"explosion": pd.DataFrame(rows)}, HERE / "results")


if __name__ == "__main__":
    main()
