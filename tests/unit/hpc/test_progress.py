"""How a run shows itself."""

import io
import re
import threading
from itertools import pairwise

import pytest
from rich.console import Console

from hpc import progress as module
from hpc.progress import BAR_EVERY_S, LINE_EVERY_S, TERMINAL, Bar, Lines, Rate, Silent, duration, show, stream


class Time:
    """A clock that tests set."""

    def __init__(self):
        self.now = 100.0

    def monotonic(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Time()
    monkeypatch.setattr(module, "time", clock)
    return clock


@pytest.fixture
def out():
    return io.StringIO()


# --- durations ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"), (0.4, "0 s"), (45, "45 s"), (59.4, "59 s"), (59.6, "1:00"), (60, "1:00"), (200, "3:20"),
        (3599.6, "1:00:00"), (3600, "1:00:00"), (7509, "2:05:09"), (360_000, "100:00:00"), (-3, "0 s"),
        (float("inf"), "?"), (float("nan"), "?"),
    ],
)  # fmt: skip
def test_a_duration_is_written_as_a_person_does(seconds, text):
    assert duration(seconds) == text


# --- rate --------------------------------------------------------------------------------------------------


def test_the_rate_is_of_late_and_the_time_left_of_the_whole_pace(clock):
    rate = Rate(steps=100, samples_per_step=8, first_step=0)
    clock.now += 10
    assert rate.read(10) == (8.0, 90.0)  # 1 s a step
    clock.now += 30
    samples, left = rate.read(20)  # 3 s a step lately, 2 s on the whole
    assert samples == pytest.approx(8 / 3)
    assert left == 160.0


def test_steps_made_before_a_resume_do_not_count_as_pace(clock):
    rate = Rate(steps=100, samples_per_step=1, first_step=90)
    clock.now += 5
    assert rate.read(95) == (1.0, 5.0)


def test_asking_twice_at_one_step_keeps_the_rate(clock):
    rate = Rate(steps=10, samples_per_step=4, first_step=0)
    clock.now += 2
    rate.read(1)
    clock.now += 2
    assert rate.read(1)[0] == 2.0


def test_before_any_step_there_is_no_rate_and_no_failure(clock):
    samples, left = Rate(steps=10, samples_per_step=4, first_step=0).read(0)
    assert samples == left == 0.0


# --- lines -------------------------------------------------------------------------------------------------


@pytest.fixture
def lines(out, clock):
    return Lines(out, Rate(steps=40, samples_per_step=1000, first_step=0), epochs=4)


def test_a_line_shows_epoch_step_loss_rate_and_time_left(lines, out, clock):
    clock.now += 5
    lines.step(1, 10, 0.12345)
    assert out.getvalue() == "epoch 1/4  step 10  loss 0.1235  2,000 samples/s  15 s left\n"


def test_an_epochs_line_says_what_is_left_and_the_last_one_does_not(lines, out, clock):
    clock.now += 10
    lines.epoch("epoch 1/4  train loss 1.0", 1, 10)
    clock.now += 30
    lines.epoch("epoch 4/4  train loss 0.5", 4, 40)
    assert out.getvalue() == "epoch 1/4  train loss 1.0  30 s left\nepoch 4/4  train loss 0.5\n"


def test_a_line_within_an_epoch_is_due_only_when_nothing_was_said_for_a_while(lines, clock):
    assert not lines.due()
    clock.now += LINE_EVERY_S - 1
    lines.epoch("said", 1, 10)
    clock.now += LINE_EVERY_S - 1
    assert not lines.due()
    clock.now += 1
    assert lines.due()


def test_every_line_is_printed_at_once(lines, out, monkeypatch):
    flushed = []
    monkeypatch.setattr(out, "flush", lambda: flushed.append(out.getvalue()))
    lines.tell("first")
    lines.tell("second")
    assert flushed == ["first\n", "first\nsecond\n"]


# --- bar ---------------------------------------------------------------------------------------------------


@pytest.fixture
def bar(out, clock):
    console = Console(file=out, force_terminal=True, width=160, color_system=None)
    made = Bar(console, Rate(steps=40, samples_per_step=1000, first_step=10), epochs=4, steps=40, first_step=10)
    yield made
    made.close()


def visible(text: str) -> list[str]:
    """What a terminal shows, line by line, without its control codes."""
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)
    return [line.strip() for line in re.split(r"[\r\n]+", plain) if line.strip()]


def test_the_bar_draws_epoch_share_step_loss_rate_and_time_left(bar, out, clock):
    clock.now += 5
    bar.step(2, 20, 0.12345)
    last = visible(out.getvalue())[-1]
    for part in ("epoch 2/4", " 50%", "step 20", "loss 0.1235", "2,000 samples/s", "10 s left", "━"):
        assert part in last


def test_the_bar_starts_where_the_run_resumes(bar, out, clock):
    bar.step(1, 10, 1.0)
    assert " 25%" in visible(out.getvalue())[-1]


def test_the_bar_is_drawn_a_few_times_a_second(bar, clock):
    assert bar.due()
    bar.step(1, 11, 1.0)
    assert not bar.due()
    clock.now += BAR_EVERY_S
    assert bar.due()


def test_no_thread_runs_beside_the_training(bar):
    assert "rich" not in " ".join(type(thread).__module__ for thread in threading.enumerate())


def test_epochs_scroll_away_above_the_bar(bar, out, clock):
    bar.step(1, 12, 1.0)
    bar.epoch("epoch 1/4  train loss 1.0", 1, 12)
    bar.tell("a sentence [not markup] :smile:")
    shown = visible(out.getvalue())
    assert "epoch 1/4  train loss 1.0" in shown
    assert "a sentence [not markup] :smile:" in shown
    assert shown[-1].startswith("epoch 1/4 ━")


def test_a_closed_bar_is_gone(bar, out):
    bar.step(1, 12, 1.0)
    bar.close()
    after = out.getvalue()
    assert after.endswith(("\x1b[2K", "\x1b[?25h\r\x1b[1A\x1b[2K", "\x1b[?25h"))
    assert "\x1b[2K" in after[after.rindex("left") :]


# --- which one ---------------------------------------------------------------------------------------------


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def chosen(monkeypatch):
    monkeypatch.delenv(TERMINAL, raising=False)
    made = []

    def choose(style, out):
        made.append(show(style, epochs=1, steps=10, first_step=0, samples_per_step=1, out=out))
        return made[-1]

    yield choose
    for each in made:
        each.close()


@pytest.mark.parametrize(
    ("style", "out", "kind"),
    [
        ("auto", Terminal, Bar), ("auto", io.StringIO, Lines), ("bar", io.StringIO, Bar), ("bar", Terminal, Bar),
        ("plain", Terminal, Lines), ("plain", io.StringIO, Lines), ("none", Terminal, Silent),
        ("none", io.StringIO, Silent),
    ],
)  # fmt: skip
def test_a_terminal_gets_a_bar_and_everything_else_lines(chosen, style, out, kind):
    assert type(chosen(style, out())) is kind


def test_a_rank_whose_launcher_has_a_terminal_draws_a_bar_of_its_width(chosen, monkeypatch):
    monkeypatch.setenv(TERMINAL, "77")
    out = io.StringIO()
    bar = chosen("auto", out)
    assert type(bar) is Bar
    assert bar._progress.console.width == 77
    bar.step(1, 1, 1.0)
    assert max(map(len, visible(out.getvalue()))) <= 77


def test_a_launchers_terminal_of_unknown_width_is_a_terminal_still(chosen, monkeypatch):
    monkeypatch.setenv(TERMINAL, "unknown")
    assert type(chosen("auto", io.StringIO())) is Bar


def test_silence_is_never_due_and_says_nothing(capsys):
    silent = Silent()
    assert not silent.due()
    silent.step(1, 1, 1.0)
    silent.epoch("line", 1, 1)
    silent.tell("text")
    silent.close()
    assert capsys.readouterr() == ("", "")


def test_people_read_standard_error_where_standard_output_is_kept_for_json(capsys):
    print("to people", file=stream(json_on_stdout=True))
    print("also to people", file=stream(json_on_stdout=False))
    assert capsys.readouterr() == ("also to people\n", "to people\n")


def test_a_whole_run_in_lines_counts_down(out, clock):
    lines = Lines(out, Rate(steps=30, samples_per_step=1, first_step=0), epochs=3)
    for epoch in (1, 2, 3):
        clock.now += 10
        lines.epoch(f"epoch {epoch}/3", epoch, epoch * 10)
    left = [int(found) for found in re.findall(r"(\d+) s left", out.getvalue())]
    assert all(one > other for one, other in pairwise(left))
    assert left == [20, 10]
