"""Activations that a forward pass calls as functions: there is no module that could be exchanged."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from structlearn.maxmin.modules import called, within

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

NAMES: Final[Mapping[type[nn.Module], str]] = {
    nn.ReLU: "relu",
    nn.ReLU6: "relu6",
    nn.LeakyReLU: "leaky_relu",
    nn.ELU: "elu",
    nn.SELU: "selu",
    nn.CELU: "celu",
    nn.SiLU: "silu",
    nn.GELU: "gelu",
    nn.Softplus: "softplus",
    nn.Tanh: "tanh",
    nn.Sigmoid: "sigmoid",
}
"""What torch calls the functions of its activations."""


class _Listening(TorchFunctionMode):
    """Hears every call of torch."""

    def __init__(self, hear: Callable[[Any], None]) -> None:
        super().__init__()
        self.hear = hear

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.hear(func)
        return func(*args, **(kwargs or {}))


def run(model: nn.Module, arguments: tuple[Any, ...], kinds: tuple[type[nn.Module], ...], left: Sequence[str]) -> Any:
    """What a network answers to an example, if it calls no activation of these kinds as a function.

    Args:
        model: The network, in evaluation.
        arguments: What it is called with.
        kinds: Classes of activations.
        left: Names of modules that may do so.

    Raises:
        ValueError: it does, or it cannot be run.
    """
    wanted = {
        function: name
        for kind, name in NAMES.items()
        if issubclass(kind, kinds)
        for space in (torch, nn.functional, Tensor)
        for function in (getattr(space, name, None), getattr(space, f"{name}_", None))
        if function is not None
    }
    modules, found = dict(model.named_modules()), dict[str, str]()
    with within(model) as place:

        def hear(function: Any) -> None:
            name = wanted.get(function) if callable(function) and getattr(function, "__hash__", None) else None
            if name is not None and type(modules[place.name]).__module__ not in _THEIR_OWN and place.name not in left:
                found.setdefault(place.name, name)

        try:
            with torch.no_grad(), _Listening(hear):
                answer = model(*arguments)
        except Exception as error:
            raise ValueError(
                f"the network cannot be run with the example: {error}; give a batch as it takes it"
            ) from error
    for name, function in found.items():
        raise ValueError(
            f"{called(name)} ({type(modules[name]).__name__}) calls {function} as a function, which cannot be "
            f"exchanged from outside; give it a module for that (self.act = nn.ReLU(), say), or leave it as it is: "
            f"skip=({name!r},)"
        )
    return answer


_THEIR_OWN: Final = ("torch.nn.modules.activation", "structlearn.models.activations")
"""Modules from here are activations, whose functions they are."""
