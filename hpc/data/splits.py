"""Splits and subsets, drawn from the seed: stratified, so that every part has the classes' shares."""

import numpy as np
import numpy.typing as npt

Indices = npt.NDArray[np.int64]


def hold_out(strata: Indices, count: int, generator: np.random.Generator) -> tuple[Indices, Indices]:
    """Divide samples into those that are kept and those that are held out.

    Each stratum gives its share of ``count``, rounded so that the sum is exact, and keeps at least one sample
    where that is possible at all (``count`` leaves as many samples as there are strata).

    Args:
        strata: (N,) int64, the class of each sample; all equal for a plain random split.
        count: how many to hold out, 0 to N.
        generator: where chance comes from.

    Returns:
        Indices kept and indices held out, int64, each in increasing order: disjoint, and together all.
    """
    samples = len(strata)
    assert 0 <= count <= samples, f"{count} of {samples} samples"
    shuffled = generator.permutation(samples)
    _, places = np.unique(strata, return_inverse=True)
    by_stratum = shuffled[np.argsort(places[shuffled], kind="stable")]
    sizes = np.bincount(places)
    rank = np.arange(samples) - np.repeat(np.cumsum(sizes) - sizes, sizes)  # place within its stratum
    held = rank < np.repeat(shares(sizes, count), sizes)
    return np.sort(by_stratum[~held]), np.sort(by_stratum[held])


def shares(sizes: Indices, count: int) -> Indices:
    """How many of ``count`` each stratum gives: the largest-remainder method, sparing each one's last sample.

    Args:
        sizes: (S,) int64, samples in each stratum, at least 1.
        count: the sum of the result, at most the sum of ``sizes``.
    """
    if count == 0:
        return np.zeros_like(sizes)
    limits = sizes - 1 if count <= (sizes - 1).sum() else sizes
    ideal = count * sizes / sizes.sum()
    given: Indices = np.minimum(np.floor(ideal).astype(np.int64), limits)
    while (missing := count - int(given.sum())) > 0:
        order = np.argsort(given - ideal, kind="stable")  # who lacks most comes first
        given[order[(given < limits)[order]][:missing]] += 1
    return given
