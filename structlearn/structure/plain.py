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
                    labels[axis] = tracker.lose(axes, axis, after, f"{call.name} changes their number")
        answers.append(Axes(labels, axes.data))
    return answers


def in_space(tracker: Tracker, call: Call) -> list[Axes]:
    """Neighbours along the last axes are mixed, as many axes as the operator's name says: places, never units."""
    axes = tracker.get(call.args[0])
    dimensions = next(int(each) for each in "123" if f"{each}d" in call.name)
    tracker.tie(axes.labels[-dimensions:], f"{call.name} mixes neighbours")
    return same_axes(tracker, call)


@handles("constant_pad_nd")
def _pad(tracker: Tracker, call: Call) -> list[Axes]:
    axes = tracker.get(call.args[0])
    tracker.tie(axes.labels[len(axes.labels) - len(call.args[1]) // 2 :], "others are put beside them")
    return same_axes(tracker, call)


handles(
    "clone", "detach", "alias", "contiguous", "_to_copy", "lift_fresh", "lift_fresh_copy", "native_dropout",
    "bernoulli", "bernoulli_", "normal_", "uniform_", "random_", "exponential_", "zeros_like", "ones_like",
    "empty_like", "full_like", "rand_like", "randn_like",
)(same_axes)  # fmt: skip
handles(
    "_adaptive_avg_pool1d", "_adaptive_avg_pool2d", "_adaptive_avg_pool3d", "_upsample_nearest_exact2d",
    "adaptive_avg_pool1d", "adaptive_max_pool2d", "adaptive_max_pool3d", "avg_pool1d", "avg_pool2d", "avg_pool3d",
    "fractional_max_pool2d", "max_pool2d_with_indices", "max_pool3d_with_indices", "mkldnn_max_pool2d",
    "reflection_pad1d", "reflection_pad2d", "reflection_pad3d", "replication_pad1d", "replication_pad2d",
    "replication_pad3d", "upsample_bicubic2d", "upsample_bilinear2d", "upsample_linear1d", "upsample_nearest1d",
    "upsample_nearest2d",
)(in_space)  # fmt: skip


@handles("_softmax", "_log_softmax", "softmax", "log_softmax", "logcumsumexp", "cumsum", "cumprod")
def _along_one(tracker: Tracker, call: Call) -> list[Axes]:
    axes = tracker.get(call.args[0])
    tracker.tie([axes.labels[call.args[1]]], f"{call.name} is over them")
    return same_axes(tracker, call)


@handles("copy_")
def _copy(tracker: Tracker, call: Call) -> list[Axes]:
    """What was there before has as many units: it is a part of others, or a buffer."""
    return pointwise(tracker, call.of(*call.args[:2]))


@handles(
    "empty", "zeros", "ones", "full", "rand", "randn", "arange", "new_empty", "new_zeros", "new_ones", "new_full",
    "scalar_tensor", "empty_strided", "new_empty_strided", "eye", "linspace", "fill_", "zero_",
)  # fmt: skip
def _made(_: Tracker, call: Call) -> list[Axes]:
    """Constants: they have whatever length they are given."""
    return [Axes([None] * result.dim(), data=False) for result in call.results]
