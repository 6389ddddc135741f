"""How samples are divided, and when there are too few."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpc.config.data import Augment, DataConfig, Digits, ImageFiles, Tabular, TextFiles
from hpc.config.sizes import check_padding, divide, steps_per_epoch
from hpc.errors import ConfigError

MNIST = ImageFiles(name="mnist")


@pytest.mark.parametrize(
    ("config", "published", "divided"),
    [
        (Digits(), (1797, None, None), (1294, 144, 359)),
        (Digits(train_size=100), (1797, None, None), (100, 144, 359)),
        (Digits(validation=0.0), (1797, None, None), (1438, 0, 359)),
        (MNIST, (60000, None, 10000), (54000, 6000, 10000)),
        (ImageFiles(name="mnist", validation=0.001), (60, None, 10), (59, 1, 10)),
        (TextFiles(root=""), (28, 7, 1), (28, 7, 1)),
        (TextFiles(root="", validation=0.0), (28, 7, 1), (28, 0, 1)),
        (Tabular(root=""), (200, None, None), (144, 16, 40)),
        (Tabular(root="", test=0.0), (200, None, None), (180, 20, 0)),
        (Tabular(root="", test=0.5), (200, 3, 20), (200, 3, 20)),
    ],
)
def test_samples_are_divided(
    config: DataConfig, published: tuple[int, int | None, int | None], divided: tuple[int, int, int]
) -> None:
    assert divide(config, *published) == divided


@given(
    st.integers(1, 500),
    st.none() | st.integers(1, 50),
    st.none() | st.integers(1, 50),
    st.floats(0, 1, exclude_max=True),
    st.floats(0, 1, exclude_max=True),
    st.none() | st.integers(1, 500),
)
def test_no_part_takes_more_than_there_is(
    train: int, valid: int | None, test: int | None, validation: float, share: float, size: int | None
) -> None:
    config = Tabular(root="", validation=validation, test=share, train_size=size)
    try:
        training, validating, testing = divide(config, train, valid, test)
    except ConfigError as error:
        assert str(error).partition(":")[0] in {"data.test", "data.validation", "data.train_size"}  # noqa: PT017
        return
    held = (0 if valid is not None else validating) + (0 if test is not None else testing)
    assert 1 <= training <= train - held
    assert size is not None or training == train - held
    assert (validating == 0) is (validation == 0)


@pytest.mark.parametrize(
    ("config", "published", "message"),
    [
        (Digits(train_size=1295), (1797, None, None), r"data.train_size: got 1295, but digits has 1294 .* beside 144"),
        (ImageFiles(name="mnist", validation=0.999), (100, None, 9), "data.validation: 0.999 of 100 samples leaves no"),
        (Tabular(root="", test=0.9), (3, None, None), "data.test: 0.9 of 3 samples leaves none"),
    ],
)
def test_more_than_there_is(config: DataConfig, published: tuple[int, int | None, int | None], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        divide(config, *published)


def test_a_step_takes_a_whole_global_batch() -> None:
    assert steps_per_epoch(100, 25, 4) == 1
    with pytest.raises(ConfigError, match=r"26 on each of 4 rank\(s\) needs 104 .* lower data.batch_size to 25"):
        steps_per_epoch(100, 26, 4)
    with pytest.raises(ConfigError, match=r"start at most 3 rank\(s\)"):
        steps_per_epoch(3, 1, 4)


def test_padding_leaves_some_of_the_image() -> None:
    check_padding(Digits(augment=Augment(pad=5)), 6, 9)
    with pytest.raises(ConfigError, match=r"got 6, but images of 6 x 9 .* use 5 or less"):
        check_padding(Digits(augment=Augment(pad=6)), 6, 9)
