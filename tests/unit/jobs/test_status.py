"""The table of a sweep's runs, as a person sees it."""

from __future__ import annotations

import io
from collections import Counter
from dataclasses import replace

import pytest
from rich.console import Console

from jobs.states import State
from jobs.status import NAMED, WORDS, table, told

RUNS = [
    State("1a2b3c4d5e6f", "exchange=persyn lr=0.01 model=lenet seed=0", "running", "7_0", 12, 300, 12345.6, 4000.0),
    State("2a2b3c4d5e6f", "exchange=gossip lr=0.01 model=lenet seed=0", "done", "7_1", 300, 300, accuracy=0.91234),
    State("3a2b3c4d5e6f", "exchange=gossip lr=0.01 model=lenet seed=1", "failed", "7_2", error="no", starts=3, stops=2),
]


def shown(what: object, width: int) -> list[str]:
    out = io.StringIO()
    Console(file=out, width=width, color_system=None).print(what)
    return out.getvalue().splitlines()


@pytest.mark.parametrize("width", [80, 120, 200])
def test_numbers_and_ids_are_whole_however_narrow_the_terminal(width) -> None:
    lines = shown(table(RUNS, None, width), width)
    text = "\n".join(lines)
    for cell in ("1a2b3c4d5e6f", "running", "12/300", "12,346", "1:06:40", "91.23 %", "failed"):
        assert cell in text
    assert max(map(len, lines)) <= width
    assert (RUNS[0].label in text) == (width >= 120)
    assert "exchang" in text


def test_on_a_narrow_terminal_labels_go_on_in_the_next_line() -> None:
    long = replace(RUNS[0], label="penalties=l1(strength=0.001,factors=bayesian),l2(strength=0.001,factors=usual)")
    narrow = "".join(shown(table([long], None, 80), 80))
    assert Counter(long.label) <= Counter(narrow)
    assert "…" not in narrow


def test_what_somebody_has_to_look_after_comes_first() -> None:
    found = [line.split()[0] for line in shown(table(RUNS, 2, 120), 120) if line.strip()[:1].isdigit()]
    assert found == ["3a2b3c4d5e6f", "1a2b3c4d5e6f"]


def test_columns_without_a_value_are_left_out() -> None:
    head = shown(table(RUNS[1:2], None, 120), 120)[1]
    assert "test" in head
    assert not {"left", "samples/s", "stops"} & set(head.split())


def test_what_is_said_of_many_runs_is_said_once() -> None:
    words = {f"run{number}": "out of memory" for number in range(NAMED + 2)} | {"other": "a bad key"}
    assert shown(told(words, "red"), 120)[:2] == ["run0, run1, run2 and 2 more: out of memory", "other: a bad key"]
    many = {f"run{number}": f"error {number}" for number in range(WORDS + 5)}
    assert "and 5 others; --json has them all" in shown(told(many, "red"), 120)
