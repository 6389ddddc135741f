"""The optimiser that a configuration asks for, from torch.optim, in its fastest form."""

from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from hpc.config.training import Adagrad, Adam, Alrao, AlraoAdam, OptimizerConfig, RmsProp, Sgd
from hpc.errors import RunError
from hpc.seeding import seed_for
from structlearn import alrao


def build(config: OptimizerConfig, model: nn.Module, seed: int = 0, rank: int = 0) -> Optimizer:
    """One parameter group over all trainable parameters of a network.

    ``fused`` updates all parameters in one kernel, on the CPU too; where torch has no fused form (RMSprop;
    Adagrad on a CUDA device; a rate for every unit) ``foreach`` does it in a few.

    Args:
        config: which one.
        model: the network.
        seed: the master seed: of random learning rates.
        rank: of this rank, where each draws its own.
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not trained:
        raise RunError("model: it has no parameter that can be trained; give one that has")
    decay = config.weight_decay
    match config:
        case Sgd():
            return torch.optim.SGD(
                trained, lr=config.lr, momentum=config.momentum, nesterov=config.nesterov, weight_decay=decay,
                fused=True,
            )  # fmt: skip
        case Adam():
            kind = torch.optim.AdamW if config.decoupled else torch.optim.Adam
            return kind(trained, lr=config.lr, betas=config.betas, eps=config.eps, weight_decay=decay, fused=True)
        case Adagrad():
            fused = {"fused": True} if trained[0].device.type == "cpu" else {"foreach": True}
            return torch.optim.Adagrad(trained, lr=config.lr, eps=config.eps, weight_decay=decay, **fused)
        case RmsProp():
            return torch.optim.RMSprop(
                trained, lr=config.lr, alpha=config.alpha, momentum=config.momentum, eps=config.eps,
                weight_decay=decay, foreach=True,
            )  # fmt: skip
        case Alrao():
            return alrao.SGD(model, momentum=config.momentum, nesterov=config.nesterov, **_rates(config, seed, rank))
        case AlraoAdam():
            return alrao.Adam(model, betas=config.betas, eps=config.eps, **_rates(config, seed, rank))


def _rates(config: Alrao | AlraoAdam, seed: int, rank: int) -> dict[str, Any]:
    return {
        "lr_min": config.lr_min,
        "lr_max": config.lr_max,
        "frozen": config.frozen,
        "weight_decay": config.weight_decay,
        "seed": seed_for(seed, "rates", *([rank] if config.rates == "per_rank" else [])),
    }
