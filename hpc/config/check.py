"""Everything about a configuration that can be known before a rank starts, beyond single keys."""

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path

from hpc.config.data import Images, Tabular, TextFiles
from hpc.config.devices import cuda_devices
from hpc.config.files import locate
from hpc.config.folder import check_folder
from hpc.config.model import Custom, Lstm, Mlp
from hpc.config.root import Config
from hpc.config.training import Plateau, Sgd, Step
from hpc.errors import ConfigError


def check(config: Config, local_ranks: int) -> None:
    """Raise one ConfigError that lists every problem of a configuration on this machine.

    Args:
        config: the configuration.
        local_ranks: how many ranks will share this machine's devices.
    """
    problems = [*_combinations(config), *_fit(config), *_devices(config, local_ranks), *_model(config)]
    for look in (lambda: locate(config.data), lambda: check_folder(config)):
        try:
            look()
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError(problems)


def _combinations(config: Config) -> Iterator[str]:
    """Keys that are fine alone and impossible together."""
    if config.data.validation == 0:
        needs = "but data.validation is 0; hold some samples out, for example data.validation: 0.1"
        if isinstance(config.schedule, Plateau):
            yield f"schedule.name: plateau watches the validation loss, {needs}"
        if config.early_stopping is not None:
            yield f"early_stopping: it watches the validation loss, {needs}"
    optimizer, schedule = config.optimizer, config.schedule
    if isinstance(optimizer, Sgd) and optimizer.nesterov and optimizer.momentum == 0:
        yield "optimizer.nesterov: true needs optimizer.momentum above 0"
    if isinstance(schedule, Step) and list(schedule.milestones) != sorted(set(schedule.milestones)):
        yield f"schedule.milestones: got {list(schedule.milestones)}; give increasing epochs, for example [30, 60]"
    if schedule.warmup_epochs > config.epochs:
        yield (
            f"schedule.warmup_epochs: got {schedule.warmup_epochs}, which is longer than the run "
            f"(epochs: {config.epochs}); make it shorter"
        )


def _fit(config: Config) -> Iterator[str]:
    """Does the network take this kind of data?"""
    data, model = config.data, config.model
    if config.compute.channels_last and not isinstance(data, Images):
        yield f"compute.channels_last: only images have channels, but data.name is {data.name}; leave it false"
    if isinstance(model, Custom):
        return
    if isinstance(data, TextFiles) != isinstance(model, Lstm):
        fitting = "lstm" if isinstance(data, TextFiles) else "any network but lstm"
        yield f"model.name: {model.name} does not take the data set {data.name}; use {fitting}"
    elif isinstance(data, Tabular) and not isinstance(model, Mlp):
        yield f"model.name: {model.name} needs images, but data.name is tabular; use mlp"


def _devices(config: Config, local_ranks: int) -> Iterator[str]:
    """Is there a device for every rank?"""
    if config.compute.device == "cpu":
        return
    found = cuda_devices()
    if config.compute.device == "cuda" and found == 0:
        yield "compute.device: got cuda, but no CUDA device was found here; use cpu or auto"
    elif 0 < found < local_ranks and not config.compute.share_devices:
        yield (
            f"compute.device: {local_ranks} ranks on this machine, but {found} CUDA device(s); start {found} rank(s), "
            f"or set compute.share_devices: true, or compute.device: cpu"
        )


def _model(config: Config) -> Iterator[str]:
    """Can a model of the user's own be found?"""
    if not isinstance(config.model, Custom):
        return
    module = config.model.name.partition(":")[0]
    top = module.partition(".")[0]
    if top in sys.modules or importlib.util.find_spec(top) or Path(f"{top}.py").exists() or Path(top).is_dir():
        return
    yield (
        f"model.name: no module {top!r} is installed or lies in this folder; "
        f"install it, or start from the folder that holds {top}.py"
    )
