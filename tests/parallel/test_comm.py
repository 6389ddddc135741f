"""One body, one rank and many."""

import importlib.util
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from hpc.alone import Alone

HERE = Path(__file__).parent


def names_in(file: str) -> dict[str, Any]:
    """The bodies of a file beside this one, by name."""
    spec = importlib.util.spec_from_file_location(file, HERE / f"{file}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return {body.__name__: body for body in module.BODIES}


BODIES = {file: names_in(file) for file in ("bodies", "sync_bodies")}


@pytest.mark.parametrize("name", BODIES["bodies"])
def test_alone(name):
    BODIES["bodies"][name](Alone())


@pytest.mark.parallel
@pytest.mark.parametrize("number", [2, 3])
@pytest.mark.parametrize("file", BODIES)
def test_many(file, number, ranks):
    """All in one start: to start ranks takes longer than what they do."""
    names = [name for name in BODIES[file] if "never" not in name]
    done = ranks(number, str(HERE / f"{file}.py"), *names)
    assert done.returncode == 0, done.stderr
    assert Counter(done.stdout.split("\n")) == {"": 1} | {f"passed {name}": number for name in names}, done.stderr


@pytest.mark.parallel
@pytest.mark.parametrize("number", [2, 3])
@pytest.mark.parametrize("file", BODIES)
def test_a_rank_that_never_comes_is_an_error(file, number, ranks):
    (name,) = [name for name in BODIES[file] if "never" in name]
    done = ranks(number, str(HERE / f"{file}.py"), name)
    assert done.stdout.count("passed") == 1, done.stderr


LEAVE = """
import os, signal, time
from pathlib import Path
from hpc import mpi
from hpc.comm import connect

mpi._LEAVING_S = 2
comm = connect(60.0)
comm._deadline_s = 1.0
first, me = comm.gather(os.getpid(), "end the run")
comm.leave()
print("done\\n", end="", flush=True)
if comm.rank == 1:
    if os.fork() == 0:  # mpiexec waits for the rank that has stopped, once the other is free
        stat = Path(f"/proc/{first}/stat")
        while stat.exists() and ") Z" not in stat.read_text():
            time.sleep(0.05)
        os.kill(me, signal.SIGKILL)
        os._exit(0)
    os.kill(os.getpid(), signal.SIGSTOP)
"""


@pytest.mark.parallel
def test_a_rank_that_stops_in_the_end_of_mpi_does_not_hold_the_others(ranks, tmp_path):
    """Where it is a meeting: over MPICH's TCP, the others leave by themselves."""
    (tmp_path / "leave.py").write_text(LEAVE)
    done = ranks(2, str(tmp_path / "leave.py"), timeout=100)
    assert done.stdout.count("done") == 2, done.stderr
    assert done.returncode != 0


@pytest.mark.parallel
def test_messages_go_the_way_that_was_asked_for(ranks, request):
    """Else all tests under --transport tcp would show nothing."""
    done = ranks(2, str(HERE.parent / "support" / "transports.py"))
    assert done.returncode == 0, done.stderr
    over_loopback = float(done.stdout.split()[1])
    assert over_loopback > 0.9 if request.config.getoption("--transport") == "tcp" else over_loopback < 0.1
