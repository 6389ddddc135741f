"""From scores at all positions of a map to one score a class."""

from __future__ import annotations

from typing import Literal, TypeAlias

from torch import Tensor, nn

from structlearn.checks import check_choice, check_count

Pooling: TypeAlias = Literal["mean", "weldon"]
"""How a network goes from maps to classes: the mean over positions and a linear layer, or WELDON's way round."""


class Weldon(nn.Module):
    """WELDON's pooling: (batch, classes, *positions) to (batch, classes).

    Durand and others 2016: a class's score is the mean of its largest scores plus that of its smallest ones, evidence
    for it and against it, over all positions. B 5.4.3 and 4.4.2 have one of each, max + min. What comes before it is a
    1 x 1 convolution, a linear layer at each position.

    Args:
        regions: How many of the largest scores, and as many of the smallest.
    """

    def __init__(self, regions: int = 1) -> None:
        super().__init__()
        self.regions = check_count("regions", regions)

    def forward(self, scores: Tensor) -> Tensor:
        """One score a class."""
        flat = scores.flatten(2)
        try:  # not an `if`, and [0] and not two names: so that torch.fx can follow
            largest, smallest = flat.topk(self.regions)[0], flat.topk(self.regions, largest=False)[0]
        except RuntimeError as error:
            if flat.shape[2] >= self.regions:
                raise
            raise ValueError(
                f"WELDON's pooling takes the {self.regions} largest and the {self.regions} smallest scores of each "
                f"class (regions), but the maps have {flat.shape[2]} positions; give fewer regions, or larger images"
            ) from error
        return largest.mean(2) + smallest.mean(2)

    def extra_repr(self) -> str:
        """How many regions, in what a network prints."""
        return f"regions={self.regions}"


def check_pooling(pooling: str, regions: int) -> None:
    """Raise ValueError unless there is such a pooling, and it takes so many regions."""
    check_choice("pooling", pooling, ("mean", "weldon"))
    if pooling == "mean" and regions != 1:
        raise ValueError(
            f"regions says how many scores WELDON's pooling takes, but pooling is 'mean' and regions {regions!r}; give "
            f"pooling='weldon', or leave regions out"
        )
