"""Two phases, by hand: a table of epochs for each rule."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from structlearn.pruning.phases import Phases


def run(phases, epochs):
    """(phase, factor, best) after each (accuracy, units)."""
    rows = []
    for accuracy, units in epochs:
        phases.after_epoch(accuracy, units)
        rows.append((phases.phase, round(phases.factor, 9), phases.best))
    return rows


def test_pruning_goes_on_while_units_go_or_accuracy_rises():
    phases = Phases(2)
    rows = run(phases, [(0.5, 10), (0.4, 9), (0.4, 9), (0.6, 9), (0.1, 9), (0.1, 8), (0.6, 8)])
    assert {row[0] for row in rows} == {"pruning"}
    assert run(phases, [(0.6, 8)]) == [("fine_tuning", 1.0, False)]


def test_an_equal_accuracy_and_more_units_are_no_improvement():
    assert run(Phases(2), [(0.5, 10), (0.5, 11), (0.5, 10)])[-1][0] == "fine_tuning"


def test_fine_tuning_drops_the_rate_twice_then_ends():
    phases = Phases(1)
    rows = run(phases, [(0.9, 5), (0.9, 5), (0.2, 5), (0.1, 5), (0.3, 5), (0.3, 5), (0.4, 5), (0.4, 5), (0.9, 5)])
    assert rows == [
        ("pruning", 1.0, False),
        ("fine_tuning", 1.0, False),
        ("fine_tuning", 1.0, True),  # the first of this phase, though pruning had better ones
        ("fine_tuning", 0.1, False),
        ("fine_tuning", 0.1, True),
        ("fine_tuning", 0.01, False),
        ("fine_tuning", 0.01, True),
        ("done", 0.01, False),
        ("done", 0.01, False),  # nothing comes after it
    ]


def test_fewer_units_do_not_hold_up_fine_tuning():
    phases = Phases(1)
    run(phases, [(0.9, 5), (0.9, 5), (0.5, 5)])
    assert run(phases, [(0.5, 4)]) == [("fine_tuning", 0.1, False)]


def test_nan_is_never_an_improvement():
    phases = Phases(2)
    run(phases, [(0.5, 5), (math.nan, 5)])
    assert phases.phase == "pruning"
    run(phases, [(math.nan, 5)])
    assert phases.phase == "fine_tuning"
    assert run(phases, [(math.nan, 5), (0.1, 5)])[1] == ("fine_tuning", 1.0, True)


@pytest.mark.parametrize("patience", [0, -1, 1.5])
def test_patience_is_a_whole_number(patience):
    with pytest.raises(ValueError, match="patience must be a whole number"):
        Phases(patience)


@given(
    st.lists(st.tuples(st.sampled_from([0.1, 0.2, 0.3, math.nan]), st.integers(1, 4)), max_size=40),
    st.integers(0, 40),
    st.integers(1, 3),
)
def test_resumed_anywhere_it_goes_the_same_way(epochs, stop, patience):
    whole, first, second = Phases(patience), Phases(patience), Phases(patience)
    rows = run(whole, epochs)
    begun = run(first, epochs[:stop])
    second.load_state_dict(first.state_dict())
    assert begun + run(second, epochs[stop:]) == rows
    assert sum(row[2] for row in rows if row[0] != "fine_tuning") == 0
