"""Regularisers that act within a run's network, or between it and the data."""

import re
from collections.abc import Sequence
from typing import Final, Literal

import torch
from torch import Tensor, nn

from hpc.config.regularizers import (
    DropConnect,
    Dropout,
    InputNoise,
    LabelNoise,
    RegularizerConfig,
    Reve,
    Shade,
    Variational,
    WeightNoise,
)
from hpc.errors import ConfigError
from structlearn import regularizers
from structlearn.alrao import Alrao
from structlearn.regularizers import Regularizer

Task = Literal["classification", "regression", "sequence"]


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


def attach(
    config: Sequence[RegularizerConfig], model: nn.Module, example: torch.Tensor, task: Task, answers: int
) -> Regularizers:
    """Attach the regularisers that a configuration asks for.

    Args:
        config: the list ``regularizers``.
        model: the network as it is trained, on the host, before it is cut.
        example: inputs of two samples; only their shape and type matter.
        task: what the network is trained for.
        answers: of how many answers to training samples the loss is a mean.

    Raises:
        ConfigError: one of them does not suit the network.
    """
    made = []
    # Whatever changes weights for a pass must do so to those that were drawn, and not draw around the changed ones.
    ordered = sorted(enumerate(config), key=lambda numbered: not isinstance(numbered[1], Variational))
    for number, each in ordered:
        try:
            made.append(_make(each, model, example, task, answers))
        except ValueError as error:
            told = _INSIDE.sub("", str(error)) if isinstance(model, Alrao) else str(error)
            raise ConfigError(f"regularizers.{number}.name: {each.name} does not suit this network: {told}") from error
    return Regularizers(made)


_INSIDE: Final = re.compile(r"(?<![\w.])model\.(?=\w)")
"""What stands before the names of layers in a network that Alrao has wrapped."""


def _names(layers: Sequence[str] | None, model: nn.Module) -> list[str] | None:
    """Layers by the names that they have in the network, given those that they have without Alrao."""
    if layers is None:
        return None
    return [f"model.{name}" if isinstance(model, Alrao) else name for name in layers]


def _make(config: RegularizerConfig, model: nn.Module, example: torch.Tensor, task: Task, answers: int) -> Regularizer:
    made: Regularizer
    match config:
        case Shade():
            made = regularizers.Shade(model, example, strength=config.strength)
        case Reve():
            if task == "regression":
                raise ValueError("it is for classes, and this is a regression; leave it out")
            made = regularizers.Reve(
                model, strength=config.strength, variance=config.variance, samples=config.samples,
                refresh=config.refresh, on=config.on, mixture=config.modes == 2,
            )  # fmt: skip
        case Dropout():
            made = regularizers.Dropout(model, config.rate, layers=_names(config.layers, model))
        case DropConnect():
            made = regularizers.DropConnect(model, config.rate, layers=_names(config.layers, model))
        case InputNoise():
            made = regularizers.InputNoise(model, config.deviation)
        case WeightNoise():
            made = regularizers.WeightNoise(model, config.deviation, layers=_names(config.layers, model))
        case LabelNoise():
            made = _label_noise(config, model, task)
        case Variational():
            made = regularizers.Variational(
                model, strength=1 / answers if config.strength is None else config.strength, prior=config.prior,
                prior_deviation=config.prior_deviation, deviation=config.deviation, samples=config.samples, task=task,
                layers=_names(config.layers, model),
            )  # fmt: skip
    return made


def _label_noise(config: LabelNoise, model: nn.Module, task: Task) -> Regularizer:
    other = config.rate if task == "regression" else config.deviation
    if other is not None:
        key, wanted = ("rate", "deviation") if task == "regression" else ("deviation", "rate")
        raise ValueError(f"this is a {task}, which takes {wanted} and no {key}")
    if task == "regression":
        return regularizers.LabelNoise(model, deviation=_DEFAULT if config.deviation is None else config.deviation)
    return regularizers.LabelNoise(model, _DEFAULT if config.rate is None else config.rate)


_DEFAULT: Final = 0.1
"""Rate, or deviation, of noise on targets."""
