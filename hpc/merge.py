"""One network of many: from a checkpoint of another number of ranks."""

from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from hpc.checkpoint import Loaded
from hpc.exchange import Exchange, running_averages, weights_and_buffers
from hpc.state import lay_out_alike
from structlearn.alrao import PerUnit


def merge(loaded: Loaded, model: nn.Module, optimizer: Optimizer, exchange: Exchange) -> int:
    """Give a model the network that the ranks of a checkpoint stood for, and an optimiser their mean state.

    Weights and float buffers are the mean by the shares that the strategy says (gossip: masses), or its centre; running
    averages the plain mean of those ranks that have a share. Means are taken in float64: what is equal on all ranks
    (sync) stays as it is. Every rank of the new world reads all files, one at a time, and computes the same.

    Returns:
        The steps that the ranks of the checkpoint had made together.
    """
    values, averages, steps = weights_and_buffers(model), list[torch.Tensor](), 0
    mean = [torch.zeros_like(value, dtype=torch.float64) for value in values]
    sums, summed = list[torch.Tensor](), 0
    first: dict[str, Any] = {}
    drawn = optimizer.param_groups[0]["rates"].clone() if isinstance(optimizer, PerUnit) else None
    for rank in range(loaded.world_size):
        own = loaded.read(rank)
        first = first or own["exchange"]
        steps += own["taken"]
        shares = exchange.shares(own["exchange"], rank, loaded.world_size)
        if not any(shares):
            continue
        network = (loaded.shared if exchange.replicated else own)["network"]
        model.load_state_dict({**network["parameters"], **own["buffers"]})
        for total, part, share in zip(exchange.slices(mean), exchange.slices(values), shares, strict=True):
            for exact, piece in zip(total, part, strict=True):
                exact.add_(piece, alpha=share)
        if network["optimizer"]["state"]:  # a master on a rank of its own has none, nor who has made no step
            optimizer.load_state_dict(network["optimizer"])
            lay_out_alike(optimizer)
            averages, summed = running_averages(optimizer), summed + 1
            sums = sums or [torch.zeros_like(value, dtype=torch.float64) for value in averages]
            for exact, value in zip(sums, averages, strict=True):
                exact.add_(value)
    for value, exact in zip(values, mean, strict=True):
        value.copy_(exact)
    for value, exact in zip(averages, sums, strict=True):
        value.copy_(exact / summed)
    exchange.put_centre(first, values)
    if isinstance(optimizer, PerUnit) and drawn is not None:  # each rank's own, where they are not the same
        optimizer.redraw(drawn)
    return steps
