"""Where the time goes."""

import time

import pytest
import torch

from hpc import clock as module
from hpc.clock import Clock
from hpc.record import COLUMNS

CPU = torch.device("cpu")


class Time:
    """A clock that tests set."""

    now = 10.0

    def perf_counter(self):
        return self.now


@pytest.fixture
def hand(monkeypatch):
    hand = Time()
    monkeypatch.setattr(module, "time", hand)
    return hand


def walk(clock, hand, phases):
    for phase, seconds in phases:
        clock.enter(phase)
        hand.now += seconds
    clock.enter("")


def test_time_belongs_to_the_phase_that_was_entered_last(hand):
    clock = Clock(CPU)
    walk(clock, hand, [("data", 1), ("forward", 2), ("backward", 4), ("data", 8), ("evaluate", 16)])
    taken = clock.take()
    assert taken == {**dict.fromkeys(COLUMNS["profile"], 0.0), "data": 9, "forward": 2, "backward": 4, "evaluate": 16}


def test_time_in_no_phase_belongs_to_none(hand):
    clock = Clock(CPU)
    hand.now += 100
    walk(clock, hand, [("data", 1), ("", 50), ("exchange", 2)])
    hand.now += 100
    clock.enter("optimizer")
    assert sum(clock.take().values()) == 3


def test_phases_add_up_to_the_time_that_went_by(hand):
    clock = Clock(CPU)
    walk(clock, hand, [(phase, place / 8 + 1) for place, phase in enumerate(COLUMNS["profile"])] * 3)
    assert sum(clock.take().values()) == hand.now - 10.0


def test_taking_starts_again_from_zero(hand):
    clock = Clock(CPU)
    walk(clock, hand, [("data", 1)])
    assert clock.take()["data"] == 1
    assert sum(clock.take().values()) == 0
    walk(clock, hand, [("data", 3)])
    assert clock.take()["data"] == 3


def test_what_was_taken_does_not_change_any_more(hand):
    clock = Clock(CPU)
    taken = clock.take()
    walk(clock, hand, [("data", 1)])
    assert taken["data"] == 0


def test_every_phase_is_a_column_of_the_record_in_its_order():
    assert list(Clock(CPU).take()) == list(COLUMNS["profile"])


def test_a_phase_that_is_no_column_is_an_error(hand):
    clock = Clock(CPU)
    clock.enter("dreaming")
    with pytest.raises(KeyError):
        clock.enter("data")


def test_real_time_is_wall_time():
    clock = Clock(CPU)
    start = time.perf_counter()
    clock.enter("data")
    time.sleep(0.02)
    clock.enter("forward")
    time.sleep(0.01)
    clock.enter("")
    passed = time.perf_counter() - start
    taken = clock.take()
    assert taken["data"] >= 0.02
    assert taken["forward"] >= 0.01
    assert taken["data"] + taken["forward"] <= passed


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
def test_on_a_device_the_work_counts_and_not_its_queueing():
    clock = Clock(torch.device("cuda"))
    matrix = torch.randn(4096, 4096, device="cuda")
    for _ in range(2):  # the first round loads the library
        clock.enter("forward")
        for _ in range(20):
            matrix = matrix @ matrix
            matrix /= matrix.norm()
        clock.enter("backward")
        clock.enter("")
        start = time.perf_counter()
        taken = clock.take()
        waited = time.perf_counter() - start
    assert taken["forward"] > 0.5 * waited
    assert taken["backward"] < 0.5 * taken["forward"]
