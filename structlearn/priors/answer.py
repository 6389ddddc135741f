"""What the theorem says about a penalty and a posterior."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from structlearn.priors.polynomials import written

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

    from structlearn.priors.check import Check
    from structlearn.priors.density import Prior
    from structlearn.priors.quadrature import Array


@dataclass(frozen=True)
class Answer:
    """Is there a prior alpha with r = KL(posterior || alpha) + constant, and which?

    Printed, it is a short table.

    Attributes:
        penalty: r, in words.
        posterior: In words.
        exists: True or False; None: the theorem does not say, for its conditions do not hold.
        why: In a sentence.
        outside: Which of the theorem's conditions do not hold, or are not seen to.
        quotient: F^-1[F r / F beta_0(-.)] as coefficients of 1, theta, theta^2, ...: (-s^2, 0, 1) for L2 under a
            Gaussian. None if it is no polynomial, or not the same for all variances.
        prior: The prior, or where `exists` is not True a candidate, whose `check` says how close it is; or None.
        check: The numbers of the check; None without a prior.
        spread: Where the variance is learned: by how much A's coefficients vary with it, at most, relative to
            the terms they consist of.
        cutoff: n of a regularised candidate: frequencies above have been taken away.
    """

    penalty: str
    posterior: str
    exists: bool | None
    why: str
    outside: tuple[str, ...] = ()
    quotient: Array | None = None
    prior: Prior | None = None
    check: Check | None = None
    spread: float | None = None
    cutoff: float | None = None

    @property
    def residual(self) -> float | None:
        """The largest difference between KL(posterior || prior) and r + ln kappa; None without a prior."""
        return None if self.check is None else self.check.residual

    def curve(self, theta: ArrayLike) -> dict[str, Array]:
        """What a plot of the prior needs: theta, density and log_density."""
        if self.prior is None:
            raise ValueError(f"there is no prior to be drawn: {self.why}")
        points = np.asarray(theta, dtype=np.float64)
        return {"theta": points, "density": self.prior.density(points), "log_density": self.prior.log_density(points)}

    def __str__(self) -> str:
        says = {True: "exists", False: "does not exist", None: "not known: outside the theorem's conditions"}
        rows = [
            ("penalty", self.penalty),
            ("posterior", self.posterior),
            ("prior", says[self.exists]),
            ("because", self.why),
            *(("outside", text) for text in self.outside),
        ]
        if self.quotient is not None:
            rows.append(("quotient", written(self.quotient, "theta")))
        if self.spread is not None:
            rows.append(("spread of A", f"{self.spread:.1e} over the variances"))
        if self.prior is not None and self.check is not None:
            rows += self._numbers(self.prior, self.check)
        return "\n".join(f"{name:<12} {text}" for name, text in rows)

    def _numbers(self, prior: Prior, check: Check) -> list[tuple[str, str]]:
        """The rows about the prior."""
        rows = [("candidate", f"regularised, frequencies up to {self.cutoff:.4g}")] if self.cutoff is not None else []
        if prior.dimension == 1:
            mean = 0.0 if abs(prior.mean) < 1e-12 * prior.variance**0.5 else prior.mean
            rows += [("mean", f"{mean:.6g}"), ("variance", f"{prior.variance:.6g}")]
        else:
            rows.append(("E ||.||^2", f"{prior.second_moment:.6g}"))
        low, high = check.mu[[0, -1]]
        return [
            *rows,
            ("ln kappa", f"{prior.log_kappa:.6g}"),
            (
                "residual",
                f"{check.residual:.1e} = max |KL - penalty - ln kappa| for means from {low:.3g} to {high:.3g}",
            ),
            ("mass", f"{check.mass:.1e} from 1"),
        ]
