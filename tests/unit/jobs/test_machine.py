"""Each check of the doctor, with what other processes would say."""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from hpc.errors import ConfigError
from jobs import machine
from jobs.machine import CHECKS, Finding
from jobs.probe import COMPILER, FILES, MPI, RANK, TORCH, Answer


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> Callable[[Mapping[str, Answer | Any]], None]:
    """What other processes say, by a word of their command line; a value stands for its JSON."""

    def give(said: Mapping[str, Answer | Any]) -> None:
        def ask(line: Sequence[Any], limit_s: float, env: Mapping[str, str] | None = None) -> Answer:
            assert limit_s > 0
            text = " ".join(map(str, line))
            answer = next(answer for word, answer in said.items() if word in text)
            return answer if isinstance(answer, Answer) else Answer(ok=True, out=json.dumps(answer), problem="")

        monkeypatch.setattr(machine, "ask", ask)

    return give


def found(what: str) -> dict[str, Finding]:
    return {each.what: each for each in CHECKS[what]()}


def no(problem: str) -> Answer:
    return Answer(ok=False, out="", problem=problem)


def said(*lines: str) -> Answer:
    return Answer(ok=True, out="\n".join(lines) + "\n", problem="")


LEVEL = {"library": "MPICH Version: 5.0", "standard": [5, 0], "level": "MPI_THREAD_MULTIPLE", "cuda": False}


@pytest.mark.parametrize(
    ("ranks", "status", "words"),
    [
        (said('{"rank": 1, "size": 2}', '{"rank": 0, "size": 2}'), "ok", "two ranks find each other"),
        (said("a note", '{"rank": 0, "size": 2}', '{"rank": 1, "size": 2}'), "ok", "two ranks find each other"),
        (said('{"rank": 0, "size": 1}', '{"rank": 0, "size": 1}'), "fail", "each finds itself alone"),
        (said('{"rank": 0, "size": 2}'), "fail", "[(2, 0)]"),
        (no("no answer within 90 s"), "fail", "no answer within 90 s"),
    ],
)
def test_the_pairing_of_launcher_and_library(
    ranks: Answer, status: str, words: str, answers: Any, monkeypatch: Any
) -> None:
    monkeypatch.setattr(machine, "find_mpiexec", lambda: Path("/opt/mpiexec"))
    monkeypatch.setattr(machine, "command", lambda *line: ["mpiexec -n 2", *line[2]])
    answers({"mpiexec -n 2": ranks, MPI: LEVEL})
    mpiexec = found("mpi")["mpiexec"]
    assert mpiexec.status == status
    assert words in mpiexec.finding
    assert "/opt/mpiexec" in mpiexec.finding
    assert bool(mpiexec.remedy) == (status != "ok")


def test_an_mpi_without_threads_is_a_warning(answers: Any, monkeypatch: Any) -> None:
    def nowhere() -> Path:
        raise ConfigError("--ranks: no mpiexec")

    monkeypatch.setattr(machine, "find_mpiexec", nowhere)
    answers({MPI: LEVEL | {"level": "MPI_THREAD_FUNNELED"}})
    assert "MPI_THREAD_MULTIPLE" in found("mpi")["mpi"].remedy
    assert (found("mpi")["mpiexec"].status, found("mpi")["mpiexec"].finding) == ("warn", "--ranks: no mpiexec")


@pytest.mark.parametrize(("cuda", "words"), [(True, "memory of CUDA devices"), (False, "host memory only")])
def test_an_mpi_says_what_memory_it_takes(cuda: bool, words: str, answers: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(machine, "find_mpiexec", lambda: Path("/opt/mpiexec"))
    answers({"/opt/mpiexec": no(""), MPI: LEVEL | {"cuda": cuda}})
    assert found("mpi")["mpi"].status == "ok"
    assert found("mpi")["mpi"].finding.endswith(f"says that it takes {words}")


def test_without_mpi_one_rank_is_left(answers: Any) -> None:
    answers({MPI: no("RuntimeError: cannot load MPI library")})
    only = found("mpi")
    assert list(only) == ["mpi"]
    assert only["mpi"].status == "warn"


@pytest.mark.parametrize(
    ("answer", "status", "words"),
    [
        (True, "ok", "gcc-99 compiles the loops of SHADE"),
        (False, "warn", "no C compiler that works (gcc-99)"),
        (no("No module named 'torch'"), "warn", "No module named 'torch'"),
    ],
)
def test_a_compiler_is_tried(answer: Any, status: str, words: str, answers: Any, monkeypatch: Any) -> None:
    monkeypatch.setenv("CC", "gcc-99")
    answers({COMPILER: answer})
    assert (found("compiler")["compiler"].status, found("compiler")["compiler"].finding) == (status, words)


def test_devices_are_named(answers: Any, monkeypatch: Any) -> None:
    answers({TORCH: {"version": "2.9", "built_for": "12.8", "devices": [["H100", 80 * 2**30]] * 2}})
    assert found("torch")["torch"].finding == "torch 2.9, built for 12.8"
    assert found("torch")["devices"].finding == "H100 (80 GiB), H100 (80 GiB)"


def test_devices_that_torch_does_not_see_are_a_warning(answers: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(machine, "cuda_devices", lambda: 4)
    answers({TORCH: {"version": "2.9", "built_for": None, "devices": []}})
    assert found("torch")["devices"].status == "warn"
    assert "the driver shows 4 CUDA device(s), torch none" in found("torch")["devices"].finding


@pytest.mark.parametrize(
    ("threads", "quota", "status", "words"),
    [
        (None, None, "ok", "not set"),
        ("4", None, "ok", "OMP_NUM_THREADS 4"),
        ("5", None, "warn", "OMP_NUM_THREADS=4"),
        (None, 1.5, "warn", "OMP_NUM_THREADS=1"),
        ("1", 8.0, "ok", "4 core(s)"),
    ],
)
def test_threads_and_cores(
    threads: str | None, quota: float | None, status: str, words: str, answers: Any, monkeypatch: Any
) -> None:
    answers({TORCH: no("")})
    monkeypatch.setattr(machine, "cpu_cores", lambda: 4)
    monkeypatch.setattr(machine, "_cpu_quota", lambda: quota)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if threads:
        monkeypatch.setenv("OMP_NUM_THREADS", threads)
    cpu = found("torch")["cpu"]
    assert cpu.status == status
    assert words in cpu.finding + cpu.remedy


@pytest.mark.parametrize(("text", "cores"), [("150000 100000\n", 1.5), ("max 100000\n", None), ("", None)])
def test_a_containers_limit(text: str, cores: float | None, tmp_path: Path, monkeypatch: Any) -> None:
    (tmp_path / "cpu.max").write_text(text, encoding="ascii")
    monkeypatch.setattr(machine, "Path", lambda _: tmp_path / "cpu.max")
    assert machine._cpu_quota() == cores


GOOD = {"h5py": "3.16", "hdf5": "2.0", "free": 2**40, "same": True}


@pytest.mark.parametrize(
    ("changes", "what", "words"),
    [
        ({"same": False}, "hdf5", "does not read as it was written"),
        ({"same": False, "problem": "Read-only file system"}, "hdf5", "Read-only file system"),
        ({"lock": "No locks available"}, "locks", "No locks available"),
        ({"free": 2**20}, "disk", "0.0 GiB free"),
    ],
)
def test_files(changes: dict[str, Any], what: str, words: str, answers: Any) -> None:
    answers({FILES: GOOD})
    assert {each.status for each in found("hdf5").values()} == {"ok"}
    answers({FILES: GOOD | changes})
    assert found("hdf5")[what].status == "warn"
    assert words in found("hdf5")[what].finding
    assert found("hdf5")[what].remedy


@pytest.mark.parametrize(
    ("environ", "devices", "words"),
    [
        ({}, 0, None),
        ({"PMI_SIZE": "1"}, 0, "PMI_SIZE"),
        ({"PMI_FD": "7", "PMI_RANK": "0"}, 0, "left behind by a launcher: PMI_FD, PMI_RANK"),
        ({"PMI_SIZE": "2", "PMI_RANK": "0"}, 0, "PMI_SIZE=2"),
        ({"PMI_SIZE": "x"}, 0, "PMI_SIZE: got 'x'"),
        ({"SLURM_NTASKS": "4"}, 0, "inside a SLURM job of 4 tasks"),
        ({"SLURM_NTASKS": "1", "SLURM_JOB_ID": "7"}, 0, None),
        ({"CUDA_VISIBLE_DEVICES": ""}, 0, None),
        ({"CUDA_VISIBLE_DEVICES": ""}, 2, "hides all 2 device(s)"),
        ({"CUDA_VISIBLE_DEVICES": "0"}, 2, None),
    ],
)
def test_the_environment(environ: dict[str, str], devices: int, words: str | None, monkeypatch: Any) -> None:
    for name in list(os.environ):
        if name.startswith(("PMI", "OMPI_", "SLURM_", "CUDA_")):
            monkeypatch.delenv(name)
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    hidden = environ.get("CUDA_VISIBLE_DEVICES") == ""
    monkeypatch.setattr(machine, "cuda_devices", lambda given=None: 0 if hidden and given is None else devices)
    only = found("environment")["environment"]
    assert (only.status, bool(only.remedy)) == (("ok", False) if words is None else ("warn", True))
    assert words is None or words in only.finding


def test_what_is_missing_or_too_old_is_told_with_the_extra(monkeypatch: Any) -> None:
    wanted = ["numpy>=1.26", 'torch>=2.4; extra == "train"', 'mpi4py>=4.0; extra == "train"', 'x; extra == "dev"']
    versions = {"numpy": "2.1.0", "torch": "2.3.1+cpu"}

    def version(name: str) -> str:
        if name not in versions:
            raise machine.metadata.PackageNotFoundError(name)
        return versions[name]

    monkeypatch.setattr(machine.metadata, "requires", lambda _: wanted)
    monkeypatch.setattr(machine.metadata, "version", version)
    rows = found("packages")
    assert (rows["packages: base"].status, rows["packages: base"].finding) == ("ok", "numpy 2.1.0")
    assert rows["packages: train"].status == "warn"
    assert "torch 2.3.1+cpu is older than 2.4, mpi4py is missing" in rows["packages: train"].finding
    assert "structlearn[train]" in rows["packages: train"].remedy


def test_data_sets_are_found_where_they_are(tmp_path: Path, monkeypatch: Any) -> None:
    for stem in ("train", "t10k"):
        for kind in ("images-idx3", "labels-idx1"):
            (tmp_path / "mnist").mkdir(exist_ok=True)
            (tmp_path / "mnist" / f"{stem}-{kind}-ubyte").touch()
    monkeypatch.setenv("STRUCTLEARN_DATA", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    only = found("data sets")["data sets"]
    assert f"mnist ({tmp_path / 'mnist'})" in only.finding
    assert "svhn" in only.finding.partition("not found: ")[2]


def test_training_is_tried_and_its_message_told(answers: Any) -> None:
    answers({"jobs train": {"steps": 6, "seconds": 0.1}})
    assert found("training")["training"].status == "ok"
    answers({"jobs train": no("structlearn: no torch")})
    assert (found("training")["training"].status, found("training")["training"].finding) == (
        "fail",
        "structlearn: no torch",
    )


def test_the_rank_program_is_what_mpiexec_is_given(answers: Any, monkeypatch: Any) -> None:
    given: list[Any] = []
    monkeypatch.setattr(machine, "find_mpiexec", lambda: Path("mpiexec"))
    monkeypatch.setattr(machine, "command", lambda *line: given.append(line) or ["two ranks"])
    answers({"two ranks": no("x"), MPI: LEVEL})
    found("mpi")
    ((mpiexec, ranks, program),) = given
    assert (mpiexec, ranks) == (Path("mpiexec"), 2)
    assert program[-1].endswith(RANK)
