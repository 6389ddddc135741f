"""Operators that layers are: products, convolutions, embeddings, attention, normalisation."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from structlearn.structure.plain import unknown
from structlearn.structure.table import handles
from structlearn.structure.tracker import Axes, Call, Tracker, tensors

if TYPE_CHECKING:
    from structlearn.structure.labels import Labels

# --- products ----------------------------------------------------------------------------------------------


def contract(tracker: Tracker, one: tuple[Axes, int], other: tuple[Axes, int], what: str) -> None:
    """Two axes are multiplied and summed over: the channels of the one go into the weights of the other."""
    labels = tracker.meet([one, other], "it is multiplied with the input")
    if one[0].data and other[0].data:
        tracker.tie([labels], f"{what} multiplies them with each other")
    elif any(axes.data for axes, _ in (one, other)) and any(axes.labels[axis] is None for axes, axis in (one, other)):
        tracker.tie([labels], f"{what} multiplies them with constants")
    for (axes, axis), (partner, _) in ((one, other), (other, one)):
        if axes.weight and partner.data:
            for place, each in enumerate(axes.labels):
                tracker.mark(each, "in" if place == axis % len(axes.labels) else "out")


@handles("mm", "bmm")
def _product(tracker: Tracker, call: Call) -> list[Axes]:
    left, right = tracker.get(call.args[0]), tracker.get(call.args[1])
    contract(tracker, (left, -1), (right, -2), call.name)
    batch = [tracker.meet([(left, 0), (right, 0)], "it meets the batch")] if call.args[0].dim() == 3 else []
    return [Axes([*batch, left.labels[-2], right.labels[-1]], left.data or right.data)]


@handles("addmm", "baddbmm")
def _add_product(tracker: Tracker, call: Call) -> list[Axes]:
    (product,) = _product(tracker, call.of(*call.args[1:3]))
    bias = tracker.get(call.args[0])
    if bias.weight and product.data:
        for each in bias.labels:
            tracker.mark(each, "out")
    if bias.labels and call.args[0].shape[-1] == call.results[0].shape[-1]:
        product.labels[-1] = tracker.meet([(product, -1), (bias, -1)], "it meets an axis of the input")
    return [product]


@handles("mv")
def _matrix_vector(tracker: Tracker, call: Call) -> list[Axes]:
    left, right = tracker.get(call.args[0]), tracker.get(call.args[1])
    contract(tracker, (left, -1), (right, -1), call.name)
    return [Axes([left.labels[0]], left.data or right.data)]


@handles("convolution", "_convolution")
def _convolution(tracker: Tracker, call: Call) -> list[Axes]:
    given, weight, bias = tracker.get(call.args[0]), tracker.get(call.args[1]), tracker.get(call.args[2])
    transposed, groups = call.args[6], call.args[8]
    if weight.data:
        return unknown(tracker, call)
    tracker.tie(weight.labels[2:], "kernels keep their size")
    tracker.tie([given.labels[0], *given.labels[2:]], "a convolution goes along them")
    weight = Axes([*weight.labels[:2], *[None] * (call.args[1].dim() - 2)], data=False)
    inputs, outputs = (0, 1) if transposed else (1, 0)
    channels, many = call.args[0].shape[1], call.results[0].shape[1]
    if groups == 1:
        contract(tracker, (given, 1), (weight, inputs), call.name)
        made = weight.labels[outputs]
    elif groups == channels:  # depthwise: what goes out of a channel has come in there
        made = _depthwise(tracker, given, weight, many // groups, transposed=transposed)
    else:
        made = _grouped(tracker, given, weight, groups, transposed=transposed)
    if made is not None and (own := bias.labels[0] if bias.labels else None) is not None:
        tracker.same.unite(made, own)
        tracker.mark(own, "along" if 1 < groups == channels else "out")
    return [Axes([None, made, *[None] * (call.results[0].dim() - 2)], data=True)]


def _depthwise(tracker: Tracker, given: Axes, weight: Axes, many: int, *, transposed: bool) -> Labels | None:
    came = given.labels[1]
    for each in weight.labels[:2]:
        tracker.mark(each, "along")
    if transposed and many > 1:
        tracker.tie([came, *weight.labels], "a transposed convolution of this kind")
        return None
    made = weight.labels[0]
    if came is None:
        tracker.tie([made], "they are made of the input's channels, one by one")
    elif made is not None:
        tracker.same.unite(made, np.repeat(came, many))
    else:  # one kernel for all of them
        made = np.repeat(came, many)
    return made


def _grouped(tracker: Tracker, given: Axes, weight: Axes, groups: int, *, transposed: bool) -> Labels | None:
    """All groups stay, and lose the same of their channels."""
    came, whole, part = given.labels[1], weight.labels[0], weight.labels[1]
    for axis, each in enumerate(weight.labels[:2]):
        tracker.mark(each, "in" if axis == (not transposed) else "out")
    if whole is not None:
        tracker.same.unite(whole.reshape(groups, -1), whole.reshape(groups, -1)[:1])
    inside = whole.reshape(groups, -1)[0] if transposed and whole is not None else part
    if came is None or inside is None:
        tracker.tie([came, inside], "each group has only one of them, or they are the input's")
    else:
        tracker.same.unite(came.reshape(groups, -1), inside[None])
    if not transposed:
        return whole
    return None if part is None else np.tile(part, groups)


@handles("embedding")
def _embedding(tracker: Tracker, call: Call) -> list[Axes]:
    weight = tracker.get(call.args[0])
    tracker.tie([weight.labels[0]], "the input chooses among them")
    tracker.mark(weight.labels[1], "out")
    return [Axes([*[None] * (call.results[0].dim() - 1), weight.labels[1]], data=True)]


@handles(
    "_scaled_dot_product_flash_attention_for_cpu", "_scaled_dot_product_flash_attention",
    "_scaled_dot_product_efficient_attention", "_scaled_dot_product_cudnn_attention",
    "_scaled_dot_product_attention_math", "_scaled_dot_product_fused_attention_overrideable",
)  # fmt: skip
def _attention(tracker: Tracker, call: Call) -> list[Axes]:
    for each in call.args[:2]:
        tracker.tie(tracker.get(each).labels, "attention multiplies them with each other")
    values = tracker.get(call.args[2])
    tracker.tie(values.labels[:-1], "attention is over them")
    answer = Axes([*[None] * (call.results[0].dim() - 1), values.labels[-1]], data=True)
    return [answer, *[Axes([None] * result.dim(), data=True) for result in call.results[1:]]]


# --- normalisation -----------------------------------------------------------------------------------------


@handles(
    "native_batch_norm", "cudnn_batch_norm", "miopen_batch_norm", "_native_batch_norm_legit",
    "_native_batch_norm_legit_no_training", "_native_batch_norm_legit_functional", "_batch_norm_no_update",
    "_batch_norm_with_update",
)  # fmt: skip
def _batch_norm(tracker: Tracker, call: Call) -> list[Axes]:
    given = tracker.get(call.args[0])
    beside = [tracker.get(each) for each in call.args[1:5] if isinstance(each, Tensor)]
    for axes in beside:
        tracker.mark(axes.labels[0], "along")
    labels = list(given.labels)
    labels[1] = tracker.meet([(given, 1), *[(axes, 0) for axes in beside]], "they are the input's channels")
    return [Axes(labels, data=True), *[Axes([None] * result.dim(), data=True) for result in call.results[1:]]]


@handles("native_layer_norm", "native_group_norm", "_fused_rms_norm", "rms_norm")
def _norm(tracker: Tracker, call: Call) -> list[Axes]:
    """What is normalised together changes with the number of channels; one channel by itself does not."""
    given = tracker.get(call.args[0])
    if "group" in call.name and call.args[6] == call.args[4]:
        return _batch_norm(tracker, call.of(*call.args[:3]))
    tied = given.labels[1:2] if "group" in call.name else given.labels[-len(call.args[1]) :]
    beside = [tracker.get(each) for each in tensors(call.args[1:], call.kwargs)]
    tracker.tie([*tied, *[each for axes in beside for each in axes.labels]], f"{call.name} is over them")
    return [Axes(list(given.labels), data=True), *[Axes([None] * each.dim(), data=True) for each in call.results[1:]]]
