"""One body, one rank and many."""

import importlib.util
from collections import Counter
from pathlib import Path

import pytest

from hpc.alone import Alone

FILE = Path(__file__).parent / "bodies.py"
_spec = importlib.util.spec_from_file_location("bodies", FILE)
assert _spec is not None
assert _spec.loader is not None
bodies = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(bodies)
NAMES = [body.__name__ for body in bodies.BODIES]


@pytest.mark.parametrize("name", NAMES)
def test_alone(name):
    getattr(bodies, name)(Alone())


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


@pytest.mark.parallel
def test_messages_go_the_way_that_was_asked_for(ranks, request):
    """Else all tests under --transport tcp would show nothing."""
    done = ranks(2, str(FILE.parents[1] / "support" / "transports.py"))
    assert done.returncode == 0, done.stderr
    over_loopback = float(done.stdout.split()[1])
    assert over_loopback > 0.9 if request.config.getoption("--transport") == "tcp" else over_loopback < 0.1
