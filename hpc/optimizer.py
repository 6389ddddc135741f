"""The optimiser that a configuration asks for, from torch.optim, in its fastest form."""

from collections.abc import Iterable

import torch
from torch import nn
from torch.optim import Optimizer

from hpc.config.training import Adagrad, Adam, OptimizerConfig, RmsProp, Sgd
from hpc.errors import RunError


def build(config: OptimizerConfig, parameters: Iterable[nn.Parameter]) -> Optimizer:
    """One parameter group over all trainable parameters.

    ``fused`` updates all parameters in one kernel, on the CPU too; where torch has no fused form (RMSprop;
    Adagrad on a CUDA device) ``foreach`` does it in a few.
    """
    trained = [parameter for parameter in parameters if parameter.requires_grad]
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
