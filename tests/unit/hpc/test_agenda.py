"""When ranks pause: pure arithmetic of the steps of all of them."""

from hypothesis import given, settings
from hypothesis import strategies as st

from hpc.exchange.agenda import Agenda, Pause

PLAN = {
    "steps": st.integers(1, 40),
    "every": st.none() | st.integers(1, 50),
    "size": st.integers(1, 9),
}


def passed(agenda, epoch, total, end, jump=1):
    """Where the ranks pause on the way to a total, and why; the total jumps so far at a time."""
    found = []
    agenda.resume(epoch, total)
    while total < end:
        total += jump
        if (why := agenda.due(total, stop=False)) is not None:
            found.append((total, why))
            epoch += why is Pause.EPOCH
            agenda.resume(epoch, total)
    return found


def test_ranks_that_pause_in_step_pause_where_one_would():
    assert passed(Agenda(10, 4, 3), 0, 0, 60) == [
        (12, Pause.SAVE), (24, Pause.SAVE), (30, Pause.EPOCH), (36, Pause.SAVE), (48, Pause.SAVE), (60, Pause.EPOCH),
    ]  # fmt: skip


def test_without_checkpoints_only_epochs_end():
    assert passed(Agenda(5, None, 2), 0, 0, 20) == [(10, Pause.EPOCH), (20, Pause.EPOCH)]


def test_an_epoch_ends_before_anything_else():
    agenda = Agenda(4, 4, 1)
    agenda.resume(0, 0)
    assert agenda.due(4, stop=True) is Pause.EPOCH
    assert agenda.due(3, stop=True) is Pause.STOP
    assert agenda.due(3, stop=False) is None


def test_a_stop_comes_before_a_checkpoint():
    agenda = Agenda(10, 4, 1)
    agenda.resume(0, 0)
    assert agenda.due(4, stop=True) is Pause.STOP


@given(**PLAN, jump=st.integers(1, 30))
@settings(deadline=None)
def test_no_epoch_is_left_out_however_far_the_ranks_overshoot(steps, every, size, jump):
    epochs = 5
    found = passed(Agenda(steps, every, size), 0, 0, (epochs * (steps * size) + 1) * (1 + jump), jump)
    ends = [total for total, why in found if why is Pause.EPOCH][:epochs]
    assert len(ends) == epochs
    for number, total in enumerate(ends, 1):
        assert total >= number * steps * size
        if jump < steps * size:
            assert total < number * steps * size + jump
    assert len(set(ends)) == epochs  # none is without a step


@given(**PLAN, total=st.integers(0, 2000), epoch=st.integers(0, 5))
@settings(deadline=None)
def test_what_is_left_and_what_is_due_agree(steps, every, size, total, epoch):
    agenda = Agenda(steps, every, size)
    agenda.resume(epoch, total)
    assert agenda.left(total) >= 1
    place = total
    while agenda.due(place, stop=False) is None:
        assert agenda.left(place) >= 1
        place += 1
    assert agenda.left(place) == 0
    assert place - total == agenda.left(total)


@given(**PLAN, total=st.integers(0, 500))
@settings(deadline=None)
def test_a_run_that_goes_on_pauses_where_it_would_have(steps, every, size, total):
    """Nothing is remembered but the place: the pauses after a resumption are those of a run that never stopped."""
    whole = passed(Agenda(steps, every, size), 0, 0, total + 3 * steps * size)
    epoch = sum(why is Pause.EPOCH for at, why in whole if at <= total)
    rest = passed(Agenda(steps, every, size), epoch, total, total + 3 * steps * size)
    assert rest == [(at, why) for at, why in whole if at > total]
