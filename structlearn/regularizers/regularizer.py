"""What regularisers share: they are attached to a network, and training asks them for what they add to its loss."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn


class Regularizer:
    """Something that acts on a network from within while it is trained, and never in evaluation.

    It hangs hooks on the network's modules; what it remembers from step to step is in buffers of these modules, so it
    is saved, mixed between ranks and cut with them. In a training loop::

        shade = Shade(model, images[:2], strength=1e-4)
        for x, y in batches:
            y = shade.targets(y)                      # noise on labels changes them, all others do not
            loss = cross_entropy(model(x), y) + shade.loss(y)
            loss.backward()

    Where units are cut or permuted, call :meth:`restructured` after it. The network is adopted by Alrao or ScaLa, or
    converted to MaxMin, before regularisers are attached.

    Args:
        model: The network it is attached to.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def targets(self, targets: Tensor) -> Tensor:
        """The targets that the step is to learn, in place of its own."""
        return targets

    def loss(self, targets: Tensor) -> Tensor | None:
        """What is added to the mean loss of the batch that the network has just seen, strength included: a scalar.

        None where the method adds nothing. Asked once after each forward pass in training.

        Args:
            targets: Of that batch, as :meth:`targets` gave them.
        """

    def restructured(self) -> None:
        """Units of the network were cut or permuted since the last step."""

    def remove(self) -> None:
        """Take it away from the network: its hooks, and its buffers."""
        raise NotImplementedError


def unhook(module: nn.Module, hook: Any) -> None:
    """Take a module's hooks away that are this function, or a method of an object of this class."""
    for hooks in (module._forward_pre_hooks, module._forward_hooks):  # noqa: SLF001  torch has no other list of them
        for number, each in list(hooks.items()):
            if each is hook or (isinstance(hook, type) and isinstance(getattr(each, "__self__", None), hook)):
                del hooks[number]
                module._forward_hooks_always_called.pop(number, None)  # noqa: SLF001
