"""The variance of units given a latent detector, with its gradient in closed form (B 4.3.3, eq. 4.11 and App. B.2)."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import torch
from torch import Tensor, library

from structlearn.structure.table import handles
from structlearn.structure.tracker import Axes, Call, Tracker

if TYPE_CHECKING:
    from collections.abc import Sequence

CACHED: Final = 1 << 16
"""Values of a part that are worked on together on a CPU: a dozen passes over them then stay in its cache. Measured on
one core with 128 x 64 x 32 x 32 values: 2.5 times as fast as all at once."""


class Moments(NamedTuple):
    """Sums over samples, for each unit [C]. With p1 = 1 - p0 they are exact where a unit is never above 0."""

    p0: Tensor
    """Of exp(-relu(y))."""
    p0_y: Tensor
    """Of p0 y."""
    p1_y: Tensor
    """Of (1 - p0) y."""


def latent_variance(
    y: Tensor, axis: int, mean0: Tensor, mean1: Tensor, *, scale: float = 1.0, room: Room | None = None
) -> tuple[Tensor, Moments]:
    """`scale` times the sum over units of the mean over samples of sum_b p_b(y) (y - mean_b)^2 (B eq. 4.11).

    With p1 = 1 - exp(-relu(y)) and p0 = exp(-relu(y)). Samples are all entries of a unit: examples, and the positions
    of a map. B 4.11 drops the 1/K of B 4.10; here it is the mean.

    From (y - m1)^2 + p0 (m1 - m0) (2 y - m0 - m1), which is the same, five sums for each unit make both this and what
    the running averages need. The gradient with respect to y is that of B App. B.2 with sigma = p1:

        2 (y - m1) + 2 p0 (m1 - m0) - [y > 0] p0 (m1 - m0) (2 y - m0 - m1)

    It is made in the same pass, and kept in place of y: so whatever comes after may overwrite y. It can be taken once.

    Args:
        y: [batch, ...], its units on one axis.
        axis: Which; 1 or -1.
        mean0: [C], E[Y | B=0]; no gradient flows to it.
        mean1: [C], E[Y | B=1].
        scale: The factor of the answer; not of the moments.
        room: Keeps the memory of the gradient from step to step: fresh memory costs a CPU as much as all else here.
    """
    loss, *moments = _LatentVariance.apply(y, axis % y.dim(), mean0, mean1, scale, room or Room())  # type: ignore[no-untyped-call]
    return loss, Moments(*moments)


class Room:
    """Memory for one gradient at a time. It is not copied with the network that it is for."""

    def __init__(self) -> None:
        self._spare: Tensor | None = None

    def take(self, like: Tensor) -> Tensor:
        """Memory laid out as a tensor."""
        spare, self._spare = self._spare, None
        if spare is None or sys.getrefcount(spare) > 2 or spare._use_count() > 1:  # type: ignore[attr-defined]  # noqa: SLF001
            return torch.empty_like(like)  # somebody has kept the last one, here or within torch
        same = (spare.shape, spare.dtype, spare.stride()) == (like.shape, like.dtype, like.stride())
        return spare if same and like.device == spare.device else torch.empty_like(like)

    def give(self, back: Tensor) -> None:
        """It is free again once the backward pass that it is used in is over."""
        if back.device.type == "cpu":  # the others keep freed memory at hand by themselves
            self._spare = back

    def __deepcopy__(self, memo: Any) -> Room:
        return Room()

    def __reduce__(self) -> tuple[type[Room], tuple[()]]:
        return Room, ()


class _LatentVariance(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, y: Tensor, axis: int, mean0: Tensor, mean1: Tensor, scale: float, room: Room
    ) -> tuple[Tensor, ...]:
        slope = room.take(y) if ctx.needs_input_grad[0] else y.new_empty(0)
        factor = scale * y.shape[axis] / max(1, y.numel())
        whole = y.dtype == mean0.dtype  # in half precision a slope times 1e-8 would be 0: the factor waits
        loss, *moments = _latent_variance(y, axis, mean0, mean1, factor if whole else 1.0, slope)
        ctx.slope, ctx.room, ctx.factor = slope, room, 1.0 if whole else factor
        loss = loss * ctx.factor
        ctx.mark_non_differentiable(*moments)
        ctx.set_materialize_grads(False)
        return loss, *moments

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise RuntimeError("latent_variance has first derivatives only; call backward without create_graph")
        if ctx.slope is None:
            raise RuntimeError("the gradient of latent_variance can be taken once; make another forward pass")
        slope, ctx.slope = ctx.slope, None
        gradient = gradients[0] * ctx.factor
        if slope.dtype != gradient.dtype:
            slope.copy_(slope.to(gradient.dtype).mul_(gradient))
        elif gradient.device.type != "cpu" or gradient != 1:  # one pass less where asking costs nothing
            slope.mul_(gradient)
        ctx.room.give(slope)
        return slope, None, None, None, None, None


@library.custom_op("structlearn::latent_variance", mutates_args=("slope",))
def _latent_variance(
    y: Tensor, axis: int, mean0: Tensor, mean1: Tensor, factor: float, slope: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`factor` times the sum over units and samples, and three moments; its gradient goes into `slope`, if not empty.

    One operator, so that Structure has a rule for it.
    """
    units = y.shape[axis]
    shape = [units if place == axis else 1 for place in range(y.dim())]
    others = [place for place in range(y.dim()) if place != axis]
    samples = y.numel() / units
    m0, m1 = mean0.view(shape), mean1.view(shape)
    middle, start, turned = m0 + m1 + 2, -2 * factor * m0, factor * (m1 - m0)
    parts = _parts(y)
    outs = _parts(slope) if slope.numel() else ()
    above, p0, turn = (torch.empty_like(parts[0], dtype=mean0.dtype) for _ in range(3))
    table = mean0.new_empty(len(parts), 5, units)
    rows = iter(table.flatten(0, 1).unbind())
    for number, part in enumerate(parts):
        value = part.to(mean0.dtype)
        if len(value) < len(p0):  # the last part of a batch
            above, p0, turn = above[: len(value)], p0[: len(value)], turn[: len(value)]
        torch.clamp(value, min=0.0, out=above)
        torch.neg(above, out=p0).exp_()
        torch.sum(value, others, out=next(rows))
        torch.sum(torch.mul(value, value, out=turn), others, out=next(rows))
        torch.sum(p0, others, out=next(rows))
        torch.sum(above, others, out=next(rows))
        torch.sum(above.mul_(p0), others, out=next(rows))
        if outs:  # masks of bools would take as long as all the rest
            turn = torch.sub(p0.mul_(middle), above, alpha=2, out=turn).sub_(2.0)
            torch.ops.aten.threshold_backward.grad_input(turn, value, 0, grad_input=turn)
            own = outs[number] if slope.dtype == value.dtype else p0
            torch.add(start, value, alpha=2 * factor, out=own).addcmul_(turn, turned)
            if own is p0:
                outs[number].copy_(own)
    total, squares, p0_sum, above_sum, p0_above = table.sum(0)
    p0_y = total - above_sum + p0_above
    spread = squares - mean1 * (2 * total - samples * mean1)
    spread = spread + (mean1 - mean0) * (2 * p0_y - (mean0 + mean1) * p0_sum)
    return factor * spread.sum(), p0_sum.clone(), p0_y, above_sum - p0_above


@_latent_variance.register_fake
def _shapes(_y: Tensor, _axis: int, mean0: Tensor, *_: Any) -> tuple[Tensor, ...]:
    return mean0.new_empty(()), *(torch.empty_like(mean0) for _ in range(3))


@handles("structlearn.latent_variance")
def _rule(tracker: Tracker, call: Call) -> list[Axes]:
    """As BatchNorm: the averages go along with the input's units."""
    given, axis = tracker.get(call.args[0]), call.args[1]
    beside = [tracker.get(each) for each in call.args[2:4]]
    for axes in beside:
        tracker.mark(axes.labels[0], "along")
    units = tracker.meet([(given, axis), *[(axes, 0) for axes in beside]], "they are the input's channels")
    return [Axes([], data=True), *[Axes([units], data=True) for _ in range(3)]]


def _parts(y: Tensor) -> Sequence[Tensor]:
    """Along the batch; on a CPU so many examples at a time that they stay in the cache."""
    if y.device.type != "cpu" or y.numel() <= CACHED:
        return [y]
    parts: Sequence[Tensor] = y.split(max(1, CACHED * len(y) // y.numel()))
    return parts
