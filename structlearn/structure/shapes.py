"""Operators that change shapes: axes that are moved, merged, split, joined, chosen from or summed over."""

from __future__ import annotations

from itertools import pairwise
from math import prod
from typing import TYPE_CHECKING

import numpy as np

from structlearn.structure.table import handles
from structlearn.structure.tracker import Axes, Call, Tracker

if TYPE_CHECKING:
    from structlearn.structure.labels import Labels


@handles("permute", "transpose", "t", "transpose_")
def _permute(tracker: Tracker, call: Call) -> list[Axes]:
    axes = tracker.get(call.args[0])
    order = list(range(call.args[0].dim()))
    if "permute" in call.name:
        order = list(call.args[1])
    elif len(order) > 1:
        one, other = call.args[1:3] if len(call.args) > 1 else (0, 1)
        order[one], order[other] = order[other], order[one]
    return [Axes([axes.labels[axis] for axis in order], axes.data)]


@handles("unsqueeze", "squeeze", "expand", "expand_copy", "squeeze_", "unsqueeze_")
def _ones(tracker: Tracker, call: Call) -> list[Axes]:
    """Axes of length one come, go, or are repeated."""
    axes = tracker.get(call.args[0])
    labels: list[Labels | None] = list(axes.labels)
    if "unsqueeze" in call.name:
        labels.insert(call.args[1] % (len(labels) + 1), None)
    elif "squeeze" in call.name:
        asked = call.args[1] if len(call.args) > 1 else range(len(labels))
        gone = [asked] if isinstance(asked, int) else asked
        at = {axis % len(labels) for axis in gone if call.args[0].shape[axis] == 1} if labels else set()
        tracker.tie([labels[axis] for axis in gone if labels], f"{call.name} drops them when one is left")
        labels = [each for axis, each in enumerate(labels) if axis not in at]
    else:
        labels = [*[None] * (call.results[0].dim() - len(labels)), *labels]
    return [Axes(labels, axes.data)]


@handles("view", "_unsafe_view", "reshape", "_reshape_alias", "view_copy")
def _view(tracker: Tracker, call: Call) -> list[Axes]:
    axes = tracker.get(call.args[0])
    return [Axes(regroup(tracker, list(call.args[0].shape), axes, list(call.results[0].shape)), axes.data)]


def regroup(tracker: Tracker, before: list[int], axes: Axes, after: list[int]) -> list[Labels | None]:
    """The labels of a tensor whose axes are merged and split: a flattened channel is many entries with its label."""
    found: list[Labels | None] = []
    start = 0
    at = 0
    while at < len(after) or start < len(before):
        left, right = start, at
        sizes = [0, 0]
        while True:  # the fewest axes of both sides that hold equally many entries
            sizes = [prod(before[start:left]), prod(after[at:right])]
            if left > start and right > at and sizes[0] == sizes[1]:
                break
            if (sizes[0] <= sizes[1] and left < len(before)) or right == len(after):
                if left == len(before):
                    break
                left += 1
            else:
                right += 1
        flat = _merge(tracker, before[start:left], axes.labels[start:left])
        found += _split(tracker, flat, after[at:right], data=axes.data)
        start, at = left, right
    return found


def _merge(tracker: Tracker, sizes: list[int], labels: list[Labels | None]) -> Labels | None:
    those = [axis for axis, each in enumerate(labels) if each is not None]
    if not those:
        return None
    those = [axis for axis in those if tracker.free(labels[axis])] or those[:1]
    if len(those) > 1:
        tracker.tie(labels, "they are merged with each other")
    shape = [1] * len(sizes)
    shape[those[0]] = sizes[those[0]]
    chosen = labels[those[0]]
    assert chosen is not None
    return np.broadcast_to(chosen.reshape(shape), sizes).reshape(-1)


def _split(tracker: Tracker, flat: Labels | None, sizes: list[int], *, data: bool) -> list[Labels | None]:
    labels: list[Labels | None] = [None] * len(sizes)
    if flat is None:
        return labels
    why = "they are split into several axes"
    grid = flat.reshape(sizes)
    for axis, size in enumerate(sizes):
        line = np.moveaxis(grid, axis, 0).reshape(size, -1)
        if size > 1 and (line == line[:, :1]).all():
            labels[axis] = line[:, 0]
            break
    else:
        tracker.tie([flat], why)
    if not data and not tracker.free(flat):  # of parameters: no axis of theirs is a constant
        return [tracker.tied(size, why) if size > 1 else None for size in sizes]
    return labels


@handles("cat")
def _cat(tracker: Tracker, call: Call) -> list[Axes]:
    parts = [each for each in call.args[0] if each.shape != (0,)]
    dim = call.argument(1, "dim", 0) % call.results[0].dim()
    given = [tracker.get(each) for each in parts]
    labels: list[Labels | None] = [
        tracker.meet([(axes, axis) for axes in given], "it meets an axis of the input") if axis != dim else None
        for axis in range(call.results[0].dim())
    ]
    if any(axes.labels[dim] is not None for axes in given):
        sizes = [each.shape[dim] for each in parts]
        joined = [
            each if (each := axes.labels[dim]) is not None else tracker.tied(size, "it meets an axis of the input")
            for axes, size in zip(given, sizes, strict=True)
        ]
        labels[dim] = np.concatenate(joined)
    return [Axes(labels, any(axes.data for axes in given))]


@handles("stack")
def _stack(tracker: Tracker, call: Call) -> list[Axes]:
    given = [tracker.get(each) for each in call.args[0]]
    dim = call.argument(1, "dim", 0) % call.results[0].dim()
    labels = [
        tracker.meet([(axes, axis) for axes in given], "it meets an axis of the input")
        for axis in range(call.args[0][0].dim())
    ]
    data = any(axes.data for axes in given)
    weights = not data and any(axes.weight for axes in given)
    labels.insert(dim, tracker.tied(len(given), "they are numbered") if weights else None)
    return [Axes(labels, data)]


@handles("split", "unsafe_split", "split_with_sizes", "unsafe_split_with_sizes", "chunk", "unsafe_chunk", "split_copy")
def _pieces(tracker: Tracker, call: Call) -> list[Axes]:
    """Pieces of one length stay of one length: what goes from one of them goes from all (the gates of a cell)."""
    axes = tracker.get(call.args[0])
    dim = call.argument(2, "dim", 0) % call.args[0].dim()
    whole = axes.labels[dim]
    sizes = [each.shape[dim] for each in call.results]
    if whole is not None and len(sizes) > 1:
        if len(set(sizes)) == 1:
            tracker.same.unite(whole.reshape(len(sizes), -1), whole[None, : sizes[0]])
        else:
            tracker.tie([whole], "they are split into pieces of several lengths")
    edges = np.cumsum([0, *sizes])
    answers = []
    for first, last in pairwise(edges):
        labels = list(axes.labels)
        labels[dim] = whole[first:last] if whole is not None else None
        answers.append(Axes(labels, axes.data))
    return answers


@handles("repeat")
def _repeat(tracker: Tracker, call: Call) -> list[Axes]:
    """An instance normalisation repeats its scale for each sample."""
    axes = tracker.get(call.args[0])
    times = list(call.args[1])
    labels: list[Labels | None] = [*[None] * (len(times) - len(axes.labels)), *axes.labels]
    found = [each if each is None else np.tile(each, many) for each, many in zip(labels, times, strict=True)]
    return [Axes(found, axes.data)]


@handles("channel_shuffle", "native_channel_shuffle")
def _shuffle(tracker: Tracker, call: Call) -> list[Axes]:
    """The first channels of all groups, then the second ones: all groups lose the same."""
    axes = tracker.get(call.args[0])
    labels = list(axes.labels)
    whole = labels[1]
    if whole is not None:
        grid = whole.reshape(call.args[1], -1)
        tracker.same.unite(grid, grid[:1])
        labels[1] = grid.T.reshape(-1)
    return [Axes(labels, axes.data)]


@handles("glu")
def _glu(tracker: Tracker, call: Call) -> list[Axes]:
    axes = tracker.get(call.args[0])
    dim = call.argument(1, "dim", -1) % call.args[0].dim()
    labels = list(axes.labels)
    whole = labels[dim]
    if whole is not None:
        half = len(whole) // 2
        tracker.same.unite(whole[:half], whole[half:])
        labels[dim] = whole[:half]
    return [Axes(labels, axes.data)]


@handles("select", "unbind", "slice", "select_copy", "slice_copy", "index_select")
def _part(tracker: Tracker, call: Call) -> list[Axes]:
    """Numbered entries of an axis: a cut would change which they are."""
    axes = tracker.get(call.args[0])
    dim = call.argument(1, "dim", 0) % call.args[0].dim()
    labels = list(axes.labels)
    if "slice" not in call.name and "index" not in call.name:
        tracker.tie([labels.pop(dim)], "one of them is chosen by its number")
    elif "index" in call.name or call.results[0].shape[dim] != call.args[0].shape[dim]:
        size = call.results[0].shape[dim]
        labels[dim] = tracker.lose(axes, dim, size, "some of them are chosen by their numbers")
    data = any(tracker.get(each).data for each in call.tensors)
    return [Axes(list(labels), data) for _ in call.results]


@handles("topk")
def _ranked(tracker: Tracker, call: Call) -> list[Axes]:
    """The largest or smallest along an axis, values and places; other axes stay."""
    axes = tracker.get(call.args[0])
    dim = call.argument(2, "dim", -1) % call.args[0].dim()
    tracker.tie([axes.labels[dim]], f"{call.name} is over them")
    kept = [each if axis != dim else None for axis, each in enumerate(axes.labels)]
    return [Axes(list(kept), axes.data) for _ in call.results]


@handles("_pack_padded_sequence")
def _pack(tracker: Tracker, call: Call) -> list[Axes]:
    """The steps of all samples, one after the other; what a step has stays."""
    labels = tracker.get(call.args[0]).labels
    tracker.tie(labels[:2], f"{call.name} is over them")
    return [Axes([None, *labels[2:]], data=True), Axes([None], data=True)]


@handles("mean", "sum", "amax", "amin", "var", "std", "logsumexp", "prod", "any", "all", "var_mean", "argmax", "argmin")
def _reduce(tracker: Tracker, call: Call) -> list[Axes]:
    axes = tracker.get(call.args[0])
    gone = call.argument(1, "dim", None)
    many = [gone] if isinstance(gone, int) else list(gone or range(call.args[0].dim()))
    at = {axis % call.args[0].dim() for axis in many if call.args[0].dim()}
    tracker.tie([axes.labels[axis] for axis in at], f"{call.name} is over them")
    kept = [each if axis not in at else None for axis, each in enumerate(axes.labels)]
    if call.results[0].dim() < call.args[0].dim():
        kept = [each for axis, each in enumerate(axes.labels) if axis not in at]
    return [Axes(list(kept), axes.data) for _ in call.results]
