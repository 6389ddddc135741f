"""What a run puts into its network, or between it and the data, so that it generalises."""

from typing import Annotated, Literal

from pydantic import Tag

from hpc.config.types import NonNegative, by_name, section


@section
class Shade:
    """SHADE: units say no more than whether they have found their pattern. For networks that rectify (ReLU, MaxMin)."""

    name: Literal["shade"] = "shade"
    strength: NonNegative = 1e-3
    """The term's factor in the loss of a mini-batch: the sum over units of their variance, given that the pattern was
    found or not. Choose it on validation samples."""


RegularizerConfig = Annotated[Annotated[Shade, Tag("shade")], by_name("")]
