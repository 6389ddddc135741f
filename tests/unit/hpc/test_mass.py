"""Masses: nothing is lost, nothing is made."""

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpc.exchange import mass

MASSES = st.integers(mass.LEAST, 1 << 62)


@given(MASSES)
@settings(deadline=None)
def test_halves_add_up_and_neither_is_nothing(units):
    kept, given_away = mass.halve(units)
    assert kept + given_away == units
    assert kept >= given_away >= 1


@given(MASSES)
@settings(deadline=None)
def test_the_remainder_of_an_odd_number_stays(units):
    kept, given_away = mass.halve(units)
    assert kept - given_away == units % 2


@pytest.mark.parametrize("units", [1, 0, -4])
def test_too_little_cannot_be_halved(units):
    with pytest.raises(ValueError, match=f"a mass of {units} cannot be halved; it must be at least 2"):
        mass.halve(units)


def test_a_rank_can_push_forty_times_before_anything_comes_back():
    units, given_away = mass.UNITS, []
    while units >= mass.LEAST:
        units, away = mass.halve(units)
        given_away.append(away)
    assert len(given_away) == 40
    assert units == 1
    assert units + sum(given_away) == mass.UNITS


def test_the_whole_of_eight_million_ranks_fits_into_a_header():
    assert mass.UNITS * (2**23 - 1) < 2**63


@given(st.integers(1, 1 << 62), st.integers(1, 1 << 62))
@settings(deadline=None)
def test_a_share_is_the_received_part_of_both(own, received):
    assert 0 <= mass.share(own, received) <= 1
    assert mass.share(own, received) == received / (own + received)


def test_equal_masses_share_evenly():
    assert mass.share(mass.UNITS, mass.UNITS) == 0.5
    assert mass.share(mass.UNITS, mass.UNITS // 2) == pytest.approx(1 / 3)


HELD = st.lists(st.integers(0, mass.UNITS * 64), min_size=1, max_size=64).filter(any)


@given(HELD, st.integers(1, mass.UNITS * 64))
@settings(deadline=None)
def test_renormalised_masses_are_the_whole_exactly_and_in_proportion(held, whole):
    masses = mass.renormalise(held, whole)
    assert sum(masses) == whole
    total = sum(held)
    for before, after in zip(held, masses, strict=True):
        assert abs(after * total - before * whole) < total  # less than one unit from the exact share
        assert after >= 0


@given(HELD)
@settings(deadline=None)
def test_more_never_becomes_less(held):
    masses = mass.renormalise(held, mass.UNITS * len(held))
    pairs = sorted(zip(held, masses, strict=True), key=lambda pair: pair[0])
    for (smaller, less), (larger, more) in pairwise(pairs):
        assert smaller == larger or less <= more


def test_the_whole_of_the_whole_changes_nothing():
    held = [mass.UNITS, 3, mass.UNITS // 7, 2 * mass.UNITS - 3 - mass.UNITS // 7]
    assert mass.renormalise(held, sum(held)) == held


def test_a_mass_of_nothing_has_no_proportions():
    with pytest.raises(ValueError, match="masses of 0 together"):
        mass.renormalise([0, 0], mass.UNITS)
