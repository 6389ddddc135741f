"""What befalls the runs of a sweep on a cluster of ``cluster.py``: a function for each kind of fault.

Each is given the sweep and the runs that it is to meet (faults of nodes and daemons meet all that go on anyway), and
returns when the cluster is whole again. ``sweep.met`` is told of each run at the very moment.
"""

import contextlib
import json
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path
from typing import Any

import psutil

from hpc.config import yamls
from hpc.config.folder import read_status
from jobs.attempts import history

ROOT = Path(__file__).parents[2]
NODES = ("n1", "n2")
BATCH, OTHER = NODES
"""Where a job's batch shell is, and where it is not."""


class Sweep:
    """A sweep that is handed over to a cluster.

    Args:
        cluster: a ``Cluster``.
        folder: of the sweep; its parent is made.
        draw: for what is left to chance.
    """

    def __init__(self, cluster: Any, folder: Path, draw: random.Random | None = None) -> None:
        self.cluster, self.folder, self.draw = cluster, folder, draw or random.Random(0)
        self.runs: dict[str, dict[str, Any]] = {}
        """What ``structlearn status`` says of each, by its id, in their order, when they are handed over."""

    def met(self, runs: Sequence[str], what: str) -> None:
        """A fault meets these runs now."""

    def structlearn(self, *words: str) -> str:
        """What the command says, on the cluster's login node."""
        env = self.cluster.env() | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "jobs", *words]
        done = subprocess.run(
            command, env=env, cwd=self.folder.parent, capture_output=True, text=True, timeout=300, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def submit(self, values: dict[str, Any]) -> None:
        """Hand over what a sweep file says."""
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        file = self.folder.parent / "sweep.yaml"
        file.write_text(yamls.dump(values | {"run_dir": str(self.folder)}))
        self.structlearn("submit", str(file), "--cluster", "slurm")
        self.runs = {state["id"]: state for state in self.states()}

    def states(self) -> list[dict[str, Any]]:
        """What ``structlearn status`` says of each run."""
        found = json.loads(self.structlearn("status", str(self.folder), "--json"))["runs"]
        assert isinstance(found, list)
        return found

    def ages(self) -> dict[str, float]:
        """Of each run that SLURM says is running and that is not done: seconds since its job was started."""
        said = [line.split() for line in self.ask("squeue", "-h", "-r", "-t", "running", "-o", "%i %S").splitlines()]
        begun = {job: datetime.fromisoformat(at).timestamp() for job, at in said if at[0].isdigit()}
        now = time.time()
        jobs = {run: state["job"] for run, state in self.runs.items() if not self.done(run)}
        return {run: now - begun[job] for run, job in jobs.items() if job in begun}

    def done(self, run: str) -> bool:
        """Does a run's folder say so?"""
        return read_status(self.folder / run).get("state") == "done"

    def step(self, run: str) -> int:
        """Of a run's newest checkpoint."""
        names = [path.parent.name for path in (self.folder / run).glob("checkpoints/step-*/manifest.json")]
        return max((int(name.split("-")[1]) for name in names), default=0)

    def over(self) -> bool:
        """Are all runs done, and all jobs gone?"""
        return all(map(self.done, self.runs)) and not self.ask("squeue", "-h")

    def ranks(self, run: str) -> list[psutil.Process]:
        """The ranks of a run that live, in their order."""
        found = {}
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, KeyError):
                words = process.cmdline()
                if words[1:3] == ["-m", "hpc.rank"] and words[3] == str(self.folder / run):
                    found[int(process.environ()["SLURM_PROCID"])] = process
        return [found[rank] for rank in sorted(found)]

    def ask(self, *command: str) -> str:
        """What a command says; nothing while the controller is away."""
        env = self.cluster.env()
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120, check=False)
        return "" if done.returncode else done.stdout


Fault = Callable[[Sweep, Sequence[str]], None]


def told_to_stop(sweep: Sweep, runs: Sequence[str]) -> None:
    """scancel sends the signal that comes before a job's end."""
    for run in runs:
        sweep.met([run], "scancel")
        # Where others of the array wait, it says that it failed, and would repeat the signal for minutes: FACTS.md, 2.
        with contextlib.suppress(subprocess.TimeoutExpired):
            line = ["scancel", "--signal=USR2", sweep.runs[run]["job"]]
            subprocess.run(line, env=sweep.cluster.env(), capture_output=True, timeout=2, check=False)


def rank_killed(sweep: Sweep, runs: Sequence[str]) -> None:
    """SIGKILL, to one of its ranks."""
    for run in runs:
        until = time.monotonic() + 60
        while not (ranks := sweep.ranks(run)) and time.monotonic() < until and not sweep.done(run):
            time.sleep(0.05)
        if ranks:
            victim = sweep.draw.randrange(len(ranks))
            with contextlib.suppress(psutil.NoSuchProcess):
                ranks[victim].kill()
                sweep.met([run], f"rank {victim} killed")


def preempted(sweep: Sweep, runs: Sequence[str]) -> None:
    """A job of a higher partition takes all nodes for some seconds."""
    sweep.met(runs, "preempted")
    job = sweep.cluster.sbatch(f"sleep {sweep.draw.uniform(1, 5):.1f}", "-p", "high", "-N2", "--exclusive")
    sweep.cluster.wait_for(job, "COMPLETED", within_s=180)


def limit_reached(sweep: Sweep, runs: Sequence[str]) -> None:
    """The end of a job's time comes in less than a minute. Ranks are held until then: its signal wakes them up."""
    ages = sweep.ages()
    for run in runs:
        job, before = sweep.runs[run]["job"], len(history(sweep.folder / run))
        sweep.met([run], "time limit")
        for rank in sweep.ranks(run):
            rank.suspend()
        sweep.cluster.run("scontrol", "update", f"JobId={job}", f"TimeLimit={int(ages[run] / 60) + 1}")
        sweep.cluster.wait(lambda: len(history(sweep.folder / run)) > before, "the run does not stop", 180)  # noqa: B023
        sweep.cluster.run("scontrol", "update", f"JobId={job}", "TimeLimit=30")


def daemon_killed(sweep: Sweep, runs: Sequence[str]) -> None:
    """The slurmd of a node is killed, and back after some seconds; jobs live."""
    node = sweep.draw.choice(NODES)
    sweep.met(runs, f"slurmd of {node} killed")
    sweep.cluster.kill_slurmd(node)
    time.sleep(sweep.draw.uniform(1, 5))
    sweep.cluster.start_slurmd(node)


def batch_node_failed(sweep: Sweep, runs: Sequence[str]) -> None:
    """All on the node with the batch shells is killed, and back before SLURM notices."""
    _fail(sweep, runs, BATCH)


def other_node_failed(sweep: Sweep, runs: Sequence[str]) -> None:
    """All on the node without the batch shells is killed, and back before SLURM notices."""
    _fail(sweep, runs, OTHER)


def _fail(sweep: Sweep, runs: Sequence[str], node: str) -> None:
    sweep.met(runs, f"{node} failed")
    sweep.cluster.kill_slurmd(node, jobs=True)
    time.sleep(3)
    sweep.cluster.start_slurmd(node)


def node_away(sweep: Sweep, runs: Sequence[str]) -> None:
    """All on a node is killed, and it is back after SLURM has noticed."""
    _away(sweep, runs, sweep.draw.choice(NODES))


def other_node_away(sweep: Sweep, runs: Sequence[str]) -> None:
    """The same on the node without the batch shells."""
    _away(sweep, runs, OTHER)


def _away(sweep: Sweep, runs: Sequence[str], node: str) -> None:
    sweep.met(runs, f"{node} away")
    sweep.cluster.kill_slurmd(node, jobs=True)
    ask = ("sinfo", "-h", "-n", node, "-p", "main", "-o", "%T")
    sweep.cluster.wait(lambda: "down" in sweep.ask(*ask), f"{node} is not down", 120)
    time.sleep(sweep.draw.uniform(0, 5))
    sweep.cluster.start_slurmd(node)


def controller_restarted(sweep: Sweep, runs: Sequence[str]) -> None:
    """slurmctld ends in peace, and is started."""
    sweep.met(runs, "slurmctld restarted")
    sweep.cluster.restart_slurmctld()


def controller_killed(sweep: Sweep, runs: Sequence[str]) -> None:
    """slurmctld is killed, and started. Jobs must be seven seconds old: it forgets the last five."""
    sweep.met(runs, "slurmctld killed")
    sweep.cluster.restart_slurmctld(kill=True)


def rank_killed_without_controller(sweep: Sweep, runs: Sequence[str]) -> None:
    """A rank is killed as slurmctld goes, which is away for longer than srun asks for it."""
    with ThreadPoolExecutor(1) as pool:
        away = pool.submit(sweep.cluster.restart_slurmctld, away_s=40)
        time.sleep(2)
        rank_killed(sweep, runs)
        away.result()


def stopped_without_controller(sweep: Sweep, runs: Sequence[str]) -> None:
    """Ranks hear that their time is over as slurmctld goes: their job cannot go back into the queue yet."""
    with ThreadPoolExecutor(1) as pool:
        away = pool.submit(sweep.cluster.restart_slurmctld, away_s=40)
        time.sleep(2)
        for run in runs:
            sweep.met([run], "stopped")
            for rank in sweep.ranks(run):
                rank.send_signal(signal.SIGUSR2)
        away.result()
