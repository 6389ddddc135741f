"""A real SLURM on this machine: munge, slurmctld, two slurmd and, where asked, slurmdbd with its database.

Needs root and the Debian packages that ``missing`` names. A cluster has its own folder, ports, key and sockets: several
run beside each other, and what a killed one left behind disturbs none.
"""

import os
import secrets
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Self

import psutil

HERE = Path(__file__).parent
NODES = ("n1", "n2")
PACKAGES = {
    "slurm-wlm munge": ("munged", "slurmctld", "slurmd", "srun"),
    "slurmdbd mariadb-server": ("slurmdbd", "mariadbd"),
}
ACCOUNTING = """AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort={slurmdbd_port}
AccountingStoragePass={folder}/munge/socket
"""


class ClusterError(RuntimeError):
    """The cluster did not do in time what it was asked to; the message ends with the last lines of its logs."""


def missing(*, accounting: bool = False) -> str | None:
    """Why no cluster can start here, or None.

    Args:
        accounting: also look for what ``sacct`` needs.
    """
    if os.geteuid() != 0:
        return "a SLURM of our own needs root"
    wanted = list(PACKAGES)[: 2 if accounting else 1]
    absent = [packages for packages in wanted if not all(map(shutil.which, PACKAGES[packages]))]
    return f"a SLURM of our own needs: apt-get install --no-install-recommends {' '.join(absent)}" if absent else None


def free_ports(number: int) -> list[int]:
    """Ports that nobody listens to."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(number)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


class Cluster:
    """Nodes ``n1`` and ``n2`` on loopback, up from ``with`` to its end, after which none of its processes is left.

    Jobs of the partition ``low`` are requeued when one of ``high`` needs their nodes; ``main``, the default, is let be.

    Args:
        accounting: whether ``sacct`` answers.
        cpus: of each node; more than this machine has are fine.
        max_array_size: task ids of arrays are below it.
        grace_s: what a job in ``low`` has between the signal and its end.
        kill_wait_s: from SIGTERM to SIGKILL.
        requeue_delay_s: what a requeued job waits before it starts again; 5 at least, 120 on most clusters.
        slurmd_timeout_s: how long a node may be silent before its jobs are taken from it.

    Raises:
        ClusterError: it is not up after a minute.
    """

    def __init__(
        self,
        *,
        accounting: bool = False,
        cpus: int = 2,
        max_array_size: int = 1001,
        grace_s: int = 10,
        kill_wait_s: int = 5,
        requeue_delay_s: int = 5,
        slurmd_timeout_s: int = 10,
    ) -> None:
        # Not pytest's folder: munge wants one that every user may enter, and sockets want short names.
        self.folder = Path(tempfile.mkdtemp(prefix="slurm-"))
        self.folder.chmod(0o755)
        self.accounting = accounting
        self.daemons: dict[str, subprocess.Popen[bytes]] = {}
        self.starter = ThreadPoolExecutor(max_workers=1)
        names = ("slurmctld_port", "slurmdbd_port", "database_port", "n1_port", "n2_port")
        self.values = {
            "name": self.folder.name.replace("-", ""),
            "host": socket.gethostname(),
            "folder": self.folder,
            "cpus": cpus,
            "max_array_size": max_array_size,
            "grace_s": grace_s,
            "kill_wait_s": kill_wait_s,
            "requeue_delay_s": requeue_delay_s,
            "slurmd_timeout_s": slurmd_timeout_s,
            "first_job": secrets.randbelow(60_000_000) + 1,
            **dict(zip(names, free_ports(len(names)), strict=True)),
        }
        self.values["accounting"] = ACCOUNTING.format_map(self.values) if accounting else ""
        self.conf = self._configure("slurm.conf")

    def __enter__(self) -> Self:
        try:
            self._start_munge()
            if self.accounting:
                self._start_accounting()
            self._start("slurmctld", "slurmctld", "-D")
            for node in NODES:
                self.start_slurmd(node)
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    # --- what a user does -----------------------------------------------------------------------------

    def env(self) -> dict[str, str]:
        """This process's environment, for commands that shall find this cluster and no other."""
        foreign = ("SLURM", "SBATCH", "SRUN", "PMI")
        return {k: v for k, v in os.environ.items() if not k.startswith(foreign)} | {"SLURM_CONF": str(self.conf)}

    def run(self, *command: str | Path, timeout_s: float = 60) -> str:
        """What a command says on standard output.

        Raises:
            ClusterError: it failed, or did not end in time.
        """
        try:
            done = subprocess.run(
                command, env=self.env(), cwd=self.folder, capture_output=True, text=True, timeout=timeout_s, check=False
            )
        except subprocess.TimeoutExpired as late:
            raise self._error(f"{command} did not end in {timeout_s:g} s") from late
        if done.returncode:
            raise self._error(f"{command} ended with {done.returncode}: {done.stderr}")
        return done.stdout

    def sbatch(self, script: str, *options: str) -> str:
        """The id of a batch job of these lines of shell; ``output`` has what it says."""
        file = self.folder / f"{secrets.token_hex(4)}.sh"
        file.write_text(f"#!/bin/bash\n{script}\n")
        return self.run("sbatch", "--parsable", "--open-mode=append", "--output=job-%A.%a.out", *options, file).strip()

    def output(self, job: str) -> str:
        """What a job has said so far; of an array, one task after the other."""
        return "".join(file.read_text() for file in sorted(self.folder.glob(f"job-{job}.*.out")))

    def jobs(self, job: str) -> list[dict[str, str]]:
        """What ``scontrol`` knows of a job, or of each task of an array; of ended ones too, for five minutes."""
        lines = self.run("scontrol", "show", "job", "--oneliner", job).splitlines()
        return [dict(word.split("=", 1) for word in line.split() if "=" in word) for line in lines]

    def wait_for(self, job: str, *states: str, within_s: float = 60) -> list[dict[str, str]]:
        """The job, or all tasks of the array, once they are in one of these states.

        Raises:
            ClusterError: they are in another one when the time is over.
        """
        seen: list[dict[str, str]] = []

        def there() -> bool:
            seen[:] = self.jobs(job)
            return all(each["JobState"] in states for each in seen)

        try:
            self.wait(there, f"job {job} is not {' or '.join(states)}", within_s)
        except ClusterError as late:
            late.add_note(f"{[(each['JobState'], each['Reason']) for each in seen]}\n{self.output(job)}")
            raise
        return seen

    def wait(self, condition: Callable[[], object], otherwise: str, within_s: float = 60) -> None:
        """Return once the condition holds.

        Raises:
            ClusterError: it does not when the time is over.
        """
        end = time.monotonic() + within_s
        while not condition():
            if time.monotonic() > end:
                raise self._error(f"after {within_s:g} s {otherwise}")
            time.sleep(0.2)

    # --- what befalls a cluster -----------------------------------------------------------------------

    def kill_slurmd(self, node: str, *, jobs: bool = False) -> None:
        """SIGKILL the daemon of a node; with ``jobs`` also all that runs there, as when the node itself fails."""
        self._kill(node)
        if jobs:
            self._end(node)

    def start_slurmd(self, node: str) -> None:
        """Start the daemon of a node, and return when the node takes jobs."""
        log = self.folder / f"{node}.log"
        before = log.stat().st_size if log.exists() else 0
        self._start(node, "slurmd", "-D", "-N", node)
        # The controller may not have missed it yet.
        self.wait(lambda: b"slurmd started" in log.read_bytes()[before:], f"slurmd of {node} does not start")
        up = ("idle", "mixed", "allocated")
        self.wait(lambda: self._ask("sinfo", "-h", "-n", node, "-p", "main", "-o", "%T") in up, f"{node} is not up")

    def restart_slurmctld(self, *, kill: bool = False, away_s: float = 0) -> None:
        """End the controller, start it again, and return when it answers.

        Args:
            kill: with SIGKILL, after which it has forgotten the last five seconds: a job that started in them is
                started again, fails, and is held.
            away_s: so long before it is started.
        """
        if kill:
            self._kill("slurmctld")
        else:
            daemon = self.daemons.pop("slurmctld")
            daemon.terminate()
            daemon.wait(60)
        time.sleep(away_s)
        self._start("slurmctld", "slurmctld", "-D")
        self.wait(lambda: "UP" in self._ask("scontrol", "ping"), "slurmctld does not answer")

    def processes(self) -> list[psutil.Process]:
        """All that belongs to this cluster: daemons, what they started for jobs, and clients."""
        return [each for each in psutil.process_iter() if _belongs(each, self.folder)]

    def logs(self, lines: int = 15) -> str:
        """The last lines of what each daemon said."""
        files = sorted(self.folder.glob("*.log"))
        return "\n".join(f"--- {f.name}\n" + "\n".join(f.read_text().splitlines()[-lines:]) for f in files)

    def stop(self) -> None:
        """End all processes of this cluster and remove its folder.

        Raises:
            ClusterError: one does not end.
        """
        for name in list(self.daemons):  # first, or they start processes while we end them
            self._kill(name)
        self._end()
        self.starter.shutdown()
        shutil.rmtree(self.folder)

    # --- the daemons ----------------------------------------------------------------------------------

    def _configure(self, name: str) -> Path:
        file = self.folder / name
        file.touch(mode=0o600)  # slurmdbd refuses a file that others may read
        file.write_text((HERE / name).read_text().format_map(self.values))
        return file

    def _start_munge(self) -> None:
        folder = self.folder / "munge"
        folder.mkdir(mode=0o755)
        key = folder / "key"
        key.touch(mode=0o600)
        key.write_bytes(secrets.token_bytes(128))
        places = (f"--{name}-file={folder / name}" for name in ("key", "pid", "seed", "log"))
        self._start("munged", "munged", "--foreground", f"--socket={folder / 'socket'}", *places)
        self.wait((folder / "socket").exists, "munged does not listen")

    def _start_accounting(self) -> None:
        folder = self.folder / "database"
        folder.mkdir()
        options = {
            "datadir": folder,
            "socket": folder / "socket",
            "pid-file": folder / "pid",
            "port": self.values["database_port"],
            "bind-address": "127.0.0.1",
            "user": "root",
        }
        line = [f"--{name}={value}" for name, value in options.items()]
        # Without grant tables it starts in a folder that is empty, and in a second.
        self._start("mariadbd", "mariadbd", "--no-defaults", "--skip-grant-tables", *line)
        self.wait((folder / "socket").exists, "mariadbd does not listen")
        self._configure("slurmdbd.conf")
        self._start("slurmdbd", "slurmdbd", "-D")
        add = ("sacctmgr", "-i", "add", "cluster", str(self.values["name"]))
        self.wait(lambda: self._ask(*add), "slurmdbd does not answer")

    def _start(self, name: str, *command: str) -> None:
        # Where this process is killed, its daemons are, too. To the kernel, that is the thread that started them.
        line = ["setpriv", "--pdeathsig", "KILL", *command]
        with (self.folder / f"{name}.log").open("ab") as log:
            popen = partial(subprocess.Popen, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
            self.daemons[name] = self.starter.submit(popen, line, env=self.env(), cwd=self.folder).result()

    def _kill(self, name: str) -> None:
        daemon = self.daemons.pop(name)
        daemon.kill()
        daemon.wait()

    def _end(self, node: str = "") -> None:
        """End all that runs for jobs on a node, or all there is; what starts meanwhile is seen by the next look."""

        def none_left() -> bool:
            left = [each for each in psutil.process_iter() if _belongs(each, self.folder, node)]
            for each in left:
                with suppress(psutil.NoSuchProcess):
                    each.kill()
            return not left

        self.wait(none_left, "processes do not end", 30)

    def _ask(self, *command: str) -> str:
        """What a command says, or "" while it fails because daemons are still starting."""
        done = subprocess.run(command, env=self.env(), capture_output=True, text=True, timeout=60, check=False)
        return "" if done.returncode else done.stdout.strip()

    def _error(self, message: str) -> ClusterError:
        return ClusterError(f"{message}\n{self.logs()}")


def _belongs(process: psutil.Process, folder: Path, node: str = "") -> bool:
    """Whether a process is of the cluster in this folder; where a node is given, whether it runs jobs there."""
    with suppress(psutil.Error):  # it has ended
        # What runs a job's steps has no environment, but a socket in the spool folder of its node.
        if process.name().startswith("slurm"):
            spool = f"{folder}/spool.{node}"
            if any(str(each.laddr).startswith(spool) for each in process.net_connections("unix")):
                return True
        variables = process.environ()
        ours = variables.get("SLURM_CONF") == f"{folder}/slurm.conf"
        return ours and (not node or variables.get("SLURMD_NODENAME") == node)
    return False
