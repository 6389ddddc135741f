"""The mean training loss, whoever made how many steps."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hpc.alone import Alone
from hpc.losses import Losses


class Others(Alone):
    """A communicator whose other ranks have answered already."""

    def __init__(self, answers):
        self.answers = answers

    def gather(self, value, what):
        return [*super().gather(value, what), *self.answers]


def filled(values, steps=3):
    losses = Losses(steps, torch.device("cpu"))
    for value in values:
        losses.add(torch.tensor(value))
    return losses


def asked(values, every=None):
    """What another rank with these losses would have said."""
    seen = []

    class Listener(Alone):
        def gather(self, value, what):
            seen.append(value)
            return [[0.0, 1, []]]

    filled(values).take(Listener(), every)
    return seen[0]


def test_the_mean_of_all_steps_and_of_spans():
    mean, spans = filled([1.0, 3.0, 5.0, 7.0, 9.0]).take(Alone(), 2)
    assert mean == 5.0
    assert spans == [2.0, 6.0]  # the fifth waits for a sixth, and is dropped


def test_no_spans_unless_asked():
    assert filled([1.0, 2.0]).take(Alone(), None) == (1.5, [])


def test_a_rank_with_more_steps_counts_for_more():
    mean, spans = filled([1.0, 1.0, 1.0, 1.0]).take(Others([asked([6.0], 1)]), 1)
    assert mean == pytest.approx((4 * 1.0 + 6.0) / 5)
    assert spans == [3.5, 1.0, 1.0, 1.0]  # a span is the mean of the ranks that have made it


def test_a_rank_without_steps_changes_nothing():
    assert filled([2.0, 4.0]).take(Others([asked([], 2)]), 2) == (3.0, [3.0])


LOSSES = st.lists(st.floats(0, 100, width=32), max_size=12)


@given(st.lists(LOSSES, min_size=1, max_size=4).filter(any), st.integers(1, 5))
@settings(deadline=None)
def test_it_is_the_mean_over_all_steps_of_all_ranks(ranks, every):
    own, *others = ranks
    mean, spans = filled(own).take(Others([asked(values, every) for values in others]), every)
    everything = [value for values in ranks for value in values]
    assert mean == pytest.approx(sum(everything) / len(everything), rel=1e-9, abs=1e-12)
    assert len(spans) == max(len(values) // every for values in ranks)


def test_taking_starts_again():
    losses = filled([1.0, 2.0])
    losses.take(Alone(), None)
    losses.add(torch.tensor(7.0))
    assert losses.take(Alone(), None) == (7.0, [])


def test_more_steps_than_expected_find_room():
    losses = filled([float(value) for value in range(1000)], steps=1)
    assert losses.last() == 999.0
    assert losses.take(Alone(), None)[0] == pytest.approx(499.5)


def test_the_last_is_the_newest():
    losses = filled([4.0])
    assert losses.last() == 4.0
    losses.add(torch.tensor(2.0))
    assert losses.last() == 2.0


def test_a_state_comes_back_and_is_not_changed_by_what_follows():
    losses = filled([1.0, 2.0, 4.0, 8.0])
    state = {key: value.clone() for key, value in losses.state_dict().items()}
    other = filled([5.0])
    other.load_state_dict(state)
    other.add(torch.tensor(16.0))
    assert other.take(Alone(), 1) == (31 / 5, [1.0, 2.0, 4.0, 8.0, 16.0])
    assert losses.take(Alone(), None)[0] == 15 / 4


def test_a_loss_that_is_no_number_is_seen():
    mean, spans = filled([1.0, float("nan"), 3.0]).take(Alone(), 1)
    assert mean != mean  # noqa: PLR0124 - nan
    assert spans[::2] == [1.0, 3.0]
