"""The one-process communicator, and which communicator a process gets."""

import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch

from hpc import comm as module
from hpc.alone import Alone
from hpc.comm import connect
from hpc.communicator import Communicator
from hpc.errors import ConfigError

VARIABLES = ["OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK", "PMI_SIZE", "PMI_RANK", "SLURM_NTASKS", "SLURM_PROCID"]


@pytest.fixture(autouse=True)
def _no_launcher(monkeypatch):
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


# --- the contract of Alone ---------------------------------------------------------------------------------


def test_it_is_the_only_rank():
    alone: Communicator = Alone()
    assert (alone.rank, alone.size, alone.local_rank, alone.local_size) == (0, 1, 0, 1)
    assert alone.vendor == "none"


def test_it_has_every_method_of_the_contract():
    for name, member in vars(Communicator).items():
        if callable(member) and not name.startswith("_"):
            assert callable(getattr(Alone, name)), name


def test_sums_and_broadcasts_change_nothing():
    values = torch.tensor([1.0, float("nan"), -0.0])
    before = values.view(torch.int32).clone()
    Alone().sum_(values, "x")
    Alone().broadcast_(values, "x")
    assert torch.equal(values.view(torch.int32), before)


@pytest.mark.parametrize("value", [0, 1, 2**40])
def test_the_largest_value_is_its_own(value):
    pending = Alone().start_max(value, "x")
    assert pending.wait() == value
    assert pending.wait() == value


def test_it_gathers_one_value_as_it_looks_after_a_journey():
    assert Alone().gather({"a": (1, None), "b": "ä"}, "x") == [{"a": [1, None], "b": "ä"}]


def test_what_is_gathered_is_a_copy():
    mine = {"list": [1]}
    (found,) = Alone().gather(mine, "x")
    found["list"].append(2)
    assert mine == {"list": [1]}


def test_what_ranks_could_not_send_alone_cannot_either():
    with pytest.raises(TypeError, match="not JSON serializable"):
        Alone().gather(object(), "x")


def test_it_waits_for_nobody_and_ends_nobody():
    Alone().barrier("x")
    Alone().abort(1)


# --- which communicator ------------------------------------------------------------------------------------


@pytest.fixture
def mpi(monkeypatch):
    """An MPI library that finds so many ranks."""

    def install(found: int):
        world = SimpleNamespace(size=found, Dup=lambda: "the world's copy")
        package = ModuleType("mpi4py")
        package.MPI = SimpleNamespace(COMM_WORLD=world)
        monkeypatch.setitem(sys.modules, "mpi4py", package)
        monkeypatch.setattr(module, "Mpi", lambda _mpi, comm, deadline_s: ("Mpi", comm, deadline_s))

    return install


def test_without_a_launcher_a_process_is_alone_and_starts_no_mpi(monkeypatch):
    monkeypatch.setitem(sys.modules, "mpi4py", None)
    assert isinstance(connect(60), Alone)


@pytest.mark.parametrize("name", ["OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_NTASKS"])
def test_one_rank_of_a_launchers_is_alone_too(monkeypatch, name):
    monkeypatch.setitem(sys.modules, "mpi4py", None)
    monkeypatch.setenv(name, "1")
    assert isinstance(connect(60), Alone)


@pytest.mark.parametrize("name", ["OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_NTASKS"])
def test_a_kept_promise_gives_the_ranks_with_their_deadline(monkeypatch, mpi, name):
    mpi(3)
    monkeypatch.setenv(name, "3")
    assert connect(60) == ("Mpi", "the world's copy", 60)


@pytest.mark.parametrize("name", ["OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_NTASKS"])
@pytest.mark.parametrize("found", [1, 2, 4])
def test_a_broken_promise_is_an_error_and_not_silent_runs_of_one_rank(monkeypatch, mpi, name, found):
    mpi(found)
    monkeypatch.setenv(name, "3")
    with pytest.raises(ConfigError, match=rf"{name}=3: the launcher promised 3 rank\(s\), but MPI found {found}"):
        connect(60)


@pytest.mark.parametrize("error", [ImportError("no mpi4py"), RuntimeError("cannot load MPI library")])
def test_ranks_without_mpi_are_told_what_to_install(monkeypatch, error):
    class Broken:
        def find_spec(self, name, path=None, target=None):
            if name == "mpi4py":
                raise error

    for name in [name for name in sys.modules if name.split(".")[0] == "mpi4py"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [Broken(), *sys.meta_path])
    monkeypatch.setenv("PMI_SIZE", "2")
    with pytest.raises(ConfigError, match=rf"PMI_SIZE=2: .*{error}.*pip install 'structlearn\[mpich\]'"):
        connect(60)


def test_a_launcher_that_promises_nonsense_is_named(monkeypatch):
    monkeypatch.setenv("SLURM_NTASKS", "many")
    with pytest.raises(ConfigError, match="SLURM_NTASKS: got 'many'"):
        connect(60)


def test_the_launcher_closest_to_the_process_counts(monkeypatch, mpi):
    """An mpiexec inside a job of SLURM's."""
    mpi(2)
    monkeypatch.setenv("SLURM_NTASKS", "8")
    monkeypatch.setenv("PMI_SIZE", "2")
    assert connect(60)[0] == "Mpi"
