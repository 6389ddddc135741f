"""How strongly each layer is penalised (W table 4.1), by the number of its weights.

P is the number of a unit's incoming weights, and d that of the weights in a group: P for a group of incoming weights;
for a reversed one n, the number of units that the input goes to, times the kernel's entries.

| penalty | "bayesian" | "usual" |
|---|---|---|
| L2 | P / 2 | 1 |
| L1 | sqrt(2 P) | 1 |
| norm of a group | sqrt(P (d + 1)) | sqrt(d) |

Where each weight is one number, a penalty r is, up to a constant, the divergence from the prior exp(-r) (W 4.4.3).
"bayesian" is the factor with which that prior is one to draw initial weights from (Glorot and Bengio): each weight has
the second moment 1 / P, so that the incoming weights of a unit have together 1 (W 4.5.1, condition (#')). For a group
of d weights the prior is exp(-f ||w||), whose second moment is d (d + 1) / f^2; that shall be d / P. W gives it for
d = P and, with linear layers, for d = n; d = 1 is the L1 penalty.

So P is 1 over the second moment that a weight is to have. It is 1 where the inputs of a unit are not added up, or are
scaled before they are: of an embedding (one symbol is there at a time), of a BatchNorm's scale (one input), and of a
layer behind a scaling (:mod:`structlearn.scala`), whose weights are drawn from N(0, 1).
"""

from __future__ import annotations

from math import sqrt
from typing import TYPE_CHECKING, Final, Literal

if TYPE_CHECKING:
    from torch import Tensor

Rule = Literal["bayesian", "usual"]
RULES: Final = ("bayesian", "usual")


def of_squares(rule: Rule, inputs: float) -> float:
    """Of an L2 penalty, for P `inputs`."""
    return inputs / 2 if rule == "bayesian" else 1.0


def of_magnitudes(rule: Rule, inputs: float) -> float:
    """Of an L1 penalty, for P `inputs`."""
    return sqrt(2 * inputs) if rule == "bayesian" else 1.0


def of_norms(rule: Rule, inputs: Tensor, sizes: Tensor) -> Tensor:
    """Of the norms of groups, for each P and d, [groups]."""
    return (inputs * (sizes + 1)).sqrt() if rule == "bayesian" else sizes.sqrt()
