"""What each exchange costs: step time of two ranks, each pinned to a core, over training alone.

    python benchmarks/exchange.py [--rounds 12] [--millions 1 10 20] [--steps 100]

A multilayer perceptron of 1, 10 or 20 million parameters, batch 64, SGD with momentum. In each round every strategy
makes the same number of steps, one strategy after the other, in an order that alternates; a ratio is to ``none`` in the
same round, so that what the machine does meanwhile cancels. Gossip's share is the time inside its calls. Beside ours:

- ``push``: gossip as Theano-MPI does it: look for messages, receive them, send blocking, all between two steps;
- ``averager``: torch's PeriodicModelAverager (post-local SGD) over gloo;
- ``ddp``: torch's DistributedDataParallel over gloo.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from typing import Any

import numpy as np
import torch
from measure import publish, ratio, spread
from torch import nn
from torch.nn.functional import cross_entropy

from hpc import exchange
from hpc.comm import Communicator, connect
from hpc.config.read import validate
from hpc.exchange import Agenda, Pause

BATCH, INPUTS, CLASSES = 64, 1024, 10
WIDTHS = {1: 650, 10: 2700, 20: 3990}
RHOS = (0.01, 0.1)


def network(width: int) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(INPUTS, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, CLASSES)
    )


class Trainer:
    """A network and its optimiser, on batches that are always the same."""

    def __init__(self, width: int, rank: int) -> None:
        self.model = network(width)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=1e-4, momentum=0.9, fused=True)
        chance = torch.Generator().manual_seed(rank)
        self.inputs = torch.randn(BATCH, INPUTS, generator=chance)
        self.targets = torch.randint(0, CLASSES, (BATCH,), generator=chance)
        self.step = 0

    def backward(self) -> None:
        """Gradients of one batch."""
        cross_entropy(self.model(self.inputs), self.targets).backward()

    def update(self) -> None:
        """One step."""
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1


class Ours(Trainer):
    """One of our strategies."""

    def __init__(self, width: int, comm: Communicator, steps: int, section: dict[str, Any]) -> None:
        super().__init__(width, comm.rank)
        config = validate({"exchange": section})
        self.exchange = exchange.build(config, comm, self.model, self.optimizer, Agenda(steps, None, comm.size))
        self.epoch, self.inside = 0, 0.0

    def run(self) -> tuple[float, float]:
        """One epoch: (seconds a step, share of them inside the exchange)."""
        self.exchange.resume(self.epoch, self.step)
        self.epoch, inside, pause, first = self.epoch + 1, 0.0, None, self.step
        start = time.perf_counter()
        while pause is None:
            self.backward()
            inside -= time.perf_counter()
            self.exchange.after_backward()
            inside += time.perf_counter()
            self.update()
            inside -= time.perf_counter()
            self.exchange.after_step(self.step)
            inside += time.perf_counter()
            pause = self.exchange.pause(self.step, requested=False)
        seconds = time.perf_counter() - start
        assert pause is Pause.EPOCH
        self.exchange.quiesce()
        return seconds / (self.step - first), inside / seconds


class Push(Trainer):
    """Gossip without an engine: everything between two steps, and the send blocks."""

    def __init__(self, width: int, mpi: Any, steps: int, rho: float) -> None:
        super().__init__(width, mpi.COMM_WORLD.rank)
        self._mpi, self._comm, self._steps, self._rho = mpi, mpi.COMM_WORLD.Dup(), steps, rho
        self._chance = np.random.default_rng(self._comm.rank)
        self._flat = np.zeros(sum(p.numel() for p in self.model.parameters()) + 1, np.float32)
        self._mass = 0.5

    def _drain(self) -> None:
        status = self._mpi.Status()
        while self._comm.Iprobe(status=status):
            self._comm.Recv(self._flat, status.source)
            came = float(self._flat[-1])
            share = came / (self._mass + came)
            self._mass += came
            parts = torch.from_numpy(self._flat[:-1]).split([p.numel() for p in self.model.parameters()])
            with torch.no_grad():
                for parameter, part in zip(self.model.parameters(), parts, strict=True):
                    parameter.lerp_(part.view_as(parameter), share)

    def run(self) -> tuple[float, float]:
        """(seconds a step, share of them inside the exchange)."""
        inside, start = 0.0, time.perf_counter()
        for _ in range(self._steps):
            self.backward()
            self.update()
            inside -= time.perf_counter()
            self._drain()
            if self._chance.random() < self._rho:
                self._mass /= 2
                torch.cat(
                    [p.detach().flatten() for p in self.model.parameters()], out=torch.from_numpy(self._flat)[:-1]
                )
                self._flat[-1] = self._mass
                request = self._comm.Isend(self._flat.copy(), 1 - self._comm.rank)
                while not request.Test():  # blocking, but two that send to each other must both receive
                    self._drain()
            inside += time.perf_counter()
        seconds = time.perf_counter() - start
        barrier = self._comm.Ibarrier()
        while not barrier.Test():
            self._drain()
        return seconds / self._steps, inside / seconds


class Ddp(Trainer):
    """torch's own synchronous training."""

    def __init__(self, width: int, rank: int, steps: int) -> None:
        super().__init__(width, rank)
        self.model = nn.parallel.DistributedDataParallel(self.model, gradient_as_bucket_view=True)
        self._steps = steps

    def run(self) -> tuple[float, float]:
        """(seconds a step, and nobody knows the share)."""
        start = time.perf_counter()
        for _ in range(self._steps):
            self.backward()
            self.update()
        return (time.perf_counter() - start) / self._steps, float("nan")


class Averager(Trainer):
    """torch's own periodic averaging."""

    def __init__(self, width: int, rank: int, steps: int, period: int) -> None:
        super().__init__(width, rank)
        from torch.distributed.algorithms.model_averaging.averagers import PeriodicModelAverager

        self._averager, self._steps = PeriodicModelAverager(period=period, warmup_steps=0), steps

    def run(self) -> tuple[float, float]:
        """(seconds a step, share of them inside the exchange)."""
        inside, start = 0.0, time.perf_counter()
        for _ in range(self._steps):
            self.backward()
            self.update()
            inside -= time.perf_counter()
            self._averager.average_parameters(self.model.parameters())
            inside += time.perf_counter()
        seconds = time.perf_counter() - start
        return seconds / self._steps, inside / seconds


def body(width: int, rounds: int, steps: int) -> None:
    """What each of the two ranks does; rank 0 prints all times."""
    comm = connect(120.0)
    os.sched_setaffinity(0, {sorted(os.sched_getaffinity(0))[comm.rank]})
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29531", "RANK": str(comm.rank), "WORLD_SIZE": "2"}
    torch.distributed.init_process_group("gloo")
    from mpi4py import MPI

    sides = {"none": Ours(width, comm, steps, {"name": "none"}).run}
    for rho in RHOS:
        tau = round(1 / rho)
        sides |= {
            f"gossip {rho}": Ours(width, comm, steps, {"name": "gossip", "rho": rho}).run,
            f"push {rho}": Push(width, MPI, steps, rho).run,
            f"persyn {tau}": Ours(width, comm, steps, {"name": "persyn", "tau": tau}).run,
            f"averager {tau}": Averager(width, comm.rank, steps, tau).run,
        }
    sides |= {"sync": Ours(width, comm, steps, {"name": "sync"}).run, "ddp": Ddp(width, comm.rank, steps).run}
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}
    for number in range(-1, rounds):  # the first round warms up
        for name in list(sides) if number % 2 else list(reversed(sides)):
            comm.barrier("start together")
            measured = sides[name]()
            if number >= 0:
                found[name].append(measured)
    everyone = comm.gather(found, "collect the times")
    if comm.rank == 0:
        print(json.dumps(everyone))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--millions", type=int, nargs="+", default=[1, 10, 20], choices=WIDTHS)
    parser.add_argument("--body", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.body:
        body(arguments.body, arguments.rounds, arguments.steps)
        return
    from jobs.launch import command, environment, find_mpiexec

    lines = ["| parameters | strategy | ms a step | over none | share inside, % |", "|---|---|---|---|---|"]
    for millions in arguments.millions:
        program = [sys.executable, __file__, "--body", str(WIDTHS[millions])]
        options = ["--rounds", str(arguments.rounds), "--steps", str(arguments.steps)]
        line = command(find_mpiexec(), 2, [*program, *options])
        done = subprocess.run(line, env=environment(2), stdout=subprocess.PIPE, text=True, check=True)
        ranks = json.loads(done.stdout.splitlines()[-1])
        both = {
            name: [np.mean(pair, 0) for pair in zip(*(rank[name] for rank in ranks), strict=True)] for name in ranks[0]
        }
        alone = [float(seconds) for seconds, _ in both["none"]]
        for name, values in both.items():
            times, shares = [float(seconds) for seconds, _ in values], [100 * float(share) for _, share in values]
            inside = "" if np.isnan(shares).any() else spread(shares)
            lines.append(
                f"| {millions} M | {name} | {spread([1e3 * t for t in times])} | {ratio(times, alone)} | {inside} |"
            )
    publish("exchange", "Two ranks, a core each: median [quartiles]", lines)


if __name__ == "__main__":
    main()
