"""Schedules against torch's own, and patience against a plain reading of what it promises."""

import json
import math
import random
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch.optim import lr_scheduler

from hpc.config.training import Constant, Cosine, EarlyStopping, Exponential, Plateau, ScheduleConfig, Step
from hpc.schedule import Patience, Schedule, early_stopping

EPOCHS, STEPS, BASE = 40, 5, 0.3


def sgd() -> torch.optim.Optimizer:
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=BASE)


def theirs(scheduler: Any, optimizer: torch.optim.Optimizer, losses: list[float] | None = None) -> Iterator[float]:
    """The rate of each epoch under torch's scheduler."""
    for epoch in range(EPOCHS):
        yield optimizer.param_groups[0]["lr"]
        optimizer.step()
        with warnings.catch_warnings():
            scheduler.step(*([losses[epoch]] if losses else []))


def ours(config: ScheduleConfig, losses: list[float] | None = None) -> Iterator[float]:
    schedule = Schedule(config, EPOCHS, STEPS)
    for epoch in range(EPOCHS):
        rates = {BASE * schedule.factor(epoch, epoch * STEPS + step) for step in range(STEPS)}
        assert len(rates) == 1  # without warm-up, an epoch has one rate
        yield rates.pop()
        schedule.after_epoch(losses[epoch] if losses else math.nan)


@pytest.mark.parametrize(
    ("config", "make"),
    [
        (Constant(), lambda o: lr_scheduler.LambdaLR(o, lambda _: 1.0)),
        (Step(milestones=(3, 10, 30), factor=0.5), lambda o: lr_scheduler.MultiStepLR(o, [3, 10, 30], 0.5)),
        (Step(milestones=(30, 3, 3), factor=0.1), lambda o: lr_scheduler.MultiStepLR(o, [30, 3, 3], 0.1)),
        (Step(milestones=()), lambda o: lr_scheduler.MultiStepLR(o, [])),
        (Cosine(), lambda o: lr_scheduler.CosineAnnealingLR(o, EPOCHS)),
        (Cosine(floor=0.2), lambda o: lr_scheduler.CosineAnnealingLR(o, EPOCHS, eta_min=0.2 * BASE)),
        (Exponential(factor=0.9), lambda o: lr_scheduler.ExponentialLR(o, 0.9)),
    ],
    ids=["constant", "step", "step twice at one", "step never", "cosine", "cosine with floor", "exponential"],
)
def test_a_schedule_is_torchs(config, make):
    optimizer = sgd()
    expected = list(theirs(make(optimizer), optimizer))
    assert list(ours(config)) == pytest.approx(expected, rel=1e-9, abs=1e-15)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("patience", "min_delta"), [(0, 0.0), (1, 0.0), (3, 0.0), (2, 0.05), (5, 0.3)])
def test_plateau_is_torchs(seed, patience, min_delta):
    draw = random.Random(seed)
    losses = [1 / (1 + epoch / 5) + draw.uniform(0, 0.3) for epoch in range(EPOCHS)]
    losses[7] = math.nan
    optimizer = sgd()
    scheduler = lr_scheduler.ReduceLROnPlateau(
        optimizer, factor=0.5, patience=patience, threshold=min_delta, threshold_mode="abs", eps=0.0
    )
    expected = list(theirs(scheduler, optimizer, losses))
    assert len(set(expected)) > 1
    config = Plateau(factor=0.5, patience=patience, min_delta=min_delta)
    assert list(ours(config, losses)) == pytest.approx(expected, rel=1e-12)


def test_only_plateau_looks_at_the_loss():
    for config in (Constant(), Step(milestones=(2,)), Cosine(), Exponential()):
        assert list(ours(config, [5.0] * EPOCHS)) == list(ours(config, [1.0 / (1 + n) for n in range(EPOCHS)]))


# --- warm-up -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("epochs", "steps"), [(1.0, 10), (2.0, 20), (0.5, 5), (2.5, 25)])
def test_warm_up_rises_linearly_by_step(epochs, steps):
    schedule = Schedule(Constant(warmup_epochs=epochs), EPOCHS, 10)
    factors = [schedule.factor(step // 10, step) for step in range(40)]
    assert factors[:steps] == pytest.approx([(step + 1) / steps for step in range(steps)])
    assert factors[steps:] == [1.0] * (40 - steps)


def test_warm_up_multiplies_the_schedule():
    warm = Schedule(Cosine(warmup_epochs=2.0), EPOCHS, 10)
    cold = Schedule(Cosine(), EPOCHS, 10)
    for step in range(40):
        assert warm.factor(step // 10, step) == pytest.approx(min(1, (step + 1) / 20) * cold.factor(step // 10, step))


@pytest.mark.parametrize("epochs", [0.0, 0.04])
def test_without_warm_up_the_first_step_has_the_full_rate(epochs):
    schedule = Schedule(Constant(warmup_epochs=epochs), EPOCHS, 10)
    assert schedule.factor(0, 0) == 1.0
    assert not schedule.changes_within_epoch(0)


def test_every_change_of_rate_within_an_epoch_is_announced():
    """The loop sets rates at the start of an epoch, and where this says so."""
    for epochs in (0.0, 0.3, 1.0, 1.5, 3.0):
        schedule = Schedule(Exponential(warmup_epochs=epochs), EPOCHS, 10)
        rate = None
        for step in range(60):
            if step % 10 == 0 or schedule.changes_within_epoch(step):
                rate = schedule.factor(step // 10, step)
            assert rate == schedule.factor(step // 10, step)
        assert not schedule.changes_within_epoch(59)


# --- state -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "config", [Constant(), Step(milestones=(3,)), Cosine(), Exponential(), Plateau(patience=2)], ids=lambda c: c.name
)
def test_a_schedule_goes_on_from_its_state(config):
    draw = random.Random(1)
    losses = [draw.random() for _ in range(EPOCHS)]
    whole, first = Schedule(config, EPOCHS, STEPS), Schedule(config, EPOCHS, STEPS)
    for epoch in range(EPOCHS):
        if epoch == 17:
            state = json.loads(json.dumps(first.state_dict()))
            first = Schedule(config, EPOCHS, STEPS)
            first.load_state_dict(state)
        assert first.factor(epoch, epoch * STEPS) == whole.factor(epoch, epoch * STEPS)
        for schedule in (whole, first):
            schedule.after_epoch(losses[epoch])
    assert first.state_dict() == whole.state_dict()


# --- patience ----------------------------------------------------------------------------------------------


def stops_by_brute_force(losses: list[float], patience: int, min_delta: float) -> int | None:
    """The epoch (from 1) after which ``patience`` epochs in a row have brought no improvement."""
    best, best_epoch = math.inf, 0
    for epoch, loss in enumerate(losses, 1):
        if loss < best - min_delta:
            best, best_epoch = loss, epoch
        if epoch - best_epoch == patience:
            return epoch
    return None


def stops(losses: list[float], patience: int, min_delta: float) -> int | None:
    stopping = early_stopping(EarlyStopping(patience=patience, min_delta=min_delta))
    return next((epoch for epoch, loss in enumerate(losses, 1) if stopping.exhausted(loss)), None)


def test_early_stopping_ends_after_that_many_epochs_without_improvement():
    draw = random.Random(0)
    found = set()
    for _ in range(500):
        losses = [draw.choice([draw.random(), 0.5, math.nan, math.inf]) for _ in range(draw.randrange(1, 25))]
        patience, min_delta = draw.randrange(1, 6), draw.choice([0.0, 0.1, 0.5])
        expected = stops_by_brute_force(losses, patience, min_delta)
        assert stops(losses, patience, min_delta) == expected
        found.add(expected)
    assert len(found) > 10
    assert None in found


@pytest.mark.parametrize(("patience", "epoch"), [(1, 3), (2, 4), (3, 5)])
def test_early_stopping_in_a_case_one_can_count(patience, epoch):
    assert stops([1.0, 0.5, 0.6, 0.5, 0.7, 0.8], patience, 0.0) == epoch


def test_an_improvement_must_exceed_min_delta():
    assert stops([1.0, 0.9, 0.8, 0.7], 3, 0.1) is None
    assert stops([1.0, 0.95, 0.92, 0.91], 3, 0.1) == 4


def test_patience_counts_anew_after_it_ran_out():
    patience = Patience(1, 0.0)
    assert [patience.exhausted(loss) for loss in [1.0, 2.0, 2.0, 2.0, 2.0, 0.5, 1.0, 1.0]] == [
        False, False, True, False, True, False, False, True,
    ]  # fmt: skip


def test_patience_goes_on_from_its_state():
    draw = random.Random(3)
    losses = [draw.random() for _ in range(30)]
    whole, first = Patience(2, 0.01), Patience(2, 0.01)
    answers = []
    for epoch, loss in enumerate(losses):
        if epoch % 4 == 3:
            state = json.loads(json.dumps(first.state_dict()))
            first = Patience(2, 0.01)
            first.load_state_dict(state)
        answers.append((whole.exhausted(loss), first.exhausted(loss)))
    assert all(one == other for one, other in answers)
    assert any(one for one, _ in answers)
