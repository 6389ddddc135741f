"""C files of ours are compiled where there is a compiler, and done without where there is none."""

import ctypes
import shutil

import pytest

from structlearn import native

COMPILES = shutil.which("cc") is not None

SOURCE = """
#include <stddef.h>
void mark(int *to, size_t first, size_t last) { for (size_t i = first; i < last; i++) to[i] += 1; }
"""


@pytest.fixture(autouse=True)
def _fresh():
    native.compiled.cache_clear()
    yield
    native.compiled.cache_clear()


@pytest.fixture
def source(tmp_path):
    made = tmp_path / "mark.c"
    made.write_text(SOURCE)
    return made


@pytest.mark.skipif(not COMPILES, reason="no C compiler")
@pytest.mark.parametrize("threads", [1, 2, 7])
@pytest.mark.parametrize("count", [0, 1, 5, 100])
def test_threads_share_a_range_without_gap_or_overlap(source, threads, count):
    functions = native.compiled(source)
    marks = (ctypes.c_int * (count + 1))()
    native.over_threads(lambda *ends: functions.mark(marks, *map(ctypes.c_size_t, ends)), count, threads)
    assert list(marks) == [1] * count + [0]


@pytest.mark.skipif(not COMPILES, reason="no C compiler")
def test_a_compiler_may_have_options_of_its_own(source, monkeypatch):
    monkeypatch.setenv("CC", "cc -Dunused=1")
    assert native.compiled(source) is not None


@pytest.mark.parametrize("compiler", ["/no/such/compiler", "false", "true", '"cc', r"sh -c 'printf \\377 >&2; exit 1'"])
def test_without_a_compiler_there_is_no_library(source, monkeypatch, caplog, compiler):
    """Not there; one that fails; one that makes nothing; half a name; one that does not speak UTF-8."""
    monkeypatch.setenv("CC", compiler)
    with caplog.at_level("INFO", logger=native.__name__):
        assert native.compiled(source) is None
    assert "mark.c is not compiled" in caplog.text


def test_without_room_for_files_there_is_no_library(source, monkeypatch, caplog):
    monkeypatch.setattr("tempfile.tempdir", "/no/such/folder")
    with caplog.at_level("INFO", logger=native.__name__):
        assert native.compiled(source) is None
    assert "/no/such/folder" in caplog.text


@pytest.mark.skipif(not COMPILES, reason="no C compiler")
def test_what_does_not_compile_is_told(tmp_path, caplog):
    wrong = tmp_path / "wrong.c"
    wrong.write_text("void f(void) { this is no C; }")
    with caplog.at_level("INFO", logger=native.__name__):
        assert native.compiled(wrong) is None
    assert "error" in caplog.text


@pytest.mark.skipif(not COMPILES, reason="no C compiler")
def test_nothing_is_left_behind(source, monkeypatch, tmp_path):
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    assert native.compiled(source) is not None
    assert not list(folder.iterdir())
