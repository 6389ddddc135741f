"""What SHADE on all layers, and REVE, add to a training step.

    python benchmarks/regularizers.py [--rounds 11]

One core, one thread. The whole step (forward, loss, backward, torch.optim.SGD) with the regulariser over that without,
of the same network on the same batch: the mean of ten steps, so that REVE with a refresh of 10 has its share of the
SVD. B 5.4 trains with batches of 128; for one core the wide ResNet is narrowed, where less is computed for each value
that SHADE looks at, or has small batches. With a GPU also there, with batches of 128.
"""

import copy
import time
from collections.abc import Callable
from typing import Any

import torch
from measure import interleave, one_core, parser, publish, ratio, spread
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from structlearn import models
from structlearn.regularizers import Regularizer, Reve, Shade

STEPS = 10
WIDE = "wideresnet28_10"
CASES: dict[str, tuple[str, dict[str, Any], int]] = {
    "AlexNet, 3 x 3, batch 128": ("alexnet", {}, 128),
    "AlexNet, 5 x 5, batch 128": ("alexnet", {"kernel": 5, "pool": 2}, 128),
    "wide ResNet-28, width 0.4, batch 16": (WIDE, {"width": 0.4}, 16),
    "wide ResNet-28-10, batch 4": (WIDE, {}, 4),
}
ON_GPU: dict[str, tuple[str, dict[str, Any], int]] = {
    "AlexNet, 3 x 3, batch 128, GPU": ("alexnet", {}, 128),
    "AlexNet, 5 x 5, batch 128, GPU": ("alexnet", {"kernel": 5, "pool": 2}, 128),
    "wide ResNet-28-10, batch 128, GPU": (WIDE, {}, 128),
}
METHODS: dict[str, Callable[[nn.Module, Tensor], Regularizer | None]] = {
    "plain": lambda _, __: None,
    "SHADE": lambda model, x: Shade(model, x[:2], strength=1e-4),
    "REVE, refresh 1": lambda model, _: Reve(model, refresh=1),
    "REVE, refresh 10": lambda model, _: Reve(model, refresh=10),
}


def step(model: nn.Module, regularizer: Regularizer | None, x: Tensor, y: Tensor) -> Callable[[], float]:
    """Seconds of a training step, by the mean of ten."""
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-6, foreach=True)  # it trains for ever on one batch

    def once() -> None:
        loss = cross_entropy(model(x), y)
        extra = regularizer.loss(y) if regularizer is not None else None
        (loss if extra is None else loss + extra).backward()
        optimizer.step()
        optimizer.zero_grad()

    def wait() -> None:
        if x.is_cuda:
            torch.cuda.synchronize()

    def measure() -> float:
        wait()
        start = time.perf_counter()
        for _ in range(STEPS):
            once()
        wait()
        return (time.perf_counter() - start) / STEPS

    once()
    return measure


def sides(case: tuple[str, dict[str, Any], int], device: str) -> dict[str, Callable[[], float]]:
    kind, options, size = case
    torch.manual_seed(0)
    x, y = torch.randn(size, 3, 32, 32, device=device), torch.randint(10, (size,), device=device)
    first = models.build(kind, (3, 32, 32), 10, **options).to(device)
    found = {}
    for name, method in METHODS.items():
        model = copy.deepcopy(first)
        found[name] = step(model, method(model, x), x, y)
    return found


def main() -> None:
    rounds = parser(__doc__, 11).parse_args().rounds
    one_core()
    names = list(METHODS)[1:]
    lines = [
        f"{rounds} rounds of {STEPS} steps. Medians [quartiles]; a step's time in ms, and over the plain network's.",
        "",
        f"| network | plain, ms | {' | '.join(names)} |",
        f"|---|---|{'---|' * len(names)}",
    ]
    cases = [(name, case, "cpu") for name, case in CASES.items()]
    if torch.cuda.is_available():
        cases += [(name, case, "cuda") for name, case in ON_GPU.items()]
    for title, case, device in cases:
        plain, *others = interleave(sides(case, device), rounds).values()
        ratios = " | ".join(ratio(other, plain) for other in others)
        lines.append(f"| {title} | {spread([1e3 * each for each in plain])} | {ratios} |")
        print(lines[-1], flush=True)
    publish("regularizers", "SHADE and REVE beside the plain step", lines)


if __name__ == "__main__":
    main()
