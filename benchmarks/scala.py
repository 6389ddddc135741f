"""What a scaling before each layer adds to a training step.

    python benchmarks/scala.py [--rounds 15]

One core, one thread. The whole step (forward, loss, backward, torch.optim.SGD) of a scaled network over that of the
same network with plain layers. A scaled layer multiplies the smaller one of its input and its weight; beside it stands
what it would cost to multiply always the input, or always the weight.
"""

import time
from collections.abc import Callable
from typing import Any

import torch
from measure import interleave, one_core, parser, publish, ratio, spread
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from structlearn import models
from structlearn.scala import Scaled, adopt

Halves = Callable[[Scaled, Tensor], tuple[Tensor, Tensor]]
CASES: dict[str, tuple[str, dict[str, Any], tuple[int, ...], int, int]] = {
    "sFC, batch 32": ("mlp", {"widths": [1000, 1000, 10], "batch_norm": True}, (1, 28, 28), 32, 20),
    "sFC, batch 2048": ("mlp", {"widths": [1000, 1000, 10], "batch_norm": True}, (1, 28, 28), 2048, 1),
    "LeNet, batch 32": ("lenet", {}, (1, 28, 28), 32, 20),
    "VGG19, batch 8": ("vgg19", {}, (3, 32, 32), 8, 1),
    "ResNet-18, batch 8": ("resnet18", {}, (3, 32, 32), 8, 1),
    "MobileNet, batch 8": ("mobilenet_v2", {}, (3, 32, 32), 8, 1),
}


def always_input(layer: Scaled, x: Tensor) -> tuple[Tensor, Tensor]:
    return x * layer.scale.view(-1, *[1] * (layer.weight.dim() - 2)), layer.weight


def always_weight(layer: Scaled, x: Tensor) -> tuple[Tensor, Tensor]:
    return x, layer.effective()


def step(model: nn.Module, x: Tensor, y: Tensor, times: int) -> Callable[[], float]:
    """Seconds of a training step, by the mean of a few."""
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-6, foreach=True)  # it trains for ever on one batch

    def once() -> None:
        cross_entropy(model(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()

    def measure() -> float:
        start = time.perf_counter()
        for _ in range(times):
            once()
        return (time.perf_counter() - start) / times

    once()
    return measure


def sides(case: str) -> dict[str, Callable[[], float]]:
    kind, options, shape, size, times = CASES[case]
    torch.manual_seed(0)
    x, y = torch.randn(size, *shape), torch.randint(10, (size,))
    found = {"plain": step(models.build(kind, shape, 10, **options), x, y, times)}
    ways: dict[str, Halves | None] = {"scaled": None, "the input": always_input, "the weight": always_weight}
    for name, halves in ways.items():
        model = adopt(models.build(kind, shape, 10, **options))
        for layer in model.modules():
            if isinstance(layer, Scaled) and halves is not None:
                layer.__dict__["_halves"] = halves.__get__(layer)
        found[name] = step(model, x, y, times)
    return found


def main() -> None:
    rounds = parser(__doc__, 15).parse_args().rounds
    one_core()
    lines = [
        f"{rounds} rounds. Medians [quartiles]; a step's time in ms, and over the plain network's.",
        "",
        "| network | plain, ms | scaled over plain | always the input | always the weight |",
        "|---|---|---|---|---|",
    ]
    for case in CASES:
        plain, *others = interleave(sides(case), rounds).values()
        ratios = " | ".join(ratio(other, plain) for other in others)
        lines.append(f"| {case} | {spread([1e3 * each for each in plain])} | {ratios} |")
        print(lines[-1], flush=True)
    publish("scala", "A scaling before each layer, beside plain layers", lines)


if __name__ == "__main__":
    main()
