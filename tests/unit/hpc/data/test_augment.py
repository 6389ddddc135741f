"""Augmentation against a loop over samples that says what is meant."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from hpc.data.augment import augment, draw


def slowly(images: Tensor, pad: int, changes: Tensor) -> Tensor:
    """One image at a time: pad, crop, mirror."""
    result = []
    for image, (row, column, mirror) in zip(images, changes.tolist(), strict=True):
        padded = torch.nn.functional.pad(image, (pad, pad, pad, pad))
        cropped = padded[:, row : row + image.shape[1], column : column + image.shape[2]]
        result.append(cropped.flip(2) if mirror else cropped)
    return torch.stack(result)


@given(
    shape=st.tuples(st.integers(1, 5), st.integers(1, 3), st.integers(1, 6), st.integers(1, 6)),
    pad=st.integers(0, 4),
    flip=st.booleans(),
    dtype=st.sampled_from([torch.uint8, torch.float32]),
)
def test_the_same_as_one_by_one(shape: tuple[int, ...], pad: int, flip: bool, dtype: torch.dtype) -> None:
    chance = np.random.default_rng(0)
    images = torch.from_numpy(chance.integers(1, 256, shape)).to(dtype)
    changes = torch.from_numpy(draw(shape[0], pad, flip, chance))
    changed = augment(images, pad, changes)
    assert changed.dtype == dtype
    assert torch.equal(changed, slowly(images, pad, changes))


def test_every_change_is_drawn() -> None:
    changes = draw(2000, 2, True, np.random.default_rng(0))
    for column, values in ((0, 5), (1, 5), (2, 2)):
        counts = np.bincount(changes[:, column])
        assert len(counts) == values
        assert counts == pytest.approx(2000 / values, rel=0.2)


def test_nothing_asked_nothing_drawn() -> None:
    assert not draw(10, 0, False, np.random.default_rng(0)).any()
    assert not draw(50, 3, False, np.random.default_rng(0))[:, 2].any()
    assert not draw(50, 0, True, np.random.default_rng(0))[:, :2].any()
