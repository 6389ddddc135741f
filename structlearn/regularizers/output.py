"""A network's output layer, plain or Alrao's."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from structlearn.alrao import Alrao, Heads
from structlearn.flow import last_layer
from structlearn.scala import Scaled

Layer = nn.Linear | nn.Conv2d | Heads


@dataclass
class Output:
    """An output layer.

    Attributes:
        name: Its name within the network.
        layer: The layer.
        alrao: Whose heads it is; None for a plain layer.
    """

    name: str
    layer: Layer
    alrao: Alrao | None

    @property
    def convolution(self) -> bool:
        """Are its classes on axis 1, with places behind?"""
        return isinstance(self.layer, nn.Conv2d) or (isinstance(self.layer, Heads) and self.layer.convolution)

    @property
    def classes(self) -> int:
        """How many there are."""
        return int(self.layer.weight.shape[-2 if isinstance(self.layer, Heads) else 0])

    def weight(self) -> Tensor:
        """W_d as it acts, [C, D]; of heads [K, C, D]."""
        layer = self.layer
        if isinstance(layer, Heads):
            return layer.weight
        own: Tensor = layer.effective() if isinstance(layer, Scaled) else layer.weight
        return own.flatten(1)


def output_layer(model: nn.Module, head: str | None = None) -> Output:
    """The output layer by its name, or found.

    Raises:
        ValueError: it is no linear layer, 1x1 convolution or Alrao's heads within the network.
    """
    alrao = next((module for module in model.modules() if isinstance(module, Alrao)), None)
    layers = dict(model.named_modules())
    if head is None and alrao is not None:
        head = next(name for name, module in layers.items() if module is alrao.heads)
    found = last_layer(model, (nn.Linear, nn.Conv2d)) if head is None else head
    layer = layers.get(found or "")
    if found and isinstance(layer, Heads) and alrao is not None and layer is alrao.heads:
        return Output(found, layer, alrao)
    if not found or not (isinstance(layer, nn.Linear) or (isinstance(layer, nn.Conv2d) and _small(layer))):
        got = f"{found}: {type(layer).__name__}" if found else "a network in which none was found"
        raise ValueError(
            f"the output layer must be a Linear or a 1x1 Conv2d inside the network, got {got}; name it: "
            f"head='classifier.6', say"
        )
    return Output(found, layer, None)


def _small(layer: nn.Conv2d) -> bool:
    """Is it a linear layer at each place?"""
    return layer.kernel_size == layer.stride == (1, 1) and layer.padding == (0, 0) and layer.groups == 1
