"""The variance of units given a latent detector, with its gradient in closed form (B 4.3.3, eq. 4.11 and App. B.2)."""

from __future__ import annotations

import functools
import logging
import math
from itertools import repeat
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import torch
from torch import Tensor, library

from structlearn.regularizers import fused
from structlearn.regularizers.memory import Room, is_alone
from structlearn.structure.table import handles
from structlearn.structure.tracker import Axes, Call, Tracker

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

CACHED: Final = 1 << 16
"""Values of a part that torch works on together on a CPU: a dozen passes over them then stay in its cache. Measured on
one core with 128 x 64 x 32 x 32 values: 2.5 times as fast as all at once."""

_log = logging.getLogger(__name__)


class Moments(NamedTuple):
    """Sums over samples, for each unit [C]. With p1 = 1 - p0 they are exact where a unit is never above 0."""

    p0: Tensor
    """Of exp(-relu(y))."""
    p0_y: Tensor
    """Of p0 y."""
    p1_y: Tensor
    """Of (1 - p0) y."""


class Seen(NamedTuple):
    """What `latent_variance` gives back."""

    y: Tensor
    """The same values, to be used instead of those given: the gradient is added where theirs comes by."""
    loss: Tensor
    moments: Moments


def latent_variance(
    y: Tensor,
    axis: int,
    mean0: Tensor,
    mean1: Tensor,
    *,
    scale: float = 1.0,
    overwritten: bool = False,
    room: Room | None = None,
) -> Seen:
    """`scale` times the sum over units of the mean over samples of sum_b p_b(y) (y - mean_b)^2 (B eq. 4.11).

    With p1 = 1 - exp(-relu(y)) and p0 = exp(-relu(y)). Samples are all entries of a unit: examples, and the positions
    of a map. B 4.11 drops the 1/K of B 4.10; here it is the mean.

    From (y - m1)^2 + p0 (m1 - m0) (2 y - m0 - m1), which is the same, five sums for each unit make both this and what
    the running averages need. The gradient with respect to y is that of B App. B.2 with sigma = p1:

        2 (y - m1) + 2 p0 (m1 - m0) - [y > 0] p0 (m1 - m0) (2 y - m0 - m1)

    Both are one pass over the values on a GPU, and on a CPU with a C compiler; the second adds to the gradient that
    comes back to y in the same pass. (Rejected: a gradient made in the forward pass and kept, which autograd adds; it
    is one more write, and pushes y out of the cache before the rectifier reads it.)

    In float32 the loss (not its gradient) of a unit whose mean is hundreds of deviations from 0 is right to 1 %.

    Args:
        y: [batch, ...], its units on one axis.
        axis: Which; 1 or -1.
        mean0: [C], E[Y | B=0]; no gradient flows to it.
        mean1: [C], E[Y | B=1].
        scale: The factor of the answer; not of the moments.
        overwritten: What comes next changes y in place: then a copy of it is kept for the backward pass.
        room: Keeps the memory of the gradient from step to step: fresh memory costs a CPU as much as all else here.
    """
    found = _LatentVariance.apply(y, axis % y.dim(), mean0, mean1, scale, overwritten, room or Room())  # type: ignore[no-untyped-call]
    loss, p0, p0_y, p1_y = found[:4]
    return Seen(y if overwritten else found[4], loss, Moments(p0, p0_y, p1_y))


class _LatentVariance(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, y: Tensor, axis: int, mean0: Tensor, mean1: Tensor, scale: float, overwritten: bool, room: Room
    ) -> tuple[Tensor, ...]:
        ctx.axis, ctx.room, ctx.factor = axis, room, scale * y.shape[axis] / max(1, y.numel())
        loss, p0, p0_y, p1_y, *means = _latent_variance(y, axis, mean0, mean1)
        moments = p0, p0_y, p1_y
        if ctx.needs_input_grad[0]:
            ctx.save_for_backward(room.take(y).copy_(y) if overwritten else y)
            ctx.means = means  # not saved: a checkpointed network would make them again, of averages that have gone on
        ctx.mark_non_differentiable(*moments)
        ctx.set_materialize_grads(False)
        return loss * ctx.factor, *moments, *(() if overwritten else (y,))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        alone = is_alone(gradients, 4)
        upstream = gradients[4] if len(gradients) > 4 else None
        if gradients[0] is None:
            return upstream, None, None, None, None, None, None
        if torch.is_grad_enabled():
            raise RuntimeError("latent_variance has first derivatives only; call backward without create_graph")
        try:
            (y,) = ctx.saved_tensors
        except RuntimeError as error:
            if "inplace" not in str(error):
                raise
            problem = (
                "what comes before a rectifier was changed in place after the rectifier, and SHADE still needs it; "
                "change a copy instead"
            )
            raise RuntimeError(problem) from error
        ours = alone and upstream is not None and upstream.stride() == y.stride()
        out: Tensor = upstream if ours and upstream is not None else ctx.room.take(y)
        mean0, mean1 = ctx.means
        followed = type(y) is not Tensor or torch.compiler.is_compiling()  # by a compiler: it wants an operator
        add = _latent_slope if followed else _slope_into
        add(y, ctx.axis, mean0, mean1, gradients[0] * ctx.factor, upstream, out)
        return out, None, None, None, None, None, None


@library.custom_op("structlearn::latent_variance", mutates_args=())
def _latent_variance(
    y: Tensor, axis: int, mean0: Tensor, mean1: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The sum over units and samples, three moments, and the means for the backward pass, before which they change.

    One operator, so that Structure has a rule for it; and copies of the means that are made outside of it are made
    again in the backward pass of a compiled network, when it is too late.
    """
    if (found := fused.moments(y, axis, mean0, mean1)) is not None:
        return *found, mean0.clone(), mean1.clone()
    samples = y.numel() / y.shape[axis]
    total, squares, p0_sum, above_sum, p0_above = _sums(y, axis, mean0.dtype)
    p0_y = total - above_sum + p0_above
    spread = squares - mean1 * (2 * total - samples * mean1)
    spread = spread + (mean1 - mean0) * (2 * p0_y - (mean0 + mean1) * p0_sum)
    return spread.sum(), p0_sum.clone(), p0_y, above_sum - p0_above, mean0.clone(), mean1.clone()


@_latent_variance.register_fake
def _shapes(_y: Tensor, _axis: int, mean0: Tensor, _mean1: Tensor) -> tuple[Tensor, ...]:
    return mean0.new_empty(()), *(torch.empty_like(mean0) for _ in range(5))


def _slope_into(
    y: Tensor, axis: int, mean0: Tensor, mean1: Tensor, factor: Tensor, upstream: Tensor | None, out: Tensor
) -> None:
    """The gradient of `factor` times the sum, and what comes from upstream."""
    if fused.slopes(y, axis, mean0, mean1, factor, upstream, out):
        return
    shape = [-1 if place == axis else 1 for place in range(y.dim())]
    add = _at_once(_add_slope) if y.is_cuda else _add_slope
    others = repeat(None) if upstream is None else _parts(upstream)
    for part, given, own in zip(_parts(y), others, _parts(out)):  # noqa: B905  what is not given has no end
        add(part, mean0.view(shape), mean1.view(shape), factor, given, own)


_latent_slope = library.custom_op("structlearn::latent_slope", mutates_args=("out",))(_slope_into)


def _sums(y: Tensor, axis: int, dtype: torch.dtype) -> Tensor:
    """[5, C], of any tensors; `fused.sums` says of what."""
    outer, inner = math.prod(y.shape[:axis]), math.prod(y.shape[axis + 1 :])
    flat = y.reshape(outer, y.shape[axis], inner)
    sums = _at_once(_five) if y.is_cuda else _five
    return torch.stack([sums(part, dtype) for part in _parts(flat)]).sum(0)


def _five(y: Tensor, dtype: torch.dtype) -> Tensor:
    y = y.to(dtype)
    above = y.clamp(min=0)
    p0 = (-above).exp()
    return torch.stack([each.sum((0, 2)) for each in (y, y * y, p0, above, p0 * above)])


def _add_slope(y: Tensor, mean0: Tensor, mean1: Tensor, factor: Tensor, upstream: Tensor | None, out: Tensor) -> Tensor:
    y = y.to(mean0.dtype)  # in half precision the factor would make it 0
    p0 = (-y.clamp(min=0)).exp()
    slope = 2 * (y - mean1) + (mean1 - mean0) * p0 * torch.where(y > 0, mean0 + mean1 + 2 - 2 * y, 2.0)
    return out.copy_(slope * factor if upstream is None else slope * factor + upstream)


def _parts(y: Tensor) -> Sequence[Tensor]:
    """Along the batch; on a CPU so many examples at a time that they stay in the cache."""
    if y.device.type != "cpu" or y.numel() <= CACHED:
        return [y]
    parts: Sequence[Tensor] = y.split(max(1, CACHED * len(y) // y.numel()))
    return parts


@functools.cache
def _at_once(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """By one kernel; step by step where torch cannot compile, which it says once."""
    made: Callable[..., Tensor] | None = None

    def call(*arguments: Any) -> Tensor:
        nonlocal made
        try:
            made = made or torch.compile(function, dynamic=True)
            return made(*arguments)
        except Exception as error:
            if made is function or isinstance(error, torch.cuda.OutOfMemoryError):
                raise
            _log.warning("torch cannot compile SHADE's %s, which will be slower: %s", function.__name__, error)
            made = function
            return function(*arguments)

    return call


@handles("structlearn.latent_variance")
def _rule(tracker: Tracker, call: Call) -> list[Axes]:
    """As BatchNorm: the averages go along with the input's units."""
    given, axis = tracker.get(call.args[0]), call.args[1]
    beside = [tracker.get(each) for each in call.args[2:4]]
    for axes in beside:
        tracker.mark(axes.labels[0], "along")
    units = tracker.meet([(given, axis), *[(axes, 0) for axes in beside]], "they are the input's channels")
    return [Axes([], data=True), *[Axes([units], data=True) for _ in range(5)]]
