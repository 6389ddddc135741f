"""What this machine says of itself: its devices and the launcher that started the process."""

import _ctypes
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from hpc.config import devices
from hpc.config.devices import cuda_aware, cuda_devices
from hpc.config.launcher import Promise, broken, promise
from hpc.errors import ConfigError


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Another root folder: its /proc and /dev are those that count."""
    monkeypatch.setattr(devices, "Path", lambda path: tmp_path / path.lstrip("/"))
    return tmp_path


def gpus(root: Path, number: int) -> None:
    for bus in range(number):
        (root / f"proc/driver/nvidia/gpus/0000:{bus:02x}:00.0").mkdir(parents=True)


def gpu_query(says: int, failed: int = 0) -> Any:
    def query(kind: int, answer: Any) -> int:
        assert kind == 0  # MPIX_GPU_SUPPORT_CUDA
        answer._obj.value = says
        return failed

    return query


@pytest.mark.parametrize(
    ("symbols", "says"),
    [
        ({}, False),
        ({"MPIX_Query_cuda_support": lambda: 0}, False),
        ({"MPIX_Query_cuda_support": lambda: 1}, True),
        ({"MPIX_GPU_query_support": gpu_query(0)}, False),
        ({"MPIX_GPU_query_support": gpu_query(1)}, True),
        ({"MPIX_GPU_query_support": gpu_query(1, failed=16)}, False),
    ],
)
def test_an_mpi_library_is_asked_in_its_own_words(
    symbols: dict[str, Any], says: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    libraries = {"mpi4py/MPI.so": SimpleNamespace(**symbols)}
    monkeypatch.setattr(devices.ctypes, "CDLL", libraries.__getitem__)
    assert cuda_aware("mpi4py/MPI.so") is says


def test_a_library_that_knows_no_such_question_says_no() -> None:
    assert cuda_aware(_ctypes.__file__) is False


@pytest.mark.parametrize(
    ("visible", "seen"),
    [
        (None, 3),
        ("", 0),
        ("-1", 0),
        ("0", 1),
        ("0,1,2", 3),
        ("2, 0", 2),
        ("0,7,1", 1),  # CUDA stops at the first that is none
        ("0,-1,1", 1),
        ("GPU-8a1b,GPU-77", 2),
        ("MIG-8a1b", 1),
    ],
)
def test_the_devices_that_a_process_sees(visible: str | None, seen: int, root: Path) -> None:
    gpus(root, 3)
    assert cuda_devices({} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}) == seen


def test_without_a_driver_there_is_none(root: Path) -> None:
    assert cuda_devices({"CUDA_VISIBLE_DEVICES": "0"}) == 0


def test_inside_a_container_the_device_files_count(root: Path) -> None:
    (root / "dev").mkdir()
    for name in ("nvidia0", "nvidia1", "nvidiactl", "nvidia-uvm"):
        (root / "dev" / name).touch()
    assert cuda_devices({}) == 2


@pytest.mark.parametrize(
    ("environ", "made"),
    [
        ({}, None),
        ({"PMI_RANK": "1"}, None),
        ({"PMI_SIZE": "2", "PMI_RANK": "1"}, Promise("PMI_SIZE", 2, 1)),
        ({"PMI_SIZE": "2"}, Promise("PMI_SIZE", 2, None)),
        ({"SLURM_NTASKS": "4", "SLURM_PROCID": "0"}, Promise("SLURM_NTASKS", 4, 0, certain=False)),
        ({"SLURM_NTASKS": "4", "SLURM_PROCID": "1", "PMIX_RANK": "1"}, Promise("SLURM_NTASKS", 4, 1)),
        ({"SLURM_NTASKS": "4", "PMI_SIZE": "2", "PMI_RANK": "0"}, Promise("PMI_SIZE", 2, 0)),
        ({"OMPI_COMM_WORLD_SIZE": "3", "OMPI_COMM_WORLD_RANK": "2"}, Promise("OMPI_COMM_WORLD_SIZE", 3, 2)),
    ],
)
def test_the_launcher_closest_to_the_process_counts(environ: dict[str, str], made: Promise | None) -> None:
    assert promise(environ) == made


@pytest.mark.parametrize("size", ["two", "", "0", "-1", "2.0"])
def test_a_number_of_ranks_that_is_none_is_told(size: str) -> None:
    with pytest.raises(ConfigError, match=f"PMI_SIZE: got '{size}'"):
        promise({"PMI_SIZE": size})


@pytest.mark.parametrize(
    ("variable", "remedy"),
    [
        ("SLURM_NTASKS", "srun --mpi=pmi2"),
        ("PMI_SIZE", "mpiexec of the MPI library"),
        ("OMPI_COMM_WORLD_SIZE", "mpiexec of the MPI library"),
    ],
)
def test_a_broken_promise_says_how_to_mend_it(variable: str, remedy: str) -> None:
    message = str(broken(Promise(variable, 4, 0), 1))
    assert message.startswith(f"{variable}=4: the launcher promised 4 rank(s), but MPI found 1")
    assert remedy in message
