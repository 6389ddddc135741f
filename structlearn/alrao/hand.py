"""Numbers at hand: small tensors of the CPU as numpy's arrays, those of a device as they are.

What Alrao does with a dozen numbers a step (the switch, what the heads said) is written once, for either library: numpy
takes 1 us for what torch takes 5 to 8 for, beside a training step; on a device torch does it without a look.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor


def is_at_hand(values: Tensor) -> bool:
    """Can these be looked at without waiting for a device?"""
    return values.device.type == "cpu"


def at_hand(values: Tensor) -> Any:
    """The numbers, in the same memory: numpy's where they are at hand, else torch's; of bfloat16 a copy."""
    if not is_at_hand(values):
        return values
    return values.detach().numpy() if values.dtype != torch.bfloat16 else values.detach().float().numpy()


def library(values: Tensor) -> Any:
    """Whose functions take what :func:`at_hand` gives: numpy or torch, which share the names that are used here."""
    return np if is_at_hand(values) else torch
