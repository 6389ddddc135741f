"""The process that starts the jobs of one submission on this machine, and the process of each of its jobs.

python -m jobs.runner queue ORDER DESCRIPTOR    starts the jobs as tokens allow; goes on when whoever called it has gone
python -m jobs.runner job ORDER N               makes the runs of job N

The runner knows what waits, and nothing depends on it that runs: a job goes on if its runner is killed, and what waits
is left to ``structlearn retry``. If a job's process is killed, so are its ranks.
"""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import deque
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import Final

from hpc.config.folder import write_atomically
from hpc.errors import RunError
from hpc.output import say
from hpc.signals import StopRequest
from jobs.controller import Controller
from jobs.launch import outside
from jobs.queues import Queue, earlier
from jobs.resources import Resources
from jobs.sweepfolder import SweepFolder
from jobs.tokens import Held, Need, Tokens, machine

POLL_S: Final = 0.5
"""Between two looks at tokens and at jobs that may have ended."""
BEAT_S: Final = 30.0
"""Between two signs of life for other machines that see the sweep's folder."""


@dataclass(frozen=True)
class Order:
    """A submission, as its file in the sweep's logs says it.

    Attributes:
        name: of the submission; its jobs are NAME_0, NAME_1, ...
        time: seconds since 1970.
        jobs: for each job the folders of its runs.
        resources: what every run needs.
    """

    name: str
    time: float
    jobs: list[list[str]]
    resources: Resources

    def write(self, path: Path) -> None:
        """Into a file."""
        write_atomically(path, json.dumps(asdict(self)) + "\n")

    @classmethod
    def read(cls, path: Path) -> "Order":
        """From its file."""
        values = json.loads(path.read_text(encoding="utf-8"))
        return cls(values["name"], values["time"], values["jobs"], Resources(**values["resources"]))

    @property
    def need(self) -> Need:
        """The tokens of a job. More ranks than this machine has cores take them all, and so run alone."""
        needs, most = self.resources, machine()
        return Need(min(needs.ranks * needs.cpus_per_rank, most.cpus), needs.ranks * needs.gpus_per_rank)

    def job(self, index: int) -> str:
        """The name of a job."""
        return f"{self.name}_{index}"

    def owns(self, index: int, run_dir: Path) -> bool:
        """Is a job's run still the job's to make? Not where a later submission has it.

        By their times: the submission that this order is of may not have been noted yet.
        """
        noted = [
            each for each in SweepFolder(run_dir.parent).submissions() if run_dir.name in chain(*each.jobs.values())
        ]
        return not noted or noted[-1].time < self.time or run_dir.name in noted[-1].jobs.get(self.job(index), [])


class Runner:
    """Starts the jobs of a submission, in their order, and waits for them.

    Told to stop, it tells its jobs so, and leaves those that wait to ``structlearn retry``.

    Args:
        path: the file of the order; what it and its jobs print goes beside it.
        tokens: of this machine.
        queue: the jobs that wait.
    """

    def __init__(self, path: Path, tokens: Tokens, queue: Queue) -> None:
        self._path, self._tokens, self._queue = path, tokens, queue
        self._order = Order.read(path)
        self._waiting = deque(range(len(self._order.jobs)))
        self._running: dict[int, subprocess.Popen[bytes]] = {}
        self._said: tuple[float, object] = (0.0, None)

    def __call__(self) -> None:
        """Returns when all have ended."""
        told = False
        with StopRequest() as stop:
            while self._waiting or self._running:
                self._see_who_has_ended()
                if stop.requested and not told:
                    say(f"told to stop ({stop.name}): so are {len(self._running)} job(s)", sys.stdout)
                    for child in self._running.values():
                        child.send_signal(signal.SIGTERM)
                    told = True
                try:
                    with self._tokens.locked():
                        self._go_on(start=not told)
                except RunError as error:  # another process hangs: it may end
                    say(str(error), sys.stdout)
                self._give_sign_of_life()
                time.sleep(POLL_S)
        with contextlib.suppress(RunError), self._tokens.locked():
            shutil.rmtree(self._queue.path, ignore_errors=True)
        say("all jobs have ended", sys.stdout)

    def _see_who_has_ended(self) -> None:
        for index, child in list(self._running.items()):
            if child.poll() is not None:
                say(f"{self._order.job(index)}: ended with {child.returncode}", sys.stdout)
                del self._running[index]

    def _go_on(self, *, start: bool) -> None:
        """Start the jobs for which there are tokens. The tokens are locked."""
        while self._waiting:
            index = self._waiting[0]
            if not start:
                self._queue.leave(index)
            if not self._queue.waits(index):  # cancelled
                self._waiting.popleft()
                continue
            if len(self._running) >= self._order.resources.parallel:
                break
            since = self._queue.wait_for(self._order.need)
            taken = self._tokens.take(self._order.need, earlier(self._tokens, self._queue, since))
            if taken is None:
                return
            self._waiting.popleft()
            self._queue.wait_no_more()  # whoever has waited meanwhile comes before its next job
            self._start(index, taken)
        self._queue.wait_no_more()

    def _start(self, index: int, taken: Held) -> None:
        """Start a job, which inherits its tokens."""
        name, running = self._order.job(index), self._queue.start(index)
        program = [sys.executable, "-m", "jobs.runner", "job", str(self._path), str(index)]
        env = outside(os.environ) | {
            "OMP_NUM_THREADS": str(self._order.resources.cpus_per_rank),
            "CUDA_VISIBLE_DEVICES": ",".join(taken.gpus),
        }
        try:
            with (self._path.parent / f"{name}.log").open("ab") as file:
                child = subprocess.Popen(
                    program, env=env, stdin=subprocess.DEVNULL, stdout=file, stderr=file,
                    pass_fds=(*taken.descriptors, running),
                )  # fmt: skip
        except OSError as error:  # no memory, no folder: structlearn retry goes on when that is mended
            say(f"{name}: cannot be started ({error})", sys.stdout)
        else:
            self._queue.began(running, child.pid)
            self._running[index] = child
            cards = f", GPU(s) {','.join(taken.gpus)}" if taken.gpus else ""
            say(f"{name}: process {child.pid} on {len(taken.cpus)} CPU core(s){cards}", sys.stdout)
        finally:
            taken.close()
            os.close(running)

    def _give_sign_of_life(self) -> None:
        """Say for other machines which jobs wait and run."""
        now, jobs = time.time(), {"pending": list(self._waiting), "running": list(self._running)}
        # What is cancelled further down counts as waiting until its turn comes: looking at 10,000 files takes long.
        before, said = self._said
        if jobs == said and 0 <= now - before < BEAT_S:
            return
        with contextlib.suppress(OSError):  # a full disk: the next one may be written
            write_atomically(beat(self._path), json.dumps({"time": now, **jobs}), durable=False)
        self._said = now, jobs


def beat(path: Path) -> Path:
    """Where the runner of an order gives signs of life."""
    return path.with_suffix(".alive")


def train_command(run_dir: Path, ranks: int) -> list[str]:
    """How a run is made by ranks on this machine."""
    several = ["--ranks", str(ranks)] if ranks > 1 else []
    where = [str(run_dir / "config.yaml"), "--run_dir", str(run_dir)]
    return [sys.executable, "-m", "jobs", "train", *where, "--progress", "plain", *several]


def job(path: Path, index: int) -> int:
    """Make the runs of a job; its exit code, as :class:`jobs.controller.Controller` says."""
    order = Order.read(path)
    return Controller(
        [Path(each) for each in order.jobs[index]],
        lambda run_dir: train_command(run_dir, order.resources.ranks),
        order.job(index),
        mine=lambda run_dir: order.owns(index, run_dir),
    )()


def main() -> None:
    """One of the two processes."""
    which, path, number = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    if which == "job":
        sys.exit(job(path, number))
    tokens = Tokens()
    kept = tokens.kept()
    runner = Runner(path, tokens, Queue(tokens.path / path.stem))
    if os.fork():  # whoever called waits for this process only: it has begun
        os._exit(0)
    runner()
    os.close(number)
    os.close(kept)


if __name__ == "__main__":
    main()
