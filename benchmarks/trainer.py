"""What the benchmarks of the exchange train: a multilayer perceptron of 1, 10 or 20 million parameters."""

import torch
from torch import nn
from torch.nn.functional import cross_entropy

INPUTS, CLASSES = 1024, 10
WIDTHS = {1: 650, 10: 2700, 20: 3990}
"""Of the hidden layers, for so many millions of parameters."""


def network(millions: int) -> nn.Module:
    """The same weights on every rank."""
    torch.manual_seed(0)
    width = WIDTHS[millions]
    return nn.Sequential(
        nn.Linear(INPUTS, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, CLASSES)
    )


class Trainer:
    """A network and its optimiser, SGD with momentum, on a batch that is always the same."""

    def __init__(self, millions: int, rank: int, batch: int) -> None:
        self.model = network(millions)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=1e-4, momentum=0.9, fused=True)
        chance = torch.Generator().manual_seed(rank)
        self._inputs = torch.randn(batch, INPUTS, generator=chance)
        self._targets = torch.randint(0, CLASSES, (batch,), generator=chance)
        self.step = 0

    def backward(self) -> None:
        """Gradients of one batch."""
        cross_entropy(self.model(self._inputs), self._targets).backward()

    def update(self) -> None:
        """One step."""
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
