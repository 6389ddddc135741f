"""Jobs on this machine: who starts when, what is seen of them, what becomes of them when something is killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest

from hpc.config import yamls
from hpc.config.folder import read_status
from hpc.errors import ConfigError, RunError
from jobs import local, runner, tokens
from jobs.attempts import CANCELLED, history, mark
from jobs.clusters import CLUSTERS, states_of
from jobs.local import cancel, check, preview, remarks, scheduled, submit
from jobs.queues import Queue
from jobs.resources import Resources
from jobs.retry import cancel as cancel_command
from jobs.retry import retry
from jobs.runner import Order, Runner
from jobs.states import SILENT_S
from jobs.submit import submit as submit_command
from jobs.sweepfolder import Submission, SweepFolder
from jobs.tokens import FOLDER, Need, Tokens, hold

if TYPE_CHECKING:
    from collections.abc import Callable

DEADLINE_S = 300.0

# In a runner and its jobs: a machine of so many cores and GPUs, and ranks that need no torch: they note when they are
# there, and end when there is a file "go" in their run's folder, or when they are told to stop.
SITE = """
import os, sys
if "jobs.runner" in sys.orig_argv:
    import hpc.config.devices
    import jobs.controller
    real = jobs.controller.Controller
    ranks = [sys.executable, os.environ["FAKE_RANKS"]]
    os.sched_getaffinity = lambda _: set(range(int(os.environ["FAKE_CORES"])))
    hpc.config.devices.cuda_devices = lambda *_: int(os.environ["FAKE_GPUS"])
    jobs.controller.Controller = lambda run_dirs, _, *rest, **more: real(
        run_dirs, lambda run_dir: [*ranks, str(run_dir)], *rest, **more)
"""
RANKS = """
import json, os, pathlib, signal, sys, time
here = pathlib.Path(sys.argv[1])
asked = []
signal.signal(signal.SIGUSR1, lambda *_: asked.append(1))
def say(state):
    (here / ".status").write_text(json.dumps({"state": state, "heartbeat": time.time()}))
    (here / ".status").replace(here / "status.json")
def note(what):
    line = [time.time(), what, here.name, os.environ["CUDA_VISIBLE_DEVICES"], os.environ["OMP_NUM_THREADS"]]
    with (here.parent / "times").open("a") as file:
        file.write(json.dumps(line) + chr(10))
note("begin")
say("running")
while not asked and not (here / "go").exists():
    time.sleep(0.02)
say("stopped" if asked else "done")
note("end")
sys.exit(75 if asked else 0)
"""


class Machine:
    """A machine that is not this one, and jobs of one run each on it."""

    def __init__(self, path: Path) -> None:
        self.path, self.logs = path, path / "logs"
        self.logs.mkdir()
        self.count = 0

    def submit(self, count: int, *, go: bool = False, **resources: Any) -> list[str]:
        """So many jobs, which end at once or when they are let go."""
        self.count += 1
        folders = [self.path / "runs" / f"{self.count}-{number}" for number in range(count)]
        for folder in folders:
            folder.mkdir(parents=True)
            if go:
                (folder / "go").touch()
        return submit([[folder] for folder in folders], Resources(**resources), self.logs)

    def run_dir(self, name: str) -> Path:
        order, _, index = name.rpartition("_")
        return Path(Order.read(self.logs / f"{order}.json").jobs[int(index)][0])

    def let_go(self, *names: str) -> None:
        for name in names:
            (self.run_dir(name) / "go").touch()

    def says(self, *names: str) -> list[str]:
        """What is known of jobs."""
        found = scheduled(names, self.logs)
        return [found.get(name, "over") for name in names]

    def state(self, name: str) -> str:
        return read_status(self.run_dir(name)).get("state", "none")

    def process(self, name: str) -> int:
        """Of a job that runs."""
        order, _, index = name.rpartition("_")
        return int((Tokens().path / order / f"{index}.runs").read_text())

    def runner(self, name: str) -> psutil.Process:
        """The process that starts a job."""
        order = str(self.logs / f"{name.rpartition('_')[0]}.json")
        (found,) = (each for each in psutil.process_iter() if is_of(each, "queue", order))
        return found

    def times(self) -> list[list[Any]]:
        """What the ranks noted: when, begin or end, their run's folder, their GPUs, their threads."""
        return [json.loads(line) for line in (self.path / "runs" / "times").read_text().splitlines()]

    def most_at_once(self) -> int:
        now = most = 0
        for _, what, *_ in sorted(self.times()):
            now += 1 if what == "begin" else -1
            most = max(most, now)
        return most


def is_of(process: psutil.Process, *words: str) -> bool:
    try:
        return set(words) <= set(process.cmdline())
    except psutil.Error:
        return False


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.fixture(autouse=True)
def _own_tokens(tmp_path, monkeypatch, environment):
    """Tokens that nobody else takes, and no process left behind."""
    for key in set(os.environ) - environment.keys():
        monkeypatch.delenv(key)
    for key, value in environment.items():
        monkeypatch.setenv(key, value)
    monkeypatch.setenv(FOLDER, str(tmp_path / "machine"))
    yield
    for process in psutil.process_iter():
        if is_of(process, "jobs.runner") and str(tmp_path) in " ".join(process.cmdline()):
            process.kill()


@pytest.fixture
def machine(tmp_path, monkeypatch) -> Callable[..., Machine]:
    def make(*, cores: int, gpus: int = 0) -> Machine:
        (tmp_path / "site").mkdir()
        (tmp_path / "site" / "sitecustomize.py").write_text(SITE)
        (tmp_path / "ranks.py").write_text(RANKS)
        for key, value in {"RANKS": tmp_path / "ranks.py", "CORES": cores, "GPUS": gpus}.items():
            monkeypatch.setenv(f"FAKE_{key}", str(value))
        monkeypatch.setenv("PYTHONPATH", f"{tmp_path / 'site'}{os.pathsep}{os.environ['PYTHONPATH']}")
        monkeypatch.setattr(tokens, "cores", lambda: list(map(str, range(cores))))
        monkeypatch.setattr(tokens, "cuda_devices", lambda *_: gpus)
        return Machine(tmp_path)

    return make


def test_submitting_returns_while_jobs_wait_and_no_more_run_than_there_are_cores(machine) -> None:
    here = machine(cores=2)
    names = here.submit(4)
    until(lambda: here.says(*names) == ["running", "running", "pending", "pending"])
    assert os.getsid(here.runner(names[0]).pid) != os.getsid(0)  # a terminal that goes does not end it
    assert here.runner(names[0]).ppid() != os.getpid()
    others = here.submit(1)  # the cap is the machine's
    until(lambda: here.state(names[0]) == here.state(names[1]) == "running")
    assert here.says(*others) == ["pending"]
    here.let_go(*names, *others)
    until(lambda: here.says(*names, *others) == ["over"] * 5)
    assert {here.state(name) for name in (*names, *others)} == {"done"}
    assert here.most_at_once() == 2
    assert {threads for *_, threads in here.times()} == {"1"}
    until(lambda: "all jobs have ended" in (here.logs / f"{names[0].rpartition('_')[0]}.log").read_text())
    until(lambda: not [path for path in Tokens().path.iterdir() if path.is_dir()])


def test_no_more_jobs_of_a_submission_run_than_it_allows(machine) -> None:
    here = machine(cores=8)
    names = here.submit(3, go=True, parallel=1)
    until(lambda: here.says(*names) == ["over"] * 3)
    assert here.most_at_once() == 1
    assert [name for _, what, name, *_ in here.times() if what == "begin"] == ["1-0", "1-1", "1-2"]


def test_a_run_of_more_ranks_than_cores_runs_alone(machine) -> None:
    here = machine(cores=3)
    small, large = here.submit(1), here.submit(1, ranks=5)
    until(lambda: here.says(*small, *large) == ["running", "pending"])
    late = here.submit(1)
    until((Tokens().path / late[0].rpartition("_")[0] / "place").exists)
    here.let_go(*small)
    until(lambda: here.says(*large, *late) == ["running", "pending"])  # the large one had waited longer
    here.let_go(*large, *late)
    until(lambda: here.says(*large, *late) == ["over", "over"])
    assert here.most_at_once() == 1


def test_a_job_sees_its_gpus_and_no_other(machine, monkeypatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,GPU-b,1")
    here = machine(cores=9, gpus=3)
    names = here.submit(2, ranks=2, gpus_per_rank=1, cpus_per_rank=2)
    plain = here.submit(1)
    until(lambda: here.says(*names, *plain) == ["running", "pending", "running"])
    here.let_go(*names, *plain)
    until(lambda: here.says(*names) == ["over", "over"])
    seen = {name: (cards, threads) for _, _, name, cards, threads in here.times()}
    assert seen == {"1-0": ("3,GPU-b", "2"), "1-1": ("3,GPU-b", "2"), "2-0": ("", "1")}


def test_what_is_cancelled_never_starts_or_stops_and_others_go_on(machine) -> None:
    here = machine(cores=1)
    names = here.submit(3)
    until(lambda: here.state(names[0]) == "running")
    cancel(names[:2])
    assert here.says(names[1]) == ["over"]
    until(lambda: here.says(*names) == ["over", "over", "running"])
    assert [here.state(name) for name in names[:2]] == ["stopped", "none"]
    assert [each.how for each in history(here.run_dir(names[0]))] == ["stopped"]
    cancel(names)
    until(lambda: here.says(*names) == ["over"] * 3)
    cancel(names)  # those that are over stay so


@pytest.mark.parametrize("failure", [None, OSError("no such call"), ProcessLookupError()])
def test_only_the_process_that_holds_a_job_is_told(tmp_path, monkeypatch, failure) -> None:
    if failure is not None:
        monkeypatch.setattr(os, "pidfd_open", lambda _: (_ for _ in ()).throw(failure))
    queue, descriptor = Queue.make(tmp_path / "q", 1)
    running = queue.start(0)
    with subprocess.Popen(["sleep", "600"]) as child:
        queue.cancel(0)  # its process is not noted yet
        queue.began(running, child.pid)
        os.close(running)
        queue.cancel(0)  # somebody else's by now, perhaps
        assert child.poll() is None
        running = hold(tmp_path / "q" / "0.runs")
        queue.cancel(0)
        if isinstance(failure, ProcessLookupError):
            child.kill()
        assert child.wait(DEADLINE_S) in {-signal.SIGTERM, -signal.SIGKILL}
        queue.cancel(0)
    os.close(running)
    os.close(descriptor)


def test_a_job_that_is_killed_gives_its_tokens_back_and_takes_its_ranks_along(machine) -> None:
    here = machine(cores=1)
    names = here.submit(2)
    until(lambda: here.state(names[0]) == "running")
    job = psutil.Process(here.process(names[0]))
    (ranks,) = job.children()
    job.kill()
    until(lambda: here.says(*names) == ["over", "running"])
    until(lambda: not ranks.is_running() or ranks.status() == psutil.STATUS_ZOMBIE)
    assert here.state(names[0]) == "running"  # its status could not be told: it is lost
    cancel(names)
    until(lambda: here.says(*names) == ["over", "over"])


def test_what_runs_goes_on_when_the_runner_is_killed_and_what_waits_is_left(machine) -> None:
    here = machine(cores=1)
    names = here.submit(2)
    until(lambda: here.state(names[0]) == "running")
    here.runner(names[0]).kill()
    until(lambda: here.says(*names) == ["running", "over"])
    again = here.submit(1)  # a cap as before; it removes what was left behind, but not of what runs
    until((Tokens().path / again[0].rpartition("_")[0] / "place").exists)
    assert here.says(*names, *again) == ["running", "over", "pending"]
    cancel(names)
    until(lambda: here.says(*names, *again) == ["over", "over", "running"])
    assert here.state(names[0]) == "stopped"
    here.let_go(*again)
    until(lambda: here.says(*again) == ["over"])


def test_a_runner_that_is_told_to_stop_stops_its_jobs(machine) -> None:
    here = machine(cores=1)
    names = here.submit(2)
    until(lambda: here.state(names[0]) == "running")
    here.runner(names[0]).terminate()
    until(lambda: here.says(*names) == ["over", "over"])
    assert [here.state(name) for name in names] == ["stopped", "none"]


def test_a_job_that_cannot_be_started_is_left_and_the_others_are_made(machine) -> None:
    here = machine(cores=1)
    names = here.submit(3)
    (here.logs / f"{names[1]}.log").mkdir()
    here.let_go(*names)
    until(lambda: here.says(*names) == ["over"] * 3)
    assert [here.state(name) for name in names] == ["done", "none", "done"]
    assert (
        f"{names[1]}: cannot be started ([Errno 21] Is a directory"
        in (here.logs / f"{names[0].rpartition('_')[0]}.log").read_text()
    )


def test_a_runner_that_cannot_begin_is_told(machine, monkeypatch) -> None:
    here = machine(cores=1)
    monkeypatch.setattr(local.sys, "executable", "/bin/false")
    with pytest.raises(RunError, match=r"\.log: the process that starts the jobs ended with 1; it says there why"):
        here.submit(1)
    assert not [path for path in Tokens().path.iterdir() if path.is_dir()]


def test_jobs_of_other_machines_are_known_by_what_was_said_last(machine, monkeypatch) -> None:
    here = machine(cores=1)
    names = here.submit(3)
    until(lambda: here.state(names[0]) == "running")
    said = runner.beat(here.logs / f"{names[0].rpartition('_')[0]}.json")
    until(lambda: json.loads(said.read_text())["running"] == [0])
    monkeypatch.setattr(local, "_host", lambda: "elsewhere")
    assert here.says(*names) == ["running", "pending", "pending"]
    cancel(names)
    assert here.says(*names) == ["running", "pending", "pending"]
    for name in names:
        mark(here.run_dir(name), CANCELLED)  # as the command does
    until(lambda: here.says(*names) == ["over"] * 3)
    assert [here.state(name) for name in names] == ["stopped", "none", "none"]


def test_a_machine_that_says_nothing_has_nothing(machine, monkeypatch) -> None:
    here = machine(cores=1)
    names = here.submit(3)
    said = runner.beat(here.logs / f"{names[0].rpartition('_')[0]}.json")
    until(lambda: said.exists() and json.loads(said.read_text())["running"] == [0])
    monkeypatch.setattr(local, "_host", lambda: "elsewhere")
    assert here.says(*names) == ["running", "pending", "pending"]
    here.runner(names[0]).kill()
    monkeypatch.setattr(time, "time", lambda clock=time.time: clock() + SILENT_S)
    assert here.says(*names) == ["over"] * 3
    said.write_text("{")
    assert here.says(*names) == ["over"] * 3


def test_tokens_that_cannot_be_seen_are_told_as_nothing_known(monkeypatch, tmp_path) -> None:
    monkeypatch.setenv(FOLDER, str(tmp_path))
    tmp_path.chmod(0o755)
    assert CLUSTERS["local"].scheduled([f"{local._host()}-0_0"], tmp_path) is None
    assert CLUSTERS["local"].scheduled([], tmp_path) == {}


def test_a_runner_waits_for_a_lock_that_another_holds(machine, monkeypatch) -> None:
    here = machine(cores=1)
    order = Order("x-1", 0.0, [], Resources())
    order.write(here.logs / "x-1.json")
    made = Runner(here.logs / "x-1.json", Tokens(), Queue(tmp := here.path / "q"))
    made()  # nothing to do
    assert not tmp.exists()
    made._waiting.append(0)
    monkeypatch.setattr(runner, "POLL_S", 0.01)
    locked, calls = Tokens.locked, []

    def hangs(self, *arguments):
        calls.append(1)
        if len(calls) == 1:
            raise RunError("held")
        return locked(self, *arguments)

    monkeypatch.setattr(Tokens, "locked", hangs)
    made()  # its only job has been cancelled
    assert len(calls) > 1


@pytest.mark.parametrize(
    ("resources", "message"),
    [
        (
            {"cpus_per_rank": 5},
            "cpus_per_rank: got 5, but this machine has 4 CPU core.*give --resources.cpus_per_rank 4",
        ),
        ({"ranks": 3, "gpus_per_rank": 1}, r"3 rank\(s\) with 1 each need 3 GPU\(s\), but 2 can be used.*_rank 0, or"),
        (
            {"gpus_per_rank": 3},
            r"1 rank\(s\) with 3 each need 3 GPU\(s\), but 2 can .*give --resources.gpus_per_rank 2, or",
        ),
    ],
)
def test_what_could_never_start_is_refused(resources, message, machine) -> None:
    here = machine(cores=4, gpus=2)
    with pytest.raises(ConfigError, match=message):
        check(Resources(**resources), Need(4, 2))
    with pytest.raises(ConfigError, match=message):
        preview(Resources(**resources), 1)
    with pytest.raises(ConfigError, match=message):
        here.submit(1, **resources)
    assert not list(here.logs.iterdir())


def test_a_run_is_a_jobs_until_a_later_submission_has_it(tmp_path) -> None:
    folder, order = SweepFolder(tmp_path), Order("x-1", 5.0, [["a"], ["b"]], Resources())
    folder.own.mkdir()
    assert order.owns(0, tmp_path / "a")
    folder.note(Submission(4.0, "slurm", {"7": ["a"]}))
    assert order.owns(0, tmp_path / "a")  # its own is not noted yet
    folder.note(Submission(6.0, "local", {"x-1_0": ["a"], "x-1_1": ["b"]}))
    assert order.owns(0, tmp_path / "a")
    assert not order.owns(0, tmp_path / "b")
    folder.note(Submission(7.0, "local", {"x-2_0": ["a"]}))
    assert not order.owns(0, tmp_path / "a")
    assert order.owns(1, tmp_path / "b")


def test_nothing_that_was_asked_for_is_passed_over_silently(machine, capsys) -> None:
    assert remarks(Resources(ranks=4, parallel=1, pack=3), Need(4, 0)) == []
    asked = Resources(ranks=6, nodes=2, partition="main", setup=("module load x",))
    slurm, cores, gpus = remarks(asked, Need(4, 2))
    assert slurm.startswith(
        "resources: nodes, partition, setup: SLURM's, and without effect here: all ranks are on this"
    )
    assert "asks for 6 CPU core(s), and this machine has 4: runs go on one after the other" in cores
    assert "do not see the 2 GPU(s) of this machine; --resources.gpus_per_rank 1 gives one to each rank" in gpus
    here = machine(cores=4, gpus=2)
    here.submit(0, nodes=2, ranks=2, gpus_per_rank=1)
    assert "resources: nodes: SLURM's" in capsys.readouterr().err
    shown = preview(Resources(ranks=2, nodes=2), 9)
    assert "resources: nodes: SLURM's" in shown
    assert "each job takes 2 CPU core(s) of this machine; at most 2 go on at the same time, without a limit" in shown
    assert shown.endswith(" train RUN/config.yaml --run_dir RUN --progress plain --ranks 2\n")
    assert "takes 2 CPU core(s) and 2 GPU(s) of this machine; at most 1 go on" in preview(
        Resources(ranks=2, gpus_per_rank=1), 9
    )


@pytest.fixture
def sweep(tmp_path) -> Path:
    """A sweep file of two short runs on two ranks each."""
    values: dict[str, Any] = {
        "run_dir": str(tmp_path / "s"), "epochs": 1, "data": {"name": "digits", "train_size": 200},
        "sweep": {"grid": {"optimizer.lr": [0.1, 0.2]}}, "resources": {"ranks": 2},
    }  # fmt: skip
    path = tmp_path / "sweep.yaml"
    path.write_text(yamls.dump(values))
    return path


def kinds(folder: SweepFolder) -> list[str]:
    return [state.kind for state in states_of(folder)]


@pytest.mark.slow
@pytest.mark.parallel
def test_a_sweep_on_this_machine(sweep, tmp_path, capsys) -> None:
    folder = SweepFolder(tmp_path / "s")
    submit_command(sweep, [], "local", dry_run=True, as_json=False)
    assert "each job takes" in capsys.readouterr().out
    assert not folder.path.exists()
    submit_command(sweep, ["--resources.parallel", "1"], "local", dry_run=False, as_json=False)
    assert "submitted 2 run(s), 4 rank(s)" in capsys.readouterr().out
    assert "done" not in kinds(folder)
    until(lambda: all(history(folder.run_dir(run)) for run in folder.runs()))
    assert kinds(folder) == ["done", "done"]
    first, second = (history(folder.run_dir(run)) for run in folder.runs())
    assert [each.how for each in first + second] == ["done", "done"]
    assert first[0].ended <= second[0].began


@pytest.mark.slow
@pytest.mark.parallel
def test_a_sweep_goes_on_after_a_kill_and_a_cancel(sweep, tmp_path) -> None:
    """The first run's job is killed, the second's is cancelled while it trains; retry goes on with them."""
    folder = SweepFolder(tmp_path / "s")
    submit_command(sweep, ["--epochs", "100000"], "local", dry_run=False, as_json=False)
    first, second = folder.runs()
    until(lambda: read_status(folder.run_dir(first)).get("epoch", 0) > 0)
    (job,) = [each for each in psutil.process_iter() if is_of(each, "jobs.runner", "job", "0")
              and str(tmp_path) in " ".join(each.cmdline())]  # fmt: skip
    ranks = job.children(recursive=True)
    assert len(ranks) >= 3  # mpiexec among them
    job.kill()
    until(lambda: not any(each.is_running() and each.status() != psutil.STATUS_ZOMBIE for each in ranks))
    until(lambda: read_status(folder.run_dir(second)).get("epoch", 0) > 0)
    cancel_command(folder.path, [second])
    until(lambda: kinds(folder)[1] == "stopped")
    status = read_status(folder.run_dir(first))
    (folder.run_dir(first) / "status.json").write_text(json.dumps(status | {"heartbeat": time.time() - SILENT_S}))
    assert kinds(folder) == ["lost", "stopped"]
    assert retry(folder.path, None, failed=False) == 0
    reached = status["epoch"]
    until(lambda: read_status(folder.run_dir(first)).get("epoch", 0) > reached)
    assert kinds(folder)[0] == "running"
    cancel_command(folder.path, [])
    until(lambda: kinds(folder) == ["stopped", "stopped"])
    assert read_status(folder.run_dir(first))["epoch"] > reached
