"""Starting ranks: the right command line for each MPI, a clean environment, and exit codes that come through."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from hpc.errors import ConfigError
from hpc.signals import StopRequest
from jobs import launch as module
from jobs.launch import Ended, check_mpiexec, command, environment, find_mpiexec, launch

MPICH = "HYDRA build details:\n    Version: 5.0.2\n"
OPEN_MPI = ["mpiexec (OpenRTE) 4.1.6\n", "mpirun (Open MPI) 5.0.3\n", "mpiexec (PRRTE) 3.0\n"]
AS_ROOT = ["--allow-run-as-root"] if os.geteuid() == 0 else []


def fake(folder: Path, version: str, then: str = 'shift; exec "$@"') -> Path:
    """An mpiexec that says whose it is, and runs the last words of its command line once."""
    path = folder / "mpiexec"
    text = f"#!/bin/sh\nif [ \"$1\" = --version ]; then cat <<'END'\n{version}END\nexit 0; fi\n"
    path.write_text(text + f'while [ "$1" != -n ]; do shift; done; shift\n{then}\n', encoding="utf-8")
    path.chmod(0o755)
    return path


def test_mpich_is_kept_out_of_a_surrounding_slurm_job(tmp_path: Path) -> None:
    mpiexec = fake(tmp_path, MPICH)
    expected = [str(mpiexec), "-launcher", "fork", "-rmk", "user", "-n", "3", "python", "x.py"]
    assert command(mpiexec, 3, ["python", "x.py"]) == expected


@pytest.mark.parametrize("version", OPEN_MPI)
def test_open_mpi_may_use_more_ranks_than_cores(version: str, tmp_path: Path) -> None:
    mpiexec = fake(tmp_path, version)
    assert command(mpiexec, 3, ["python"]) == [str(mpiexec), "--oversubscribe", *AS_ROOT, "-n", "3", "python"]


@pytest.mark.parametrize("version", OPEN_MPI)
def test_open_mpi_is_told_that_ranks_may_be_lost(version: str, tmp_path: Path) -> None:
    mpiexec = fake(tmp_path, version)
    expected = [str(mpiexec), "--oversubscribe", *AS_ROOT, "--with-ft", "ulfm", "-n", "3", "python"]
    assert command(mpiexec, 3, ["python"], tolerant=True) == expected


def test_mpich_cannot_lose_ranks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mpiexec = fake(tmp_path, MPICH)
    monkeypatch.setattr(module, "find_mpiexec", lambda: mpiexec)
    check_mpiexec(3, tolerant=False)
    with pytest.raises(ConfigError, match=r"compute\.fault_tolerance: shrink needs Open MPI, but .*mpiexec is another"):
        check_mpiexec(3, tolerant=True)


def test_an_ordinary_user_needs_no_leave(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mpiexec = fake(tmp_path, OPEN_MPI[0])
    for user, expected in ((0, True), (1000, False)):
        monkeypatch.setattr(module.os, "geteuid", lambda user=user: user)
        assert ("--allow-run-as-root" in command(mpiexec, 2, ["x"])) is expected


def test_an_mpiexec_that_cannot_run_is_told(tmp_path: Path) -> None:
    (tmp_path / "mpiexec").touch(mode=0o644)
    with pytest.raises(ConfigError, match=r"--ranks: .*mpiexec --version does not answer"):
        command(tmp_path / "mpiexec", 2, ["x"])


def test_the_mpiexec_of_this_environment_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "other").mkdir()
    monkeypatch.setattr(module.sys, "prefix", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path / "other"))
    with pytest.raises(ConfigError, match="no mpiexec in this Python environment or on the PATH"):
        find_mpiexec()
    other = fake(tmp_path / "other", MPICH)
    assert find_mpiexec() == other
    (tmp_path / "bin").mkdir()
    assert find_mpiexec() == other
    own = fake(tmp_path / "bin", MPICH)
    assert find_mpiexec() == own


def test_ranks_see_nothing_of_a_surrounding_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    hidden = ["SLURM_NTASKS", "SLURM_JOB_ID", "PMI_SIZE", "PMI_FD", "PMIX_RANK", "OMPI_COMM_WORLD_SIZE"]
    for name in hidden:
        monkeypatch.setenv(name, "7")
    kept = {"KEPT": "as it is", "OMPI_MCA_btl": "tcp,self", "MPIR_CVAR_NOLOCAL": "1"}  # a user's own
    for name, value in kept.items():
        monkeypatch.setenv(name, value)
    env = environment(2)
    assert not set(hidden) & env.keys()
    assert kept.items() <= env.items()
    assert env["STRUCTLEARN_RANKS"] == "2"


@pytest.mark.parametrize(("cores", "ranks", "threads"), [(8, 2, "4"), (8, 3, "2"), (2, 4, "1")])
def test_cores_are_shared_out(cores: int, ranks: int, threads: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(module, "cpu_cores", lambda: cores)
    assert environment(ranks)["OMP_NUM_THREADS"] == threads
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    assert environment(ranks)["OMP_NUM_THREADS"] == "5"


@pytest.mark.parametrize(
    ("text", "code"), [("", 0), ("raise SystemExit(75)", 75), ("import os; os.kill(os.getpid(), 9)", 137)]
)
def test_exit_codes_come_through(text: str, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "find_mpiexec", lambda: fake(tmp_path, MPICH))
    assert launch(2, [sys.executable, "-c", text], StopRequest())[:3] == (code, False, False)


def test_nothing_is_started_where_a_stop_was_asked_for_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "find_mpiexec", lambda: fake(tmp_path, MPICH))
    with StopRequest() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        assert launch(2, [sys.executable, "-c", f"open({str(tmp_path / 'started')!r}, 'w')"], stop).asked
    assert not (tmp_path / "started").exists()


def test_ranks_outlive_an_output_that_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(module, "find_mpiexec", lambda: fake(tmp_path, MPICH))
    program = "import sys; [print('x' * 1000) for _ in range(1000)]; sys.stdout.flush(); print('end', file=sys.stderr)"
    before = os.dup(1)
    full = os.open("/dev/full", os.O_WRONLY)
    os.dup2(full, 1)
    try:
        ended = launch(2, [sys.executable, "-c", program], StopRequest())
    finally:
        os.dup2(before, 1)
        os.close(before)
        os.close(full)
    assert ended == Ended(0, asked=False, said="end\n")
    assert capfd.readouterr().err == "end\n"


WAIT = """
import signal, sys, time
for name in ("SIGTERM", "SIGUSR1", "SIGUSR2", "SIGINT"):
    signal.signal(getattr(signal, name), lambda number, _: (print(signal.Signals(number).name), sys.exit(3)))
open(sys.argv[1], "w").close()
time.sleep(60)
"""


@pytest.mark.parametrize(
    ("sent", "came"), [("SIGTERM", "SIGUSR1"), ("SIGUSR1", "SIGUSR1"), ("SIGUSR2", "SIGUSR1"), ("SIGINT", "SIGUSR1")]
)
def test_signals_are_passed_on(
    sent: str, came: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """As SIGUSR1, which every mpiexec hands to its ranks; the handlers of this process come back."""
    monkeypatch.setattr(module, "find_mpiexec", lambda: fake(tmp_path, MPICH))
    ready = tmp_path / "ready"

    def send() -> None:
        until = time.monotonic() + 30
        while not ready.exists() and time.monotonic() < until:
            time.sleep(0.01)
        os.kill(os.getpid(), getattr(signal, sent))

    before = signal.getsignal(getattr(signal, sent))
    # Were the launcher to take no notice, the signal would end this process: it must not.
    sender = threading.Thread(target=send)
    sender.start()
    code, asked, twice, _ = launch(2, [sys.executable, "-u", "-c", WAIT, str(ready)], StopRequest())
    sender.join()
    assert (code, asked, twice, capfd.readouterr().out.strip()) == (3, True, False, came)
    assert signal.getsignal(getattr(signal, sent)) == before


def test_who_starts_ranks_and_is_killed_leaves_none(tmp_path: Path) -> None:
    fake(tmp_path, MPICH)
    (tmp_path / "wait.py").write_text(
        "import os, sys, time; open(sys.argv[1], 'w').write(str(os.getpid())); time.sleep(60)"
    )
    program = (
        "import sys; from pathlib import Path; from hpc.signals import StopRequest; from jobs import launch; "
        f"launch.find_mpiexec = lambda: Path({str(tmp_path / 'mpiexec')!r}); "
        f"launch.launch(1, [sys.executable, {str(tmp_path / 'wait.py')!r}, {str(tmp_path / 'pid')!r}], StopRequest())"
    )
    starter = subprocess.Popen([sys.executable, "-c", program])
    until = time.monotonic() + 30
    while not ((tmp_path / "pid").exists() and (tmp_path / "pid").read_text()) and time.monotonic() < until:
        time.sleep(0.01)
    rank = Path(f"/proc/{(tmp_path / 'pid').read_text()}/stat")
    starter.kill()
    starter.wait()
    until = time.monotonic() + 10
    while rank.exists() and rank.read_text().rpartition(")")[2].split()[0] != "Z" and time.monotonic() < until:
        time.sleep(0.01)
    assert not rank.exists() or rank.read_text().rpartition(")")[2].split()[0] == "Z"
