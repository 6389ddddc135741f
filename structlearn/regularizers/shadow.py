"""Weights that a network sees in place of its own for one forward pass, with gradients to its own."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from structlearn.alrao import Heads
from structlearn.regularizers.regularizer import Regularizer, unhook

if TYPE_CHECKING:
    from collections.abc import Iterable

WEIGHED = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, Heads)
"""Layers whose `weight` can be changed for a pass; scaled layers are among them."""


class Shadowed(Regularizer):
    """A regulariser that changes weights as the network is called in training, and leaves them as they are after it.

    A weight is changed once for each call of the network, however many layers use it and however often.

    Args:
        model: The network.
        layers: Names of the layers.
        shadow: What changes their weights.

    Raises:
        ValueError: the network has this already.
    """

    def __init__(self, model: nn.Module, layers: Iterable[str], shadow: Shadow) -> None:
        super().__init__(model)
        self.layers = list(layers)
        hooks = model._forward_pre_hooks.values()  # noqa: SLF001
        if any(type(getattr(hook, "__self__", None)) is type(shadow) for hook in hooks):
            raise ValueError(f"this network has {type(self).__name__} already; attach it once, with all layers")
        for name in self.layers:
            shadow.layers.append(model.get_submodule(name))
        self._shadow = shadow
        model.register_forward_pre_hook(shadow.cast)
        model.register_forward_hook(shadow.lift, always_call=True)

    def remove(self) -> None:
        """Take the hooks away."""
        unhook(self.model, type(self._shadow))


class Shadow:
    """Puts changed weights before those of layers: an instance's own attribute is found before its parameter.

    It is copied and pickled with the network, as methods of hooks are, and then has the copy's layers.
    """

    structural: ClassVar = False

    def __init__(self) -> None:
        self.layers: list[nn.Module] = []

    def cast(self, model: nn.Module, _: Any) -> None:
        """The network is called. Where several regularisers change one weight, each changes what the last one left.

        Without gradients nothing is learnt: statistics are gathered, or the structure is followed.
        """
        if not (model.training and torch.is_grad_enabled()):
            return
        changed: dict[int, Tensor] = {}
        for layer in self.layers:
            weight = layer.weight
            assert isinstance(weight, Tensor)
            if layer.training:
                if id(weight) not in changed:
                    changed[id(weight)] = self.changed(layer, weight)
                layer.__dict__["weight"] = changed[id(weight)]

    def lift(self, *_: Any) -> None:
        """The network has answered, or failed."""
        for layer in self.layers:
            layer.__dict__.pop("weight", None)

    @abstractmethod
    def changed(self, layer: nn.Module, weight: Tensor) -> Tensor:
        """A layer's weight as the pass is to see it; a new tensor."""


def chosen(
    model: nn.Module,
    names: Iterable[str] | None,
    kinds: tuple[type[nn.Module], ...],
    method: str,
    *,
    every: tuple[type[nn.Module], ...] = WEIGHED,
) -> list[str]:
    """The layers that a method is to act on, by name: those given, or all of some kinds.

    Raises:
        ValueError: a name is unknown or of a layer without a weight that can be changed; there is no such layer.
    """
    layers = dict(model.named_modules())
    if names is None:
        found = [name for name, layer in layers.items() if isinstance(layer, kinds) and _own(layer)]
        if not found:
            raise ValueError(
                f"{method} acts on {_listed(kinds)}, and this network has none; name other layers, or leave it out"
            )
        return found
    found = [names] if isinstance(names, str) else list(names)
    for name in found:
        if not isinstance(layers.get(name), every):
            got = f"is a {type(layers[name]).__name__}" if name in layers else "is not in this network"
            raise ValueError(  # noqa: TRY004  what was given is the name
                f"{method} can act on {_listed(every)}, but {name!r} {got}; name others of its layers"
            )
        if not _own(layers[name]):
            raise ValueError(
                f"{method} changes weights that are parameters, but that of {name!r} is computed (a parametrisation, "
                f"weight_norm or a mask); name others of its layers, or take that away"
            )
    if len(set(found)) < len(found):
        raise ValueError(f"{method}: layers names one twice: {', '.join(found)}; name each once")
    if not found:
        raise ValueError(f"{method}: layers is empty; name some, or leave it out for all")
    return found


def _own(layer: nn.Module) -> bool:
    """Is the weight a parameter of the layer's own?"""
    return layer._parameters.get("weight") is not None  # noqa: SLF001  its attribute may be computed


def _listed(kinds: tuple[type[nn.Module], ...]) -> str:
    return ", ".join(kind.__name__ for kind in kinds)
