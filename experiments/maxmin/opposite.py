"""Do a ReLU network's filters come in opposite pairs, as B 3.3.1 has it?

    python experiments/maxmin/opposite.py [FILE.yaml] [--results DIR]

For each filter of a layer the lowest cosine with another one of that layer (B fig. 3.1 has these of AlexNet, and of
random filters): at the start, where filters are random, and when the network is trained. After ``run.py``, whose rate
it takes. One row a layer of a seed goes to ``results/opposite.csv``; what is there is not made again.
"""

from collections.abc import Iterator
from typing import Any

import torch
from run import COLUMNS, HERE, Side, build, chosen, fit, read, source
from torch import Tensor, nn

from analysis.experiment import parser
from analysis.rows import Rows


def lowest(layer: nn.Conv2d) -> Tensor:
    """[filters]: the lowest cosine with another filter."""
    rows = nn.functional.normalize(layer.weight.detach().flatten(1), dim=1)
    return (rows @ rows.T).amin(1)


def layers(network: nn.Module) -> Iterator[tuple[int, nn.Conv2d]]:
    """The convolutions, numbered from 1."""
    return enumerate((layer for layer in network.modules() if isinstance(layer, nn.Conv2d)), 1)


def rows_of(plan: dict[str, Any], side: Side) -> Iterator[dict[str, Any]]:
    """A row for each layer of a network."""
    dataset, _ = source(plan["config"], int(side.seed))
    start, (trained, *_) = build(plan, side, dataset), fit(plan, side)
    for (number, before), (_, after) in zip(layers(start), layers(trained), strict=True):
        assert len(before.weight) == len(after.weight)
        for when, layer in (("start", before), ("trained", after)):
            found = lowest(layer)
            yield {
                "seed": side.seed,
                "size": side.size,
                "layer": number,
                "when": when,
                "filters": len(found),
                "mean": f"{found.mean().item():.6g}",
                "least": f"{found.min().item():.6g}",
                "below_half": f"{(found < -0.5).double().mean().item():.6g}",
            }


def main() -> None:
    arguments = parser(__doc__, HERE).parse_args()
    plan = read(arguments.file)
    rate = chosen(Rows(arguments.results / "runs.csv", COLUMNS, key=Side._fields), plan)
    columns = ["seed", "size", "layer", "when", "filters", "mean", "least", "below_half"]
    rows = Rows(arguments.results / "opposite.csv", columns, key=columns[:4])
    torch.set_num_threads(1)
    for seed in range(plan["seeds"]):
        side = Side(str(seed), "relu", str(plan["middle"]), rate)
        if not rows.has(str(seed), side.size, 1, "start"):
            rows.append(*rows_of(plan, side))


if __name__ == "__main__":
    main()
