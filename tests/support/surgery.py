"""Networks as after training."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase


def stir(model: nn.Module, seed: int = 0) -> nn.Module:
    """Normalisations with scales, shifts and statistics as after training; in evaluation."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, _NormBase):
            for values in (module.running_mean, module.bias):
                if values is not None:
                    values.data.normal_(generator=generator)
            for values in (module.running_var, module.weight):
                if values is not None:
                    values.data.uniform_(0.5, 1.5, generator=generator)
    return model.eval()
