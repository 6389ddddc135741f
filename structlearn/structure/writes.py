"""What is written into a part of a tensor, through a view of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from structlearn.structure.labels import Labels
    from structlearn.structure.tracker import Axes, Tracker


def write(tracker: Tracker, name: str, changed: Tensor, others: list[Tensor]) -> None:
    """An operator changes a tensor: units that come in so must not be lost from sight of what it is a view of."""
    own = tracker.get(changed).labels
    new: dict[int, Labels] = {}  # by the axis, from the last one
    for other in others:
        for back, each in enumerate(reversed(tracker.get(other).labels), 1):
            if each is not None and len(own) >= back and own[-back] is None:
                new[-back] = each
    if not (wholes := tracker.aliases(changed) if new else []):
        return
    if name == "aten.copy_" and all(_has_axes(changed, new, tensor, axes) for tensor, axes in wholes):
        for _, axes in wholes:
            axes.data = True
            for axis, labels in new.items():
                axes.labels[axis] = labels
        return
    for _, axes in wholes:
        tracker.tie(axes.labels, f"{name} writes into a part of them")
        axes.data = True
    for other in others:
        tracker.tie(tracker.get(other).labels, f"{name} writes them into a part of something")


def _has_axes(view: Tensor, new: dict[int, Labels], whole: Tensor, axes: Axes) -> bool:
    """Is a whole, a constant until now, along these axes what its view is? Padded sequences are filled so."""
    return (
        whole.dim() == view.dim()
        and not axes.data
        and all(
            axes.labels[axis] is None
            and whole.shape[axis] == view.shape[axis]
            and whole.stride(axis) == view.stride(axis)
            for axis in new
        )
    )
