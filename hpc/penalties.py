"""Penalties on the weights of a run's network, beside whatever else is done to it."""

from collections.abc import Sequence
from typing import Any

from torch import nn
from torch.optim import Optimizer

from hpc.config.penalties import KinkedPenalty, PenaltyConfig, SparseGroupLassoPenalty
from hpc.errors import ConfigError
from structlearn.alrao import Alrao
from structlearn.penalties import NetworkPenalty, penalise


class Penalties:
    """All penalties of a run. They carry nothing from step to step, and no rank has to be asked.

    Each rank adds the gradient to what the exchange has left: gradients that are a mean over ranks stay one.

    Args:
        penalties: any number of them.
    """

    def __init__(self, penalties: Sequence[NetworkPenalty] = ()) -> None:
        self._penalties = list(penalties)

    def regularise(self) -> None:
        """Gradients are there, and the same on all ranks in step; the optimiser has not stepped yet."""
        for penalty in self._penalties:
            penalty.regularise()

    def after_step(self, optimizer: Optimizer) -> None:
        """The optimiser has made a step: proximal steps. Nothing here waits for a device."""
        for penalty in self._penalties:
            penalty.after_step(optimizer)


def build(config: Sequence[PenaltyConfig], model: nn.Module, answers: int) -> Penalties:
    """The penalties that a configuration asks for.

    Args:
        config: the list ``penalties``.
        model: the network, on its device; where it is cut, they follow.
        answers: of how many answers to training samples the loss is a mean.

    Raises:
        ConfigError: the network has no such layer.
    """
    network = model.model if isinstance(model, Alrao) else model  # layers have the names that they have without Alrao
    made = []
    for number, each in enumerate(config):
        options: dict[str, Any] = {"mix": each.mix} if isinstance(each, SparseGroupLassoPenalty) else {}
        if isinstance(each, KinkedPenalty):
            options["proximal"] = each.proximal
        strength = 1 / answers if each.strength is None else each.strength
        try:
            made.append(penalise(network, each.name, strength=strength, factors=each.factors, **options))
        except ValueError as error:
            raise ConfigError(f"penalties.{number}: {each.name} does not suit this network: {error}") from error
    return Penalties(made)
