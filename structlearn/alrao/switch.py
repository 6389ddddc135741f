"""The switch distribution: which of several predictors to trust, where the best one changes over time."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

from structlearn.alrao.losses import sound
from structlearn.checks import check_count, check_share

if TYPE_CHECKING:
    from collections.abc import Callable


class Switch(nn.Module):
    """A Bayesian posterior over K predictors that may take over from each other (W 2.9.1; van Erven and others 2007).

    It is a posterior over *sequences* of predictors: the first is drawn evenly; each step t = 1, 2, ... may change it
    with probability 1/(t+1), to one drawn evenly; after the first draw and after each change, this was the last one
    with probability 1 - theta. Kept as log weights [2, K]: row 0 those who may change again, row 1 those who will not.
    W's prior for the number of changes is printed unnormalised; this recursion is van Erven's, as in the authors' code.

    Everything is on the device: an update waits for nothing. float64, because the weights of those who will not change
    grow by 1e-8 of themselves a step, which float32 would drop.

    Args:
        count: K.
        theta: The chance that one more change comes.
        per: What a step is. "batch": the mean log-likelihood of a mini-batch counts as one observation (the authors'
            code); "example": its sum counts, which reacts about as many times faster as a batch has examples.

    Attributes:
        logw: [2, K]; their exponentials add up to 1.
        alive: [K], bool: a predictor that was not finite once is never trusted again.
        steps: Updates so far.
    """

    logw: Tensor
    alive: Tensor
    steps: Tensor
    _refill: Tensor

    def __init__(self, count: int, *, theta: float = 0.999, per: Literal["batch", "example"] = "batch") -> None:
        super().__init__()
        self.count, self.theta, self.per = check_count("heads", count), check_share("theta", theta), per
        if per not in {"batch", "example"}:
            raise ValueError(f"per: got {per!r}; allowed: 'batch' or 'example'")
        refill = torch.tensor([[math.log(theta)], [math.log1p(-theta)]], dtype=torch.float64) - math.log(count)
        self.register_buffer("_refill", refill, persistent=False)
        self.register_buffer("logw", refill.repeat(1, count))
        self.register_buffer("alive", torch.ones(count, dtype=torch.bool))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Switch:
        """Go to another device with the network, but stay float64 where it becomes float32 or less."""

        def moved(tensor: Tensor) -> Tensor:
            there = fn(tensor)
            return there if there.dtype == tensor.dtype else tensor.to(there.device)

        super()._apply(moved, recurse)  # type: ignore[no-untyped-call]
        return self

    def posterior(self) -> Tensor:
        """The log probability of each predictor, [K], float64; -inf for one that is lost. Normalised."""
        return torch.logaddexp(*self.logw).masked_fill(~self.alive, -math.inf).log_softmax(0)

    @torch.no_grad()
    def update(self, mean: Tensor, examples: Tensor, spoilt: Tensor | bool = False) -> None:
        """Take what each predictor said before it was updated.

        A predictor whose likelihood is not finite, or as good as zero, is lost, unless that is so of all that are left:
        then the trouble is not theirs, and the step says nothing.

        Args:
            mean: [K], the mean log-likelihood of an example under each.
            examples: How many there were, a scalar.
            spoilt: Does the step say nothing in any case?
        """
        finite = sound(mean) & self.alive
        spoilt = ~finite.any() | spoilt
        self.alive.logical_and_(finite | spoilt)
        if self.count == 1:
            return
        evidence = (mean if self.per == "batch" else mean * examples).masked_fill(~finite, -math.inf)
        logw = self.logw + evidence.masked_fill(spoilt, 0.0)
        logw = logw.masked_fill_(~self.alive, -math.inf).view(-1).log_softmax(0).view(2, -1)
        time = self.steps.add_(1).double()
        pool = logw[0].exp().sum().log_().sub_(time.log1p())  # those who change now: 1 / (t + 1) of those who may
        logw[0].add_(time.log() - time.log1p())
        self.logw.copy_(torch.logaddexp(logw, self._refill + pool))

    def lose(self, lost: Tensor) -> None:
        """Never trust these again, [K] bool; unless nobody would be left: then nothing happens."""
        left = self.alive & ~lost
        self.alive.copy_(torch.where(left.any(), left, self.alive))
