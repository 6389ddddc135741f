"""Synchronous training on two and three ranks of MPI."""

import importlib.util
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
@pytest.mark.parametrize("name", NAMES)
def test_many(name, number, ranks):
    done = ranks(number, str(FILE), name)
    expected = 1 if "never" in name else number
    assert done.stdout.count("passed") == expected, done.stderr
