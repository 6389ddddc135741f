"""Small networks of every kind that pruning meets, with batches; those without a `plain` are scaled (ScaLa)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from structlearn.scala import adopt


class Block(nn.Module):
    """conv, norm, ReLU, conv, norm, plus what came in."""

    def __init__(self, channels: int, inner: int) -> None:
        super().__init__()
        self.one = nn.Conv2d(channels, inner, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(inner)
        self.two = nn.Conv2d(inner, channels, 3, padding=1, bias=False)
        self.last = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        return (x + self.last(self.two(self.norm(self.one(x)).relu()))).relu()


class Dense(nn.Module):
    """Two convolutions, the second of which sees the first one's input, too: concatenated."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 6, 3, padding=1)
        self.one = nn.Conv2d(6, 5, 3, padding=1)
        self.norm = nn.BatchNorm2d(11)
        self.two = nn.Conv2d(11, 7, 1)
        self.head = nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        a = self.stem(x).relu()
        b = torch.cat([a, self.one(a).relu()], 1)
        return self.head(self.two(self.norm(b)).relu().mean((2, 3)))


class Cells(nn.Module):
    """LSTM cells, and a hidden layer on the last ones."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.LSTM(4, 7, batch_first=True)
        self.hidden = nn.Linear(7, 6)
        self.norm = nn.BatchNorm1d(6)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.hidden(self.rnn(x)[0][:, -1])).relu())


class MaxMin(nn.Module):
    """Twice the channels: max(x, 0) and max(-x, 0)."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x.relu(), (-x).relu()], 1)


def _mlp() -> tuple[nn.Module, Tensor]:
    hidden = [nn.Linear(5, 9), nn.BatchNorm1d(9), nn.ReLU(), nn.Linear(9, 8), nn.BatchNorm1d(8), nn.ReLU()]
    return nn.Sequential(*hidden, nn.Linear(8, 3)), torch.randn(12, 5)


def _lenet() -> tuple[nn.Module, Tensor]:
    convolutions = [nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 7, 2), nn.ReLU()]
    return nn.Sequential(*convolutions, nn.Flatten(), nn.Linear(28, 8), nn.ReLU(), nn.Linear(8, 3)), torch.randn(
        6, 1, 8, 8
    )


def _residual() -> tuple[nn.Module, Tensor]:
    stem = [nn.Conv2d(2, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6), nn.ReLU()]
    tail = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3)]
    return nn.Sequential(*stem, Block(6, 5), Block(6, 7), *tail), torch.randn(6, 2, 5, 5)


def _dense() -> tuple[nn.Module, Tensor]:
    return Dense(), torch.randn(6, 2, 5, 5)


def _lstm() -> tuple[nn.Module, Tensor]:
    return Cells(), torch.randn(6, 5, 4)


def _maxmin() -> tuple[nn.Module, Tensor]:
    layers = [
        nn.Linear(5, 7),
        nn.BatchNorm1d(7),
        MaxMin(),
        nn.Linear(14, 6),
        nn.BatchNorm1d(6),
        MaxMin(),
        nn.Linear(12, 3),
    ]
    return nn.Sequential(*layers), torch.randn(12, 5)


NETS = {"mlp": _mlp, "lenet": _lenet, "residual": _residual, "dense": _dense, "lstm": _lstm, "maxmin": _maxmin}


def network(name: str, scaling: str | None = None, seed: int = 0) -> tuple[nn.Module, Tensor]:
    """(network, batch) in float64; normalisations as after training. Scaled where a sequence is named."""
    torch.manual_seed(seed)
    model, batch = NETS[name]()
    if scaling is not None:
        adopt(model, scaling=scaling)
    for module in model.modules():
        if isinstance(module, _NormBase):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 1.5)
            module.weight.data.uniform_(0.5, 1.5)
            module.bias.data.normal_()
    return model.double(), batch.double()
