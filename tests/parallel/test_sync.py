"""Synchronous training on two and three ranks of MPI."""

import importlib.util
from collections import Counter
from pathlib import Path

import pytest

FILE = Path(__file__).parent / "sync_bodies.py"
_spec = importlib.util.spec_from_file_location("sync_bodies", FILE)
assert _spec is not None
assert _spec.loader is not None
bodies = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(bodies)
NAMES = [body.__name__ for body in bodies.BODIES]


@pytest.mark.parallel
@pytest.mark.parametrize("number", [2, 3])
def test_many(number, ranks):
    """All in one start: to start ranks takes longer than what they do."""
    names = [name for name in NAMES if "never" not in name]
    done = ranks(number, str(FILE), *names)
    assert done.returncode == 0, done.stderr
    assert Counter(done.stdout.split("\n")) == {"": 1} | {f"passed {name}": number for name in names}, done.stderr


@pytest.mark.parallel
@pytest.mark.parametrize("number", [2, 3])
def test_a_rank_that_never_comes_is_an_error(number, ranks):
    (name,) = [name for name in NAMES if "never" in name]
    done = ranks(number, str(FILE), name)
    assert done.stdout.count("passed") == 1, done.stderr
