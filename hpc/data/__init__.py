"""Data: readers, splits, sample order, augmentation, and the feed that the engine trains from.

``load`` makes a ``DataSet`` of what the configuration names; a ``Feed`` hands out its batches on a device.
"""

import numpy as np
import torch
from torch import Tensor

from hpc.config.data import DataConfig, Digits, ImageFiles, Images, Tabular, TextFiles
from hpc.config.files import locate
from hpc.config.sizes import check_padding, divide
from hpc.data.dataset import DataSet, Part, Source, Task
from hpc.data.feed import Feed
from hpc.data.splits import hold_out
from hpc.seeding import generator

__all__ = ["DataSet", "Feed", "Part", "load"]


def load(config: DataConfig, seed: int) -> DataSet:
    """Read the data set a configuration names, verify it, and split it from the seed.

    The test set is the published one, else a share of all samples. Validation samples are held out next, then
    ``train_size`` is drawn from the rest: so neither depends on ``train_size``. Statistics come last.

    Args:
        config: the section ``data``.
        seed: the master seed; the same seed gives the same split on every rank and machine.

    Raises:
        ConfigError: files are missing, or sizes are asked for that the data do not have.
        RunError: a file is not what it should be.
    """
    source = _read(config)
    task: Task = config.task if isinstance(config, Tabular) else "classification"
    if isinstance(config, TextFiles):
        task = "sequence"
    train, valid, test = _split(source, config, task, seed)
    shape = tuple(train.inputs.shape[1:])
    if isinstance(config, Images):
        check_padding(config, *shape[1:])
    mean, std = _statistics(train.inputs, config)
    return DataSet(config.name, task, train, valid, test, shape, len(source.labels), mean, std, source.labels)


def _read(config: DataConfig) -> Source:
    """Call the reader; each is imported when it is needed, with the libraries it needs."""
    files = locate(config)
    match config:
        case Digits():
            from hpc.data import digits

            return digits.read()
        case TextFiles():
            from hpc.data import text

            return text.read(files, config.length)
        case Tabular():
            from hpc.data import tabular

            return tabular.read(config, files)
        case ImageFiles(name="svhn"):
            from hpc.data import svhn

            return svhn.read(files)
        case ImageFiles(name="cifar10" | "cifar100"):
            from hpc.data import cifar

            return cifar.read(config.name, files)
        case ImageFiles():
            from hpc.data import idx

            return idx.read(config.name, files)


def _split(source: Source, config: DataConfig, task: Task, seed: int) -> tuple[Part, Part, Part]:
    """Training, validation and test samples: disjoint."""
    train, valid, test = source.train, source.valid, source.test
    published = (None if part is None else len(part) for part in (valid, test))
    training, validating, testing = divide(config, len(train), *published)
    if test is None:
        train, test = _held(train, testing, task, generator(seed, "split", 0))
    if config.validation == 0:
        valid = train.at(torch.empty(0, dtype=torch.int64))
    elif valid is None:
        train, valid = _held(train, validating, task, generator(seed, "split", 1))
    if config.train_size is not None:
        train, _ = _held(train, len(train) - training, task, generator(seed, "subset"))
    return train, valid, test


def _held(part: Part, count: int, task: Task, chance: np.random.Generator) -> tuple[Part, Part]:
    """A part without the samples that are held out, and those; by class where there are classes."""
    classes = part.targets.numpy() if task == "classification" else np.zeros(len(part), np.int64)
    kept, held = hold_out(classes, count, chance)
    return part.at(torch.from_numpy(kept)), part.at(torch.from_numpy(held))


def _statistics(inputs: Tensor, config: DataConfig) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of the training inputs (of each channel or column), to scale all inputs."""
    if isinstance(config, TextFiles) or (isinstance(config, Images) and config.normalize == "none"):
        shape = () if isinstance(config, TextFiles) else (inputs.shape[1], 1, 1)
        return torch.zeros(shape), torch.ones(shape)
    if isinstance(config, Images):
        # A histogram of the 256 values: exact, and without a copy of all pixels in floating point.
        counts = torch.stack([torch.bincount(c.flatten(), minlength=256) for c in inputs.unbind(1)]).double()
        values, total = torch.arange(256.0, dtype=torch.float64), counts.sum(1, keepdim=True)
        mean = (counts * values).sum(1, keepdim=True) / total
        variance = (counts * (values - mean).square()).sum(1, keepdim=True) / total
        mean, std, constant = mean[..., None], variance.sqrt()[..., None], (variance == 0)[..., None]
    else:
        exact = inputs.double()
        mean, std = exact.mean(0), exact.std(0, correction=0)
        constant = inputs.amax(0) == inputs.amin(0)
    return mean.float(), torch.where(constant, 1.0, std).float()
