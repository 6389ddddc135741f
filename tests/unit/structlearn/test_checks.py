"""Names, numbers and intervals that are refused, with a word on what is allowed."""

from __future__ import annotations

import math

import numpy as np
import pytest

from structlearn.checks import check_choice, check_count, check_interval, check_share


def test_a_choice_is_among_those_allowed_and_a_near_miss_is_named() -> None:
    check_choice("optimizer", "sgd", ["sgd", "adam"])
    with pytest.raises(ValueError, match=r"unknown optimizer 'adm' \(did you mean 'adam'\?\); use one of: sgd, adam"):
        check_choice("optimizer", "adm", ["sgd", "adam"])
    with pytest.raises(ValueError, match="unknown optimizer 'x'; use one of"):
        check_choice("optimizer", "x", ["sgd", "adam"])


def test_a_count_is_whole_and_at_least_one() -> None:
    assert check_count("heads", np.int64(3)) == 3
    for wrong in (0, -1, 2.0, True, "3"):
        with pytest.raises(ValueError, match="heads must be a whole number of at least 1"):
            check_count("heads", wrong)


def test_a_share_is_between_0_and_1() -> None:
    assert check_share("theta", 0.5) == 0.5
    assert check_share("frozen", 0, zero=True) == 0.0
    for wrong in (0, 1, -0.1, 2, math.nan):
        with pytest.raises(ValueError, match="theta must be above 0 and below 1"):
            check_share("theta", wrong)
    with pytest.raises(ValueError, match="frozen must be at least 0 and below 1"):
        check_share("frozen", 1, zero=True)


def test_an_interval_is_above_0_and_in_order() -> None:
    assert check_interval("rates", 1, 1) == (1.0, 1.0)
    for wrong in ((0, 1), (2, 1), (1, math.inf), (math.nan, 1), (-1, 1)):
        with pytest.raises(ValueError, match="rates must be an interval above 0"):
            check_interval("rates", *wrong)
