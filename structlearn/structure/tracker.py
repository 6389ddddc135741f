"""What is known of the tensors of a forward pass: which of their axes are units."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np
from torch import Tensor

from structlearn.structure.labels import FREE, Labels, Same

if TYPE_CHECKING:
    from collections.abc import Sequence

Role = Literal["out", "in", "along"]
_RANK: Final = {"along": 0, "out": 1, "in": 2}


@dataclass
class Axes:
    """What is known of a tensor.

    Attributes:
        labels: For each axis its labels; None where its entries are no units: for what comes from the input (`data`),
            batch, places, input channels; for a constant, anything of this length.
        data: Does it depend on the network's input? What does not, and has labels, is made of parameters.
    """

    labels: list[Labels | None]
    data: bool

    @property
    def weight(self) -> bool:
        """Is it made of parameters alone?"""
        return not self.data and any(each is not None for each in self.labels)


class Tracker:
    """What is known of all tensors of a forward pass; the rules' hands.

    Args:
        same: The classes of labels.
    """

    def __init__(self, same: Same) -> None:
        self.same = same
        self.owner: list[tuple[str, int]] = []
        """Parameters' axes, as (name, axis), in the order of their labels."""
        self.starts: list[int] = []
        """The first label of each."""
        self.roles: dict[tuple[str, int], Role] = {}
        """In the order in which they were first seen in."""
        self.why: list[str] = []
        """By its number, which is its label: why something is never cut."""
        self._known: dict[int, tuple[Tensor, Axes]] = {}

    def own(self, name: str, tensor: Tensor) -> Axes:
        """Give every axis of a parameter or buffer labels of its own. Axes of one entry have nothing to cut."""
        labels: list[Labels | None] = []
        for axis, size in enumerate(tensor.shape):
            if size > 1:
                self.owner.append((name, axis))
                self.starts.append(len(self.same))
            labels.append(self.same.fresh(size) if size > 1 else None)
        return self.put(tensor, Axes(labels, data=False))

    def put(self, tensor: Tensor, axes: Axes) -> Axes:
        """Note what is known of a tensor."""
        self._known[id(tensor)] = tensor, axes  # the tensor too: its id would be another's once it is gone
        return axes

    def get(self, tensor: Tensor | None) -> Axes:
        """What is known of a tensor. One that was never seen was made before, and keeps its length."""
        known = self._known.get(id(tensor))
        if known is not None or tensor is None:
            return known[1] if known is not None else Axes([], data=False)
        why = "they meet a tensor that is neither a parameter nor a buffer"
        return Axes([self.tied(size, why) if size > 1 else None for size in tensor.shape], data=False)

    def aliases(self, tensor: Tensor) -> list[tuple[Tensor, Axes]]:
        """Other tensors that share its memory."""
        place = tensor.untyped_storage()._cdata  # noqa: SLF001  what identifies memory on the meta device, too
        return [
            (other, axes)
            for other, axes in self._known.values()
            if other is not tensor and other.untyped_storage()._cdata == place  # noqa: SLF001
        ]

    def mark(self, labels: Labels | None, role: Role) -> None:
        """The axes that these labels were made for have a role. Of several (tied weights) "in" counts before "out"."""
        if labels is None or not self.starts:
            return
        own = labels[labels >= FREE]
        for number in np.unique(np.searchsorted(self.starts, own, side="right")) - 1:
            key = self.owner[number]
            before = self.roles.get(key)
            if before is None or _RANK[role] > _RANK[before]:
                self.roles[key] = role

    def free(self, labels: Labels | None) -> bool:
        """Could some of them be cut, by what is known up to here?"""
        return labels is not None and bool((self.same.find(labels) >= FREE).any())

    def tie(self, labels: Sequence[Labels | None], why: str) -> None:
        """Never cut these."""
        for each in labels:
            if each is not None:
                self.same.unite(each, self.tied(1, why))

    def lose(self, axes: Axes, axis: int, size: int, why: str) -> Labels | None:
        """Tie an axis down that loses its labels: what it has now, which in a parameter is no constant."""
        self.tie([axes.labels[axis]], why)
        return None if axes.data or axes.labels[axis] is None or size == 1 else self.tied(size, why)

    def tied(self, size: int, why: str) -> Labels:
        """Labels for entries that are never cut."""
        if why not in self.why:
            self.why.append(why)
        return np.full(size, min(self.why.index(why), FREE - 1))

    def meet(self, places: Sequence[tuple[Axes, int]], why: str) -> Labels | None:
        """Axes of one length that are one: their labels are united; what they are called from here on."""
        found = [labels for axes, axis in places if (labels := axes.labels[axis]) is not None]
        if not found:
            return None
        for other in found[1:]:
            self.same.unite(found[0], other)
        if any(axes.data and axes.labels[axis] is None for axes, axis in places):
            self.tie(found, why)
        return found[0]


@dataclass(frozen=True)
class Call:
    """One call of an operator.

    Attributes:
        name: The operator's, such as aten.mm.
        args: What it was given.
        kwargs: What it was given by name.
        results: The tensors that it answered with.
    """

    name: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    results: list[Tensor]

    def argument(self, place: int, name: str, default: Any) -> Any:
        """An argument, wherever it stands."""
        return self.args[place] if len(self.args) > place else self.kwargs.get(name, default)

    def of(self, *args: Any) -> Call:
        """The same with these arguments alone."""
        return Call(self.name, args, {}, self.results)

    @property
    def tensors(self) -> list[Tensor]:
        """The tensors among its arguments."""
        return tensors(self.args, self.kwargs)


def tensors(*values: Any) -> list[Tensor]:
    """The tensors among values, also those in lists, mappings and objects."""
    found: list[Tensor] = []
    seen: set[int] = set()
    waiting = list(reversed(values))
    while waiting:
        value = waiting.pop()
        if isinstance(value, Tensor):
            found.append(value)
            continue
        inside = _inside(value)
        if inside and id(value) not in seen:
            seen.add(id(value))
            waiting.extend(reversed(inside))
    return found


def _inside(value: Any) -> list[Any]:
    if isinstance(value, list | tuple | set | frozenset):
        return list(value)
    if isinstance(value, Mapping):
        return list(value.values())
    if isinstance(value, type | ModuleType) or not hasattr(value, "__dict__"):
        return []
    return list(vars(value).values())
