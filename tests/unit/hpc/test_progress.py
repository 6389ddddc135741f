"""How a run shows itself."""

import io
import math
import os
import re
import subprocess
import sys
import threading
from itertools import pairwise
from pathlib import Path

import pytest
from rich.console import Console

from hpc import progress as module
from hpc.output import say, stream
from hpc.progress import (
    BAR_EVERY_S,
    EPOCH_EVERY_S,
    EPOCHS_SHOWN,
    LINE_EVERY_S,
    TERMINAL,
    Bar,
    Lines,
    Rate,
    Silent,
    duration,
    fold,
    show,
)


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
    rate = Rate(steps=100, samples_per_step=1, first_step=80)
    clock.now += 5
    assert rate.read(90) == (2.0, 5.0)


def test_asking_twice_at_one_step_keeps_the_rate(clock):
    rate = Rate(steps=100, samples_per_step=4, first_step=0)
    clock.now += 20
    rate.read(10)
    clock.now += 2
    assert rate.read(10)[0] == 2.0


def test_before_any_step_there_is_nothing_to_say(clock):
    clock.now += 60
    assert all(map(math.isnan, Rate(steps=10, samples_per_step=4, first_step=0).read(0)))


@pytest.mark.parametrize("first_step", [0, 50])
def test_the_slow_first_steps_take_no_part_in_the_pace(clock, first_step):
    rate = Rate(steps=first_step + 111, samples_per_step=8, first_step=first_step)
    clock.now += 60  # loads libraries
    assert all(map(math.isnan, rate.read(first_step + 1)))
    clock.now += 1
    samples, left = rate.read(first_step + 10)  # nine steps: a rate, but not one to judge the whole run by
    assert samples == 72.0
    assert math.isnan(left)
    clock.now += 1
    assert rate.read(first_step + 11)[1] == 20.0  # ten steps in two seconds


def test_the_time_left_of_slow_steps_is_known_after_some_seconds(clock):
    rate = Rate(steps=22, samples_per_step=1, first_step=0)
    clock.now += 60
    rate.read(1)
    clock.now += 9
    assert math.isnan(rate.read(1)[1])
    clock.now += 1
    assert rate.read(2)[1] == 200.0


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


def test_a_line_leaves_out_what_is_not_known_yet(lines, out, clock):
    clock.now += LINE_EVERY_S
    lines.step(1, 3, 0.5)
    clock.now += 1
    lines.epoch("epoch 1/4  train loss 1.0", 1, 10)
    assert out.getvalue() == "epoch 1/4  step 3  loss 0.5000\nepoch 1/4  train loss 1.0\n"


def test_every_line_is_printed_at_once(lines, out, monkeypatch):
    flushed = []
    monkeypatch.setattr(out, "flush", lambda: flushed.append(out.getvalue()))
    lines.tell("first")
    lines.tell("second")
    assert flushed == ["first\n", "first\nsecond\n"]


# --- many epochs -------------------------------------------------------------------------------------------

MANY = 10 * EPOCHS_SHOWN


@pytest.fixture(params=["lines", "bar"])
def many(request, out, clock):
    """Something that shows a run of many epochs, by either way; closed by the test."""
    rate = Rate(steps=MANY, samples_per_step=1, first_step=0)
    if request.param == "lines":
        return Lines(out, rate, MANY)
    return Bar(Console(file=out, force_terminal=True, width=160, color_system=None), rate, MANY, MANY, 0)


def epochs_in(text: str) -> list[int]:
    return [int(number) for number in re.findall(r"number (\d+) ended", text)]


def end_epochs(shown, clock, numbers, seconds):
    for number in numbers:
        clock.now += seconds
        shown.epoch(f"number {number} ended", number, number)


def test_all_epochs_of_a_short_run_are_shown_however_short_they_are(many, out, clock):
    end_epochs(many, clock, range(1, EPOCHS_SHOWN + 1), 0.001)
    assert epochs_in(out.getvalue()) == list(range(1, EPOCHS_SHOWN + 1))
    many.close()


def test_of_many_short_epochs_some_are_shown_and_the_last_always(many, out, clock):
    end_epochs(many, clock, range(1, MANY), EPOCH_EVERY_S / 8)
    many.close()
    found = epochs_in(out.getvalue())
    assert found[:EPOCHS_SHOWN] == list(range(1, EPOCHS_SHOWN + 1))
    later = found[EPOCHS_SHOWN - 1 : -1]
    assert {two - one for one, two in pairwise(later)} == {8}
    assert found[-1] == MANY - 1
    assert len(found) == len(set(found))


def test_all_epochs_that_take_their_time_are_shown(many, out, clock):
    end_epochs(many, clock, range(1, MANY + 1), EPOCH_EVERY_S)
    many.close()
    assert epochs_in(out.getvalue()) == list(range(1, MANY + 1))


def test_a_sentence_is_always_said_and_stands_below_the_epoch_it_is_about(many, out, clock):
    end_epochs(many, clock, range(1, EPOCHS_SHOWN + 4), 0.001)
    many.tell("a sentence")
    many.tell("another sentence")
    end_epochs(many, clock, [EPOCHS_SHOWN + 4], 0.001)
    many.close()
    said = re.findall(r"number \d+ ended|a sentence|another sentence", out.getvalue())
    last = f"number {EPOCHS_SHOWN + 3} ended"
    assert said[EPOCHS_SHOWN:] == [last, "a sentence", "another sentence", f"number {EPOCHS_SHOWN + 4} ended"]


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


LONG = "epoch 100/200  train loss 0.1234  valid 0.2345 (93.21 %)  test 0.3456 (92.11 %)  1:12:34"


@pytest.mark.parametrize(
    ("width", "rows"),
    [
        (len(LONG), [LONG]),
        (80, [LONG.removesuffix("  1:12:34"), "    1:12:34"]),
        (40, ["epoch 100/200  train loss 0.1234", "    valid 0.2345 (93.21 %)", "    test 0.3456 (92.11 %)  1:12:34"]),
        (5, [LONG[:13], *(f"    {field}" for field in LONG.split("  ")[1:])]),
    ],
)
def test_a_line_is_cut_between_its_fields(width, rows):
    assert fold(LONG, width).split("\n") == rows


def test_a_line_too_long_for_the_terminal_keeps_its_numbers_whole(out, clock):
    console = Console(file=out, force_terminal=True, width=78, color_system=None)
    bar = Bar(console, Rate(steps=40, samples_per_step=1, first_step=0), epochs=4, steps=40, first_step=0)
    bar.epoch(LONG, 1, 10)
    bar.close()
    shown = visible(out.getvalue())
    assert "epoch 100/200  train loss 0.1234  valid 0.2345 (93.21 %)" in shown
    assert "test 0.3456 (92.11 %)  1:12:34" in shown


@pytest.mark.parametrize("width", [80, 160])
def test_the_bar_of_a_long_run_fits_its_terminal(out, clock, width):
    console = Console(file=out, force_terminal=True, width=width, color_system=None)
    rate = Rate(steps=200_000, samples_per_step=20, first_step=0)
    bar = Bar(console, rate, epochs=200, steps=200_000, first_step=0)
    clock.now += 400
    bar.step(100, 100_000, 0.12345)
    last = visible(out.getvalue())[-1]
    bar.close()
    assert ("step 100000" in last) == (width == 160)
    for part in ("epoch 100/200 ━", " 50%", "loss 0.1235", "5,000 samples/s", "6:40 left"):
        assert part in last


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


def test_without_an_output_nothing_is_shown(chosen, monkeypatch):
    """So Python starts where the shell has closed it (>&-)."""
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", None)
    for json_on_stdout in (True, False):
        assert stream(json_on_stdout) is None
        say("to nobody", stream(json_on_stdout))
        assert type(chosen("bar", stream(json_on_stdout))) is Silent


def test_a_whole_run_in_lines_counts_down(out, clock):
    lines = Lines(out, Rate(steps=30, samples_per_step=1, first_step=0), epochs=3)
    for epoch in (1, 2, 3):
        clock.now += 10
        lines.epoch(f"epoch {epoch}/3", epoch, epoch * 10)
    left = [int(found) for found in re.findall(r"(\d+) s left", out.getvalue())]
    assert all(one > other for one, other in pairwise(left))
    assert left == [20, 10]


# --- output that may be gone -------------------------------------------------------------------------------

PROGRAM = """
import sys
from hpc.output import say, stream
from hpc.progress import show

shown = show(sys.argv[1], epochs=2, steps=20, first_step=0, samples_per_step=1, out=stream(False))
shown.tell("here we go")
for epoch in (1, 2):
    shown.step(epoch, 10 * epoch, 1.0)
    shown.epoch(f"epoch {epoch}", epoch, 10 * epoch)
shown.close()
say("the end", sys.stdout)
say("still here", sys.stderr)
"""


def last_words(style: str, **outputs: int) -> tuple[int, bytes]:
    """The exit code and the standard error of a program that shows itself on the outputs it is given."""
    root = Path(module.__file__).parent.parent
    line = [sys.executable, "-c", PROGRAM, style]
    env = os.environ | {"PYTHONPATH": str(root), TERMINAL: "80"}
    done = subprocess.run(line, env=env, stderr=subprocess.PIPE, timeout=600, check=False, **outputs)
    return done.returncode, done.stderr.replace(b"\r\n", b"\n")


@pytest.mark.parametrize("style", ["plain", "bar"])
def test_a_run_goes_on_when_its_readers_have_gone(style):
    reader, writer = os.pipe()
    os.close(reader)
    try:
        assert last_words(style, stdout=writer) == (0, b"still here\n")
    finally:
        os.close(writer)


@pytest.mark.parametrize("style", ["plain", "bar"])
def test_a_run_goes_on_when_the_disk_of_its_output_is_full(style):
    with Path("/dev/full").open("wb") as full:
        assert last_words(style, stdout=full.fileno()) == (0, b"still here\n")


@pytest.mark.parametrize("style", ["plain", "bar"])
def test_a_run_goes_on_without_an_output(style):
    root = Path(module.__file__).parent.parent
    line = ["sh", "-c", 'exec "$@" >&-', "sh", sys.executable, "-c", PROGRAM, style]
    env = os.environ | {"PYTHONPATH": str(root)}
    done = subprocess.run(line, env=env, stderr=subprocess.PIPE, timeout=600, check=False)
    assert (done.returncode, done.stderr) == (0, b"still here\n")


def test_after_a_failure_an_output_leads_nowhere():
    with Path("/dev/full").open("w", encoding="utf-8") as full:
        say("lost", full)
        assert os.path.samestat(os.fstat(full.fileno()), Path(os.devnull).stat())
        say("lost as well", full)


def test_an_output_that_was_closed_is_none():
    out = io.StringIO()
    out.close()
    say("to nobody", out)
    assert out.closed


@pytest.mark.parametrize(
    ("encoding", "written"),
    [("utf-8", "runs/\\udce4 ä \N{SNOWMAN}\n"), ("latin-1", "runs/\\udce4 ä \\u2603\n")],
)
def test_what_an_output_cannot_spell_is_written_in_another_way(encoding, written):
    out = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    say("runs/\udce4 ä \N{SNOWMAN}", out)
    assert out.buffer.getvalue().decode(encoding) == written
