"""Learning rates: one a unit, drawn once; one a head, spread evenly."""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

from structlearn.checks import check_count, check_interval, check_share

HIGHEST: Final = 1e9
"""The largest rate: with it no weight leaves float32 before it is seen that its unit has exploded."""


def draw(count: int, low: float, high: float, *, frozen: float = 0.0, seed: int = 0) -> Tensor:
    """[count] rates, log-uniform in [low, high] (W 2.4.3), float32: the same for the same seed on every machine.

    Args:
        count: How many.
        low: The interval's lower end.
        high: Its upper end.
        frozen: The chance that a rate is 0 instead: the unit stays as it starts (W 2.9.6).
        seed: Of torch's generator on the CPU.
    """
    low, high = _interval(low, high)
    generator = torch.Generator().manual_seed(seed)
    places, chances = torch.rand(2, count, dtype=torch.float64, generator=generator)
    rates: Tensor = low * (high / low) ** places
    asleep = chances < check_share("frozen", frozen, zero=True)
    return rates.masked_fill(asleep, 0.0).float()


def grid(count: int, low: float, high: float) -> Tensor:
    """[count] rates from low to high, evenly spaced on a log scale, ends included (W 2.4.4), float32.

    One alone is the geometric mean (the authors' code takes the smallest).
    """
    low, high = _interval(low, high)
    if check_count("heads", count) == 1:
        return torch.tensor([(low * high) ** 0.5])
    rates: Tensor = low * (high / low) ** torch.linspace(0, 1, count, dtype=torch.float64)
    return rates.float()


def _interval(low: float, high: float) -> tuple[float, float]:
    low, high = check_interval("the learning rates", low, high)
    if high > HIGHEST:
        raise ValueError(f"the learning rates must be at most {HIGHEST:g}, got [{low!r}, {high!r}]")
    return low, high
