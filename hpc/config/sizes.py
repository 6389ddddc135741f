"""How many samples train, and whether that is enough: counted alike before the data are read and after.

``hpc.config.check`` asks before a rank starts, with the counts of :mod:`hpc.config.peek`; ``hpc.data`` asks
again of the samples in memory, and divides them by these very numbers.
"""

from hpc.config.data import DataConfig, Images, Tabular
from hpc.errors import ConfigError

DIGITS_TEST = 0.2  # the published test part is all there is: a fifth of it is ours


def divide(config: DataConfig, train: int, valid: int | None, test: int | None) -> tuple[int, int, int]:
    """Samples to train on, for validation, and for the test, in this order.

    The test is the published one, else a share of all samples. Validation is held out next, then ``train_size``
    is drawn from the rest: so neither depends on ``train_size``.

    Args:
        config: the section ``data``.
        train: published training samples; all samples where there is no test.
        valid: published validation samples; None: to be held out.
        test: published test samples; None: to be held out.

    Raises:
        ConfigError: more is asked for than there is.
    """
    if test is None:
        share = config.test if isinstance(config, Tabular) else DIGITS_TEST
        test = _count(train, share, "data.test")
        train -= test
    if config.validation == 0:
        valid = 0
    elif valid is None:
        valid = _count(train, config.validation, "data.validation")
        train -= valid
    if config.train_size is None:
        return train, valid, test
    if config.train_size > train:
        raise ConfigError(
            f"data.train_size: got {config.train_size}, but {config.name} has {train} training samples beside "
            f"{valid} for validation and {test} for the test; lower it, or use null for all"
        )
    return config.train_size, valid, test


def _count(samples: int, share: float, key: str) -> int:
    """A share of samples: at least one where the share is not zero, never all."""
    count = max(1, round(samples * share)) if share else 0
    if count >= samples:
        raise ConfigError(f"{key}: {share} of {samples} samples leaves none to train on; lower it or give more samples")
    return count


def steps_per_epoch(samples: int, batch_size: int, world_size: int) -> int:
    """Whole global batches in an epoch; the samples left over are dropped (others in every epoch).

    Raises:
        ConfigError: there is not one whole global batch.
    """
    steps = samples // (batch_size * world_size)
    if steps == 0:
        most = samples // world_size
        advice = f"lower data.batch_size to {most} or less" if most else f"start at most {samples} rank(s)"
        raise ConfigError(
            f"data.batch_size: {batch_size} on each of {world_size} rank(s) needs {batch_size * world_size} "
            f"training samples, but there are {samples}; {advice}"
        )
    return steps


def check_padding(config: Images, height: int, width: int) -> None:
    """Raise ConfigError where a crop could hold nothing of the image."""
    side = min(height, width)
    if config.augment.pad >= side:
        raise ConfigError(
            f"data.augment.pad: got {config.augment.pad}, but images of {height} x {width} pixels could "
            f"be cropped away altogether; use {side - 1} or less"
        )
