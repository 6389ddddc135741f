"""The switch distribution: which of several predictors to trust, where the best one changes over time."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from structlearn.alrao.hand import at_hand, library
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
    grow by 1e-8 of themselves a step, which float32 would drop. (Ranks that mix their networks mix these as float32.)

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
        self._known: tuple[Any, ...] | None = None
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
        """The log probability of each predictor, [K], float64; -inf for one that is lost. Only to be read."""
        if self._known is None or self._known[1:] != self._place():
            self._remember()
        assert self._known is not None
        known: Tensor = self._known[0]
        return known

    @torch.no_grad()
    def _remember(self) -> None:
        """Work out the posterior: right after an update, where it takes a tenth of the time that it takes later."""
        xp, logw, alive = library(self.logw), at_hand(self.logw), at_hand(self.alive)
        with np.errstate(all="ignore"):
            both = xp.where(alive, xp.logaddexp(logw[0], logw[1]), -math.inf)
            both = both - both.max()
            self._known = torch.as_tensor(both - xp.log(xp.exp(both).sum())), *self._place()

    def _place(self) -> tuple[int, ...]:
        """Changes when anybody else writes into the state: torch counts that, but not what numpy writes here."""
        logw, alive = self.logw, self.alive
        return logw.data_ptr(), logw._version, alive.data_ptr(), alive._version

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
        xp, logw, alive, steps = library(self.logw), *map(at_hand, (self.logw, self.alive, self.steps))
        said, count = at_hand(mean.to(self.logw)), at_hand(examples.to(self.logw))
        nothing = at_hand(torch.as_tensor(spoilt))
        with np.errstate(all="ignore"):
            finite = sound(said) & alive
            nothing = nothing | ~finite.any()
            alive &= finite | nothing
            if self.count == 1:
                return
            evidence = xp.where(finite, said if self.per == "batch" else said * count, -math.inf)
            weights = xp.where(alive, logw + xp.where(nothing, 0.0 * logw[0], evidence), -math.inf)
            weights = weights - weights.max()
            weights = weights - xp.log(xp.exp(weights).sum())
            steps += 1
            time = steps * 1.0
            pool = xp.log(xp.exp(weights[0]).sum()) - xp.log1p(time)  # those who change now: 1/(t+1) of those who may
            weights[0] += xp.log(time) - xp.log1p(time)
            logw[...] = xp.logaddexp(weights, at_hand(self._refill) + pool)
        self._remember()

    def lose(self, lost: Tensor) -> None:
        """Never trust these again, [K] bool; unless nobody would be left: then nothing happens."""
        left = self.alive & ~lost
        self.alive.copy_(torch.where(left.any(), left, self.alive))
