"""Where the channels go that MaxMin adds: found by following an example."""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from structlearn.maxmin.modules import Within, called, within
from structlearn.maxmin.widen import inputs_of, widen
from structlearn.structure.labels import Labels, Same
from structlearn.structure.trace import Watching
from structlearn.structure.tracker import Axes, Tracker, tensors

if TYPE_CHECKING:
    from collections.abc import Sequence

    from structlearn.models.activations import MaxMin

    Mask = np.ndarray[Any, np.dtype[np.bool_]]


def follow(model: nn.Module, arguments: tuple[Any, ...], activations: Sequence[str]) -> Any:
    """Widen all layers, as an example reaches them, to the channels that now come in.

    Channels carry labels through torch's operators, by the rules of :mod:`structlearn.structure`; what MaxMin adds has
    labels of its own. So each layer's old weights meet the channels that they did, wherever the new ones stand among
    them.

    Args:
        model: The network, in evaluation, its activations replaced.
        arguments: What it is called with.
        activations: The names of the new activations.

    Returns:
        What it answers.

    Raises:
        ValueError: new channels go where nothing can be widened.
    """
    tracker = Tracker(Same())
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        tracker.own(name, tensor)
    for each in tensors(*arguments):
        tracker.put(each, Axes([None] * each.dim(), data=True))
    with within(model) as place, ExitStack() as stack:
        following = _Following(model, tracker, place)
        for name, module in model.named_modules():
            before: Any = following.before_maxmin if name in activations else following.before_layer
            stack.callback(module.register_forward_pre_hook(partial(before, name), with_kwargs=True).remove)
            if name in activations:
                stack.callback(module.register_forward_hook(partial(following.after_maxmin, name)).remove)
            elif isinstance(module, _ConvNd):
                stack.callback(module.register_forward_hook(following.after_convolution).remove)
        try:
            with torch.no_grad(), _Blaming(tracker, following):
                return model(*arguments)
        except _RefusedError:
            raise
        except Exception as error:
            raise _RefusedError(following.complaint(error)) from error


class _RefusedError(ValueError):
    """What the caller is told; not what a forward pass stumbles over."""


class _Blaming(Watching):
    """Notes what an operator was given that fails."""

    def __init__(self, tracker: Tracker, following: _Following) -> None:
        super().__init__(tracker)
        self.following = following

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        try:
            return super().__torch_dispatch__(func, types, args, kwargs)
        except Exception:
            self.following.failed_with = tensors(args, kwargs or {})
            raise


class _Following:
    """What is done before and after modules are called."""

    def __init__(self, model: nn.Module, tracker: Tracker, place: Within) -> None:
        self.tracker, self.place = tracker, place
        self.failed_with: list[Tensor] = []
        self._modules = dict(model.named_modules())
        self._new: list[tuple[str, Labels]] = []  # labels that an activation has added
        self._seen: dict[str, Mask] = {}  # of each layer's inputs, which are new
        self._users: dict[int, list[str]] = {}
        for name, module in self._modules.items():
            for parameter in module.parameters(recurse=False):
                self._users.setdefault(id(parameter), []).append(name)

    def before_maxmin(self, name: str, module: MaxMin, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        """Find the axis of the channels."""
        given = tensors(inputs, named)[0]
        axes = [axis for axis, each in enumerate(self.tracker.get(given).labels) if each is not None]
        axis = axes[0] if len(axes) == 1 else 1
        dim = axis if axis == 1 else axis - given.dim()
        if name in self._seen and module.dim != dim:
            raise _RefusedError(
                f"the activation {name} is called for channels on axis {module.dim} and on axis {dim}; give each its "
                f"own"
            )
        module.dim = dim
        self._seen[name] = np.zeros(0, bool)

    def after_maxmin(self, name: str, module: MaxMin, inputs: tuple[Any, ...], answer: Tensor) -> None:
        """The second half of the channels is new."""
        axes = self.tracker.get(answer)
        old = self.tracker.get(inputs[0]).labels[module.dim] if inputs else None
        if old is None:
            old = self.tracker.tied(answer.shape[module.dim] // 2, "they are the input's channels")
        new = self.tracker.same.fresh(len(old))
        self._new.append((name, new))
        labels = list(axes.labels)
        labels[module.dim] = np.concatenate([old, new])
        self.tracker.put(answer, Axes(labels, axes.data))

    def before_layer(self, name: str, module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        """Widen a layer to what comes in."""
        known, found = inputs_of(module), tensors(inputs, named)
        if known is None or not found:
            return
        channels, axis = known
        given = found[0]
        labels = self.tracker.get(given).labels[axis] if given.dim() >= max(axis + 1, -axis) else None
        new = self._is_new(labels) if labels is not None else np.zeros(channels, bool)
        before = self._seen.setdefault(name, new)
        if before is not new:
            if not np.array_equal(before, new):
                raise _RefusedError(
                    f"the layer {name} is called several times, for inputs that MaxMin widens and for others; give "
                    f"each a layer of its own, or {self._leave(*self._from(given))}"
                )
            return
        if not new.any():
            return
        if (~new).sum() != channels:
            raise _RefusedError(self._cannot(name, f"it took {channels}, of which {(~new).sum()} come in", given))
        for parameter in module.parameters(recurse=False):
            if len(users := self._users[id(parameter)]) > 1:
                raise _RefusedError(
                    f"the layer {name} shares its weights with {next(each for each in users if each != name)}, but is "
                    f"to be widened alone; give it weights of its own, or {self._leave(*self._from(given))}"
                )
        for key in widen(module, torch.from_numpy(new)):
            self.tracker.own(f"{name}.{key}", getattr(module, key))

    def after_convolution(self, module: _ConvNd, inputs: tuple[Any, ...], answer: Tensor) -> None:
        """A depthwise convolution's outputs are new where its inputs are."""
        axis = -1 - len(module.kernel_size)
        if module.groups == 1 or not inputs or (labels := self.tracker.get(inputs[0]).labels[axis]) is None:
            return
        axes = self.tracker.get(answer)
        found = list(axes.labels)
        found[axis] = np.repeat(labels, answer.shape[axis] // len(labels))
        self.tracker.put(answer, Axes(found, axes.data))

    def complaint(self, error: Exception) -> str:
        """Where a forward pass has failed, and what to do."""
        name = self.place.name
        given = self.failed_with or tensors(*self.place.inputs[-1:])
        if not self._from(*given):
            given = tensors(*self.place.inputs[-1:])
        return self._cannot(name, str(error).partition("\n")[0], *given)

    def _cannot(self, name: str, why: str, *given: Tensor) -> str:
        kind = type(self._modules[name]).__name__
        return (
            f"{called(name)} ({kind}) cannot take the channels that MaxMin adds ({why}); give it what can be widened "
            f"(a convolution on the shortcut, say), or {self._leave(*self._from(*given))}"
        )

    def _leave(self, *names: str) -> str:
        skip = ", ".join(map(repr, names or dict.fromkeys(name for name, _ in self._new)))
        return f"leave activations as they are: skip=({skip},)"

    def _from(self, *given: Tensor) -> list[str]:
        """The activations that have added channels to one of these."""
        labels = [each for tensor in given for each in self.tracker.get(tensor).labels if each is not None]
        present = np.concatenate([np.zeros(0, np.int64), *labels])
        return list(dict.fromkeys(name for name, new in self._new if np.isin(new, present).any()))

    def _is_new(self, labels: Labels) -> Mask:
        """Which of the labels are of channels that were added."""
        return np.isin(labels, np.concatenate([np.zeros(0, np.int64), *[new for _, new in self._new]]))
