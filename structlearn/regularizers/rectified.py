"""Where a network rectifies: what comes into each ReLU, as a module or as a function."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from structlearn.models.activations import MaxMin
from structlearn.structure.trace import copied, moved

if TYPE_CHECKING:
    from collections.abc import Callable

RECTIFIERS: Final = (
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.RReLU, nn.PReLU, nn.ELU, nn.CELU, nn.SELU, nn.SiLU, nn.GELU, nn.Mish,
    nn.Softplus, MaxMin,
)  # fmt: skip
"""Activations whose input says by its sign whether a unit has found its pattern."""

FUNCTIONS: Final = frozenset(
    {
        torch.relu, torch.relu_, Tensor.relu, Tensor.relu_, nn.functional.relu, nn.functional.relu_,
        nn.functional.relu6, nn.functional.leaky_relu, nn.functional.leaky_relu_, nn.functional.prelu, torch.prelu,
        nn.functional.rrelu, nn.functional.rrelu_, torch.rrelu, torch.rrelu_, nn.functional.elu, nn.functional.elu_,
        nn.functional.celu, nn.functional.celu_, torch.celu, torch.celu_, nn.functional.selu, nn.functional.selu_,
        torch.selu, torch.selu_, nn.functional.silu, nn.functional.gelu, nn.functional.mish, nn.functional.softplus,
    }
)  # fmt: skip
"""The same as functions. (A clamp or a threshold may be anything.)"""

_LAST: Final = (nn.Linear, nn.Bilinear, nn.LayerNorm, nn.RNNBase, nn.Embedding, nn.MultiheadAttention)
"""Layers that have their units on the last axis."""


@dataclass
class Calls:
    """What one pass of an example through a network has shown.

    Attributes:
        modules: For each rectifying module, by name, the (units, axis) of its calls, in their order.
        functions: The same of calls of functions outside these modules.
    """

    modules: dict[str, list[tuple[int, int]]] = field(default_factory=dict)
    functions: list[tuple[int, int]] = field(default_factory=list)


def calls(model: nn.Module, example: Tensor | tuple[Any, ...]) -> Calls:
    """Follow an example through a copy of the network, without numbers where the network allows it.

    Raises:
        ValueError: the network cannot be copied, or not be run with the example.
    """
    arguments = example if isinstance(example, tuple) else (example,)
    where = next((each.device for each in [*model.parameters(), *model.buffers()]), torch.device("cpu"))
    for device, training in (("meta", True), (None, True)):  # training may call more, and may want larger batches
        with contextlib.suppress(Exception):  # the last attempt, below, tells what is wrong
            return _run(model, arguments, device, where, training=training)
    try:
        return _run(model, arguments, None, where, training=False)
    except AmbiguousError:
        raise
    except Exception as error:
        problem = f"the network cannot be run with the example: {error}; give a batch as it takes it"
        raise ValueError(problem) from error


def _run(
    model: nn.Module, arguments: tuple[Any, ...], device: str | None, where: torch.device, *, training: bool
) -> Calls:
    with torch.random.fork_rng([where] if where.type == "cuda" else []):  # training draws numbers
        return _watch(copied(model, device).train(training), moved(arguments, device or where))


class AmbiguousError(ValueError):
    """Units could be on either of two axes."""


def _watch(model: nn.Module, arguments: tuple[Any, ...]) -> Calls:
    observer = _Observer()
    for name, module in model.named_modules():
        if isinstance(module, RECTIFIERS):
            module.register_forward_pre_hook(partial(observer.enter, name))
            module.register_forward_hook(observer.leave)
        elif next(module.children(), None) is None and next(module.parameters(), None) is not None:
            module.register_forward_hook(observer.made)
    with torch.no_grad(), Functions(observer.called):
        model(*arguments)
    return observer.found


class _Observer:
    """Notes what is rectified, and where units are: on the axis of the layer that made the last tensor of its shape."""

    def __init__(self) -> None:
        self.found = Calls()
        self._axes: dict[tuple[int, ...], int] = {}
        self._kinds: dict[tuple[int, ...], set[int]] = {}
        self._inside = 0

    def enter(self, name: str, _: nn.Module, inputs: tuple[Any, ...]) -> None:
        """A rectifying module is called."""
        self.found.modules.setdefault(name, []).append(self._place(inputs[0]))
        self._inside += 1

    def leave(self, *_: Any) -> None:
        """It has answered."""
        self._inside -= 1

    def called(self, y: Tensor, _: bool) -> Tensor:
        """A rectifying function is called."""
        if not self._inside:
            self.found.functions.append(self._place(y))
        return y

    def made(self, layer: nn.Module, _: Any, output: Any) -> None:
        """A layer has answered."""
        first = output[0] if isinstance(output, tuple) else output
        if isinstance(first, Tensor):
            axis = -1 if isinstance(layer, _LAST) else 1
            self._axes[tuple(first.shape)] = axis
            self._kinds.setdefault(tuple(first.shape), set()).add(axis)

    def _place(self, y: Tensor) -> tuple[int, int]:
        if len(self._kinds.get(tuple(y.shape), ())) > 1 and y.dim() > 2 and y.shape[1] == y.shape[-1]:
            raise AmbiguousError(
                f"of a value of shape {tuple(y.shape)} before a rectifier it cannot be seen which axis has the units, "
                f"for layers of both kinds make such; give an example whose length differs from its channels"
            )
        axis = self._axes.get(tuple(y.shape), 1) if y.dim() > 2 else 1
        return y.shape[axis], axis


class Functions(TorchFunctionMode):
    """Shows a caller what each rectifying function is given, before it is.

    Args:
        see: Called with the function's input, and whether the function overwrites it; answers what it is to take.
    """

    def __init__(self, see: Callable[[Tensor, bool], Tensor]) -> None:
        super().__init__()
        self._see = see

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func in FUNCTIONS:
            given, *others = args or (kwargs.pop("input"),)
            with torch._C.DisableTorchFunction():  # noqa: SLF001  its public name is for subclasses of Tensor
                args = self._see(given, _overwrites(func, others, kwargs)), *others
        return func(*args, **kwargs)


def _overwrites(func: Any, others: list[Any], options: dict[str, Any]) -> bool:
    """By its name or an option, which may stand among the arguments; RReLU's `training` is taken for it, in vain."""
    return func.__name__.endswith("_") or options.get("inplace", False) or any(each is True for each in others)
