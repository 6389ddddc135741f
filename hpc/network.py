"""The network that a configuration asks for."""

import importlib
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from hpc.config.model import Custom, ModelConfig
from hpc.errors import ConfigError
from hpc.seeding import seed_for
from structlearn import models


class Sizes(Protocol):
    """What a network must know of the data; a ``DataSet`` is one."""

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one sample."""

    @property
    def outputs(self) -> int:
        """How many numbers the network answers a sample with."""


def build(config: ModelConfig, data: Sizes, seed: int) -> nn.Module:
    """A network with initial weights that follow from the seed alone: the same on every rank and device.

    Raises:
        ConfigError: the network does not fit the data, or a function of the user's cannot be used.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_for(seed, "init"))
        if isinstance(config, Custom):
            return _custom(config, data)
        options = asdict(config)
        name = options.pop("name")
        try:
            return models.build(name, data.input_shape, data.outputs, **options)
        except ValueError as error:
            raise ConfigError(f"model: {error}") from error


def _custom(config: Custom, data: Sizes) -> nn.Module:
    """Call ``package.module:function``.

    It is given ``input_shape`` and ``outputs`` and the options. torchvision's and timm's builders know neither;
    they are given the number of classes under the names they use.
    """
    module_name, _, function_name = config.name.partition(":")
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.append(here)  # a module in the folder one starts from
    try:
        function = getattr(importlib.import_module(module_name), function_name)
    except (ImportError, AttributeError) as error:
        raise ConfigError(
            f"model.name: {config.name} cannot be loaded ({error}); check the module and function"
        ) from error
    given: dict[str, Any]
    match module_name.partition(".")[0]:
        case "torchvision":
            given = {"num_classes": data.outputs}
        case "timm":
            given = {"num_classes": data.outputs, "in_chans": data.input_shape[0]}
        case _:
            given = {"input_shape": data.input_shape, "outputs": data.outputs}
    try:
        model = function(**{**given, **config.options})
    except TypeError as error:
        raise ConfigError(
            f"model.name: {config.name} refused its arguments {sorted({**given, **config.options})}: {error}"
        ) from error
    if not isinstance(model, nn.Module):
        raise ConfigError(f"model.name: {config.name} returned {type(model).__name__}, but a torch.nn.Module is needed")
    return model
