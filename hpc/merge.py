"""One network of many: from a checkpoint of another number of ranks."""

import torch
from torch import nn
from torch.optim import Optimizer

from hpc.checkpoint import Loaded
from hpc.exchange import Exchange, cut, running_averages, weights_and_buffers
from hpc.state import lay_out_alike


def merge(loaded: Loaded, model: nn.Module, optimizer: Optimizer, exchange: Exchange) -> int:
    """Give a model the network that the ranks of a checkpoint stood for, and an optimiser their mean state.

    Weights and float buffers are the mean by the shares that the strategy says (gossip: masses); running averages the
    plain mean. Every rank of the new world reads all files, one at a time, and computes the same.

    Returns:
        The steps that the ranks of the checkpoint had made together.
    """
    values, averages, steps = weights_and_buffers(model), [], 0
    mean = [torch.zeros_like(value, dtype=torch.float64) for value in values]
    sums: list[torch.Tensor] = []
    for rank in range(loaded.world_size):
        own = loaded.read(rank)
        model.load_state_dict({**own["network"]["parameters"], **own["buffers"]})
        optimizer.load_state_dict(own["network"]["optimizer"])
        lay_out_alike(optimizer)
        shares = exchange.shares(own["exchange"], loaded.world_size)
        for total, part, share in zip(cut(mean, len(shares)), cut(values, len(shares)), shares, strict=True):
            torch._foreach_add_(total, [piece.double() for piece in part], alpha=share)
        averages = running_averages(optimizer)
        sums = sums or [torch.zeros_like(value, dtype=torch.float64) for value in averages]
        torch._foreach_add_(sums, [value.double() for value in averages], alpha=1 / loaded.world_size)
        steps += own["taken"]
    for value, exact in zip([*values, *averages], [*mean, *sums], strict=True):
        value.copy_(exact)
    return steps
