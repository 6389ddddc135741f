"""What torch's operators do to channels: for each, which axes of its results are which of its arguments'.

The rules are for ATen's operators, which all of torch's layers and functions are made of, so there are few. Whatever
has no rule ties its arguments down: their channels are never cut.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from structlearn.structure import layers, shapes
from structlearn.structure.plain import pointwise, unknown
from structlearn.structure.table import RULES

if TYPE_CHECKING:
    from structlearn.structure.table import Rule

__all__ = ["layers", "rule_of", "shapes"]


def rule_of(op: Any) -> Rule:
    """The rule of an operator: its own; that of all that work entry by entry; or what ties down its arguments."""
    own = RULES.get(str(op.overloadpacket))
    return own or (pointwise if torch.Tag.pointwise in op.tags else unknown)
