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


# --- a device ----------------------------------------------------------------------------------------------


class Device:
    """A device with one queue, whose kernels take as long as a test says; events mark places in the queue."""

    def __init__(self, hand):
        self.hand, self.free, self.events = hand, 0.0, 0

    def queue(self, seconds):
        self.free = max(self.free, self.hand.now) + seconds

    def event(self, *, enable_timing):
        assert enable_timing
        self.events += 1
        return Event(self)


class Event:
    def __init__(self, device):
        self.device, self.when = device, None

    def record(self):
        self.when = max(self.device.free, self.device.hand.now)

    def synchronize(self):
        self.device.hand.now = max(self.device.hand.now, self.when)

    def elapsed_time(self, end):
        """Milliseconds; an error where the device has not come so far, as in torch."""
        assert max(self.when, end.when) <= self.device.hand.now
        return 1e3 * (end.when - self.when)


@pytest.fixture
def device(hand, monkeypatch):
    device = Device(hand)
    monkeypatch.setattr(torch.cuda, "Event", device.event)
    return device


@pytest.fixture
def clock(device):
    return Clock(torch.device("cuda"))


STEP = {"data": 1.0, "forward": 2.0, "backward": 4.0, "exchange": 0.5, "optimizer": 0.25}


def steps(clock, device, number):
    """The host queues in no time what takes the device a while."""
    for _ in range(number):
        for phase, seconds in STEP.items():
            clock.enter(phase)
            device.queue(seconds)
        clock.enter("")


def test_the_work_of_a_device_counts_and_not_its_queueing(clock, device, hand):
    steps(clock, device, 3)
    assert hand.now == 10.0  # nothing waited
    taken = clock.take()
    assert {phase: taken[phase] for phase in STEP} == {phase: 3 * seconds for phase, seconds in STEP.items()}
    assert sum(taken.values()) == hand.now - 10.0


def test_work_in_no_phase_counts_for_none_on_a_device_either(clock, device):
    for _ in range(2):
        steps(clock, device, 1)
        device.queue(100)
    clock.enter("data")
    clock.enter("")
    assert sum(clock.take().values()) == 2 * sum(STEP.values())


@pytest.mark.parametrize("phase", ["evaluate", "checkpoint"])
def test_what_a_phase_of_the_host_waits_for_is_not_counted_again(clock, device, hand, phase):
    for epoch in (1, 2):
        start = hand.now
        steps(clock, device, 2)
        clock.enter(phase)
        hand.now = max(hand.now, device.free) + 3  # the first thing it does is fetch a number from the device
        clock.enter("")
        taken = clock.take()
        assert taken[phase] == 3, epoch
        assert sum(taken.values()) == hand.now - start == 2 * sum(STEP.values()) + 3


def test_a_checkpoint_within_an_epoch_takes_its_own_time_only(clock, device, hand):
    steps(clock, device, 1)
    clock.enter("checkpoint")
    hand.now += 5
    clock.enter("")
    steps(clock, device, 1)
    taken = clock.take()
    assert taken["checkpoint"] == 5
    assert sum(taken.values()) == hand.now - 10.0 == 5 + 2 * sum(STEP.values())


def test_a_phase_that_is_under_way_when_the_times_are_taken_goes_on(clock, device):
    clock.enter("forward")
    device.queue(1)
    clock.enter("backward")
    device.queue(2)
    assert clock.take()["forward"] == 1
    device.queue(4)
    clock.enter("")
    taken = clock.take()
    assert (taken["forward"], taken["backward"]) == (0, 6)


def test_events_are_used_again(clock, device):
    steps(clock, device, 5)
    clock.take()
    made = device.events
    for _ in range(3):
        steps(clock, device, 5)
        clock.take()
    assert device.events <= made + 1  # the last mark stays


def test_an_epoch_of_any_length_needs_a_limited_number_of_events(clock, device, monkeypatch):
    monkeypatch.setattr(module, "_MARKS", 16)
    steps(clock, device, 100)
    taken = clock.take()
    assert {phase: taken[phase] for phase in STEP} == {phase: 100 * seconds for phase, seconds in STEP.items()}
    assert device.events == 16


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
def test_the_phases_of_a_real_device_are_no_longer_than_the_time_that_went_by():
    clock = Clock(torch.device("cuda"))
    matrix = torch.randn(4096, 4096, device="cuda")
    torch.cuda.synchronize()
    for _ in range(2):
        start = time.perf_counter()
        for _ in range(20):
            clock.enter("forward")
            matrix = matrix @ matrix
            clock.enter("backward")
            matrix /= matrix.norm()
        clock.enter("")
        clock.enter("evaluate")
        matrix.sum().cpu()
        clock.enter("")
        taken = clock.take()
        assert min(taken[phase] for phase in ("forward", "backward", "evaluate")) > 0
        assert sum(taken.values()) <= time.perf_counter() - start
