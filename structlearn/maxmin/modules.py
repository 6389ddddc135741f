"""Which module a forward pass is in."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import nn


class Within:
    """The modules that a forward pass is in, from the outside in. After an error: those that it has come from."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.inputs: list[tuple[Any, ...]] = []

    @property
    def name(self) -> str:
        """The innermost one; "" for the network itself."""
        return self.names[-1] if self.names else ""

    def enter(self, name: str, _module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        """A module is about to be called."""
        self.names.append(name)
        self.inputs.append((*inputs, *named.values()))

    def leave(self, _module: nn.Module, _inputs: tuple[Any, ...], _answer: Any) -> None:
        """It has answered."""
        self.names.pop()
        self.inputs.pop()


@contextmanager
def within(model: nn.Module) -> Iterator[Within]:
    """Within, where a forward pass of the network is."""
    place = Within()
    with ExitStack() as stack:
        for name, module in model.named_modules():
            hook = module.register_forward_pre_hook(partial(place.enter, name), prepend=True, with_kwargs=True)
            stack.callback(hook.remove)
            stack.callback(module.register_forward_hook(place.leave).remove)
        yield place


def called(name: str) -> str:
    """A module in words."""
    return name or "the network itself"
