"""The table of runs: what is there is known again, what is broken off is made again, what does not fit is told."""

from __future__ import annotations

import pytest

from analysis import RecordError
from analysis.rows import Rows

COLUMNS = ["seed", "side", "state", "loss"]
KEY = ("seed", "side")
ROWS = [
    {"seed": 0, "side": "sgd, 0.1", "state": "done", "loss": 0.25},
    {"side": "adam", "seed": 0, "state": "not finite"},
]
TEXT = 'seed,side,state,loss\n0,"sgd, 0.1",done,0.25\n0,adam,not finite,\n'


@pytest.fixture
def path(tmp_path):
    return tmp_path / "results" / "runs.csv"


def filled(path):
    rows = Rows(path, COLUMNS, KEY)
    for row in ROWS:
        rows.append(row)
    return path


def test_a_file_is_begun_with_its_header(path):
    rows = Rows(path, COLUMNS, KEY)
    assert path.read_text() == "seed,side,state,loss\n"
    assert list(rows) == []
    assert not rows.has(0, "adam")


def test_rows_are_in_the_file_at_once_in_the_order_of_the_columns(path):
    assert filled(path).read_text() == TEXT


def test_the_next_start_knows_what_is_there(path):
    rows = Rows(filled(path), COLUMNS, KEY)
    assert rows.has(0, "adam")
    assert rows.has("0", "sgd, 0.1")
    assert not rows.has(1, "adam")
    assert [row["state"] for row in rows] == ["done", "not finite"]
    rows.append({"seed": 1, "side": "adam", "state": "done", "loss": None})
    assert rows.has(1, "adam")
    assert path.read_text() == TEXT + "1,adam,done,\n"


def test_a_start_that_makes_nothing_leaves_the_bytes_as_they_are(path):
    path.parent.mkdir()
    path.write_bytes(TEXT.replace("\n", "\r\n").encode())
    assert Rows(path, COLUMNS, KEY).has(0, "adam")
    assert path.read_bytes() == TEXT.replace("\n", "\r\n").encode()


def test_a_key_is_written_once(path):
    rows = Rows(filled(path), COLUMNS, KEY)
    rows.append(*({"seed": seed, "side": "adam", "state": "again"} for seed in (0, 1, 1)))
    assert path.read_text() == TEXT + "1,adam,again,\n"


@pytest.mark.parametrize("kept", range(1, len("0,adam,not finite,\n")))
def test_a_last_row_that_is_broken_off_is_dropped_and_made_again(path, kept):
    whole = TEXT.removesuffix("0,adam,not finite,\n")
    filled(path).write_text(whole + "0,adam,not finite,\n"[:kept])
    rows = Rows(path, COLUMNS, KEY)
    assert path.read_text() == whole
    assert rows.has(0, "sgd, 0.1")
    assert not rows.has(0, "adam")
    rows.append(ROWS[1])
    assert path.read_text() == TEXT


@pytest.mark.parametrize("text", ["", "see", "seed,side,state,loss"])
def test_a_header_that_is_broken_off_is_written_again(path, text):
    path.parent.mkdir()
    path.write_text(text)
    Rows(path, COLUMNS, KEY)
    assert path.read_text() == "seed,side,state,loss\n"


def test_a_file_with_other_columns_is_refused(path):
    filled(path)
    with pytest.raises(RecordError) as caught:
        Rows(path, ["seed", "side", "loss"], KEY)
    text = str(caught.value)
    assert f"{path}: the columns seed, side, state, loss; allowed: the columns seed, side, loss" in text
    assert "give --results another folder" in text
    assert path.read_text() == TEXT


def test_a_row_that_is_not_whole_is_told_with_its_line(path):
    filled(path).write_text("seed,side,state,loss\n0,sgd\n0,adam,not finite,\n")
    with pytest.raises(RecordError, match=r"runs.csv: 2 values in line 2; allowed: 4, one a column; mend that line"):
        Rows(path, COLUMNS, KEY)


def test_a_column_that_the_file_does_not_have_is_refused(path):
    rows = Rows(filled(path), COLUMNS, KEY)
    with pytest.raises(ValueError, match=r"runs.csv has no columns rate, units"):
        rows.append({"seed": 1, "side": "adam", "units": 3, "rate": 0.1})
    assert path.read_text() == TEXT
