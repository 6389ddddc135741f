"""The user's matrix of who gossips with whom: read, or refused with what to do."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpc.config.peers import read_matrix
from hpc.errors import ConfigError


def test_numbers_stand_between_spaces_or_commas_and_comments_are_left_out(tmp_path):
    path = tmp_path / "matrix.txt"
    path.write_text("# who pushes to whom\n0, 0.25, .75   # rank 0\n\n1 0 0\n  5e-1\t0.5 ,0\n")
    assert read_matrix(str(path), 3) == ((0.0, 0.25, 0.75), (1.0, 0.0, 0.0), (0.5, 0.5, 0.0))


@given(st.integers(2, 9), st.integers(0, 2**32))
@settings(deadline=None)
def test_what_numpy_writes_is_read_as_it_was(tmp_path_factory, size, seed):
    draw = np.random.default_rng(seed)
    rows = draw.random((size, size)) + 0.01
    np.fill_diagonal(rows, 0)
    rows /= rows.sum(axis=1, keepdims=True)
    path = tmp_path_factory.mktemp("matrix") / "matrix.txt"
    np.savetxt(path, rows, fmt="%.17g")
    assert np.array_equal(read_matrix(str(path), size), rows)


RING = "0 1 0\n0 0 1\n1 0 0\n"
BAD = {
    "two rows": ("0 1\n1 0\n", r"has 2 row\(s\) of \[2\] numbers, but 3 ranks need 3 rows of 3"),
    "a short row": ("0 1 0\n0 1\n1 0 0\n", r"has 3 row\(s\) of \[2, 3\] numbers, but 3 ranks need 3 rows of 3"),
    "nothing": ("# nothing\n", r"has 0 row\(s\) of \[\] numbers, but 3 ranks need 3 rows of 3"),
    "words": ("0 one 0\n0 0 1\n1 0 0\n", "cannot be read as rows of numbers .*'one'.*; give a text file"),
    "negative": ("0 1.5 -0.5\n0 0 1\n1 0 0\n", r"row 0: \(0.0, 1.5, -0.5\) are no chances .*; mend the row"),
    "too much": ("0 1 0\n0 0 1\n1 .1 0\n", "row 2: .* are no chances that add up to 1; mend the row"),
    "too little": ("0 1 0\n0 0 0.9\n1 0 0\n", "row 1: .* are no chances that add up to 1; mend the row"),
    "nan": ("0 nan 1\n0 0 1\n1 0 0\n", "row 0: .* are no chances that add up to 1; mend the row"),
    "infinite": ("0 inf 0\n0 0 1\n1 0 0\n", "row 0: .* are no chances that add up to 1; mend the row"),
    "itself": ("0 1 0\n0 .5 .5\n1 0 0\n", "row 1: rank 1 would push to itself; put 0 on the diagonal"),
    "out of reach": ("0 1 0\n1 0 0\n1 0 0\n", r"no way from rank 0 for rank\(s\) \[2\], .*never agree; connect them"),
    "no way back": ("0 .5 .5\n1 0 0\n0 1 0\n", None),
    "a sink": ("0 .5 .5\n0 0 1\n0 1 0\n", r"no way to rank 0 for rank\(s\) \[1, 2\], .*never agree; connect them"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_matrix_is_refused_with_what_to_do(name, tmp_path):
    text, message = BAD[name]
    path = tmp_path / "matrix.txt"
    path.write_text(text)
    if message is None:
        assert len(read_matrix(str(path), 3)) == 3
        return
    with pytest.raises(ConfigError, match=message) as caught:
        read_matrix(str(path), 3)
    assert str(caught.value).startswith(f"exchange.matrix: {path}")


def test_rows_may_be_off_by_what_seven_digits_lose(tmp_path):
    path = tmp_path / "matrix.txt"
    path.write_text("0 .3333333 .6666666\n1 0 0\n1 0 0\n")
    assert read_matrix(str(path), 3)[0] == (0.0, 0.3333333, 0.6666666)


@pytest.mark.parametrize("kind", ["missing", "folder", "binary"])
def test_what_is_no_text_file_is_refused(kind, tmp_path):
    path = tmp_path / "matrix.txt"
    if kind == "folder":
        path.mkdir()
    elif kind == "binary":
        path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match=r"cannot be read as rows of numbers .*; give a text file"):
        read_matrix(str(path), 3)


def test_the_ring_is_fine(tmp_path):
    path = tmp_path / "matrix.txt"
    path.write_text(RING)
    assert read_matrix(str(path), 3) == ((0, 1, 0), (0, 0, 1), (1, 0, 0))
