"""Operators that work entry by entry, or leave channels where they are; and those that nothing is known of."""

from __future__ import annotations

from typing import TYPE_CHECKING

from structlearn.structure.table import handles
from structlearn.structure.tracker import Axes, Call, Tracker

if TYPE_CHECKING:
    from structlearn.structure.labels import Labels


def unknown(tracker: Tracker, call: Call) -> list[Axes]:
    """Nothing is known of this operator: all that goes into it is never cut."""
    given = [tracker.get(each) for each in call.tensors]
    for axes in given:
        tracker.tie(axes.labels, f"{call.name} needs all of it")
    data = any(axes.data or axes.weight for axes in given)
    return [Axes([None] * result.dim(), data) for result in call.results]


@handles("hardswish", "hardswish_", "_prelu_kernel", "log_sigmoid_forward", "rrelu_with_noise")  # torch tags the others
def pointwise(tracker: Tracker, call: Call) -> list[Axes]:
    """Entry by entry, broadcast: a channel is the same in all arguments (a residual sum, a scale, an activation)."""
    given = [(each, tracker.get(each)) for each in call.tensors]
    given.sort(key=lambda pair: -pair[0].dim())  # a weight times its scale keeps the weight's labels
    data = any(axes.data for _, axes in given)
    answers = []
    for result in call.results:
        labels: list[Labels | None] = []
        for axis, size in enumerate(result.shape):
            back = axis - result.dim()
            places = [(axes, back) for each, axes in given if each.dim() >= -back and each.shape[back] == size]
            labels.append(tracker.meet(places, "it meets an axis of the input") if size > 1 else None)
        weights = [axes for _, axes in given if axes.weight]
        if data or len(weights) > 1:  # of a weight and its scale, the next product says what the weight is for
            for axes in weights:
                for each in axes.labels:
                    tracker.mark(each, "along")
        answers.append(Axes(labels, data))
    return answers


def same_axes(tracker: Tracker, call: Call) -> list[Axes]:
    """Axes keep their places; those whose length changes (height and width) have no labels, or are never cut."""
    axes = tracker.get(call.args[0])
    answers = []
    for result in call.results:
        labels: list[Labels | None] = [None] * result.dim()
        if result.dim() == call.args[0].dim():
            for axis, (before, after) in enumerate(zip(call.args[0].shape, result.shape, strict=True)):
                if before == after:
                    labels[axis] = axes.labels[axis]
                else:
                    tracker.tie([axes.labels[axis]], f"{call.name} changes their number")
        answers.append(Axes(labels, axes.data))
    return answers


handles(
    "clone", "detach", "alias", "contiguous", "_to_copy", "lift_fresh", "lift_fresh_copy", "native_dropout",
    "bernoulli", "zeros_like", "ones_like", "empty_like", "full_like", "rand_like", "randn_like",
    "max_pool2d_with_indices", "cumsum", "max_pool3d_with_indices", "avg_pool1d", "avg_pool2d", "avg_pool3d",
    "_adaptive_avg_pool2d", "_adaptive_avg_pool3d", "adaptive_max_pool2d", "adaptive_max_pool3d",
    "upsample_nearest1d", "upsample_nearest2d", "upsample_bilinear2d", "upsample_bicubic2d", "upsample_linear1d",
    "constant_pad_nd", "reflection_pad1d", "reflection_pad2d", "replication_pad1d", "replication_pad2d",
    "mkldnn_max_pool2d",
)(same_axes)  # fmt: skip


@handles("_softmax", "_log_softmax", "softmax", "log_softmax", "logcumsumexp")
def _along_one(tracker: Tracker, call: Call) -> list[Axes]:
    axes = tracker.get(call.args[0])
    tracker.tie([axes.labels[call.args[1]]], f"{call.name} is over them")
    return same_axes(tracker, call)


@handles("copy_")
def _copy(tracker: Tracker, call: Call) -> list[Axes]:
    """What was there before does not matter."""
    return pointwise(tracker, call.of(call.args[1]))


@handles(
    "empty", "zeros", "ones", "full", "rand", "randn", "arange", "new_empty", "new_zeros", "new_ones", "new_full",
    "scalar_tensor", "empty_strided", "new_empty_strided", "eye", "linspace", "fill_", "zero_",
)  # fmt: skip
def _made(_: Tracker, call: Call) -> list[Axes]:
    """Constants: they have whatever length they are given."""
    return [Axes([None] * result.dim(), data=False) for result in call.results]
