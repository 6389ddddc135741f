"""Regularisers that act within a run's network, or between it and the data."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from hpc.config.regularizers import RegularizerConfig, Shade
from hpc.errors import ConfigError
from structlearn import regularizers
from structlearn.regularizers import Regularizer


class Regularizers:
    """All regularisers of a run. What they carry from step to step is in buffers of the network.

    Args:
        regularizers: any number of them.
    """

    def __init__(self, regularizers: Sequence[Regularizer] = ()) -> None:
        self._regularizers = list(regularizers)

    def targets(self, targets: Tensor) -> Tensor:
        """The targets that a step is to learn."""
        for each in self._regularizers:
            targets = each.targets(targets)
        return targets

    def added(self, loss: Tensor, targets: Tensor) -> Tensor:
        """The task's loss of the batch that the network has just seen, with all that they add to it."""
        for each in self._regularizers:
            if (term := each.loss(targets)) is not None:
                loss = loss + term
        return loss

    def restructured(self) -> None:
        """The network was cut."""
        for each in self._regularizers:
            each.restructured()

    def remove(self) -> None:
        """Take them away from the network."""
        for each in reversed(self._regularizers):
            each.remove()


def attach(config: Sequence[RegularizerConfig], model: nn.Module, example: torch.Tensor) -> Regularizers:
    """Attach the regularisers that a configuration asks for.

    Args:
        config: the list ``regularizers``.
        model: the network as it is trained, on the host, before it is cut.
        example: inputs of two samples; only their shape and type matter.

    Raises:
        ConfigError: one of them does not suit the network.
    """
    made = []
    for number, each in enumerate(config):
        try:
            made.append(_make(each, model, example))
        except ValueError as error:
            raise ConfigError(f"regularizers.{number}.name: {each.name} does not suit this network: {error}") from error
    return Regularizers(made)


def _make(config: RegularizerConfig, model: nn.Module, example: torch.Tensor) -> Regularizer:
    match config:
        case Shade():
            return regularizers.Shade(model, example, strength=config.strength)
