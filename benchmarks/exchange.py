"""What each exchange costs: step time of two ranks, each pinned to a core, over training alone.

    python benchmarks/exchange.py [--rounds 10] [--millions 1 10 20] [--steps N] [--complete]

A multilayer perceptron of 1, 10 or 20 million parameters, batch 64, SGD with momentum. In each round every strategy
makes its steps, one strategy after the other, in an order that alternates; a ratio is to ``alone`` in the same round,
so that what the machine does meanwhile cancels. Alone, both ranks train, and call nothing between their steps.

The measure of a round is the mean of all its steps, of both ranks: an exchange every hundredth step is in no median.
A step that another process interrupted is in the mean, too. What the host of a virtual machine takes a core away for
is left out (steal, in /proc/stat): here some 100 ms every ten seconds, which fall into every long round, and into few
short ones. A rank that waits for one that was stopped has waited (persyn, sync, push, averager, ddp). The column of
CPU time is of the whole process, gossip's thread included; it does not see waiting. So that every round holds the
same exchanges, rho and tau are at fixed steps here, gossip's pushes as well: every 1/rho-th step in place of a drawn
one, not at the same step on both ranks. A side makes ``--steps`` steps a round, or as many as hold one push;
``alone`` three times as many. The long ones (rho 0.01) are left out where a step is long, except gossip's, unless
``--complete`` is given. The ends of epochs, with the wait for the other rank, are not here: see straggler.py.

*Share inside* is the time in the exchange's calls, the question whether to pause included, less what looking at the
clock takes (alone, that is all). Each round begins with a few steps that are not measured. Beside ours:

- ``push``: gossip as Theano-MPI does it: look for messages, receive them, send blocking, all between two steps;
- ``averager``: torch's PeriodicModelAverager (post-local SGD) over gloo;
- ``ddp``: torch's DistributedDataParallel over gloo.
"""

import argparse
import json
import os
import time
from typing import Any, NamedTuple

import numpy as np
import torch
from measure import is_rank, on_ranks, parser, pin, publish, ratio, spread, stolen
from torch import nn
from trainer import WIDTHS, Trainer

from hpc import exchange
from hpc.comm import connect
from hpc.communicator import Communicator
from hpc.config.read import validate
from hpc.exchange import Agenda
from hpc.exchange.gossip import Gossip

BATCH = 64
WARM = 3
RHOS = (0.01, 0.1)
STEPS = {1: 50, 10: 10, 20: 10}
"""Of a side in a round, at least, by millions of parameters."""
LONG = {1: ("gossip", "push", "persyn", "averager"), 10: ("gossip", "push"), 20: ("gossip",)}
"""Sides at the lower rho, by millions of parameters."""


class Cost(NamedTuple):
    """Of one rank in one round."""

    seconds: float
    """A step, on the wall clock."""
    cpu: float
    """A step, of all threads of the process."""
    inside: float
    """Share of the time that was inside the exchange."""


class Side(Trainer):
    """A strategy: what happens in a step beside training."""

    def __init__(self, millions: int, rank: int, steps: int) -> None:
        super().__init__(millions, rank, BATCH)
        self.steps = steps

    def run(self) -> Cost:
        """The steps of a round, after some that bring its numbers back into the caches."""
        for _ in range(WARM):
            self.backward()
            self.after_backward()
            self.update()
        self.begin()
        inside, cpu, lost, start = 0.0, time.process_time(), stolen(), time.perf_counter()
        for place in range(self.steps):
            self.backward()
            inside -= time.perf_counter()
            self.after_backward()
            inside += time.perf_counter()
            self.update()
            inside -= time.perf_counter()
            self.after_step(place)
            inside += time.perf_counter()
        seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
        seconds -= stolen() - lost
        self.end()
        return Cost(seconds / self.steps, cpu / self.steps, inside / seconds)

    def begin(self) -> None:
        """Before the steps of a round."""

    def end(self) -> None:
        """After them, outside what is measured."""

    def after_backward(self) -> None:
        """Gradients are there."""

    def after_step(self, place: int) -> None:
        """The optimiser has made step number ``place`` of the round, from 0."""


class Evenly:
    """In place of what gossip draws: a push at every so-manieth step."""

    def __init__(self, period: int, rank: int) -> None:
        self._period, self._at, self.first = period, period // 4 + rank * period // 2, 0

    def at(self, step: int) -> tuple[float, float]:
        """Whether to push after a step, and to whom."""
        return float((step - self.first) % self._period != self._at), 0.0


class Ours(Side):
    """One of our strategies."""

    def __init__(self, millions: int, comm: Communicator, steps: int, section: dict[str, Any]) -> None:
        super().__init__(millions, comm.rank, steps)
        agenda = Agenda(10**9, None, comm.size)
        self.exchange = exchange.build(validate({"exchange": section}), comm, self.model, self.optimizer, agenda)
        self._gossip = self.exchange if isinstance(self.exchange, Gossip) else None
        if self._gossip is not None:
            self._draws = Evenly(round(1 / section["rho"]), comm.rank)
            self._gossip._draws = self._draws  # type: ignore[assignment] # noqa: SLF001

    def begin(self) -> None:
        """Go on."""
        if self._gossip is not None:
            self._gossip.pause(self.step, requested=False)  # the last round's wish to stop is over
            self._draws.first = self.step + 1
        self.exchange.resume(0, self.step)

    def end(self) -> None:
        """Every message arrives. Gossip comes to rest after a pause that was agreed on."""
        if self._gossip is not None:
            while self._gossip.pause(self.step, requested=True) is None:
                time.sleep(1e-3)
        self.exchange.quiesce()

    def after_backward(self) -> None:
        """As in the engine."""
        self.exchange.after_backward()

    def after_step(self, place: int) -> None:
        """As in the engine."""
        self.exchange.after_step(self.step)
        self.exchange.pause(self.step, requested=False)


class Push(Side):
    """Gossip without an engine: everything between two steps, and the send blocks."""

    def __init__(self, millions: int, mpi: Any, steps: int, rho: float) -> None:
        super().__init__(millions, mpi.COMM_WORLD.rank, steps)
        self._mpi, self._comm = mpi, mpi.COMM_WORLD.Dup()
        self._when = Evenly(round(1 / rho), self._comm.rank)
        self._parameters = [parameter.detach() for parameter in self.model.parameters()]
        self._sizes = [parameter.numel() for parameter in self._parameters]
        self._out, self._in = (np.zeros(sum(self._sizes) + 1, np.float32) for _ in range(2))
        self._mass = 0.5

    def _drain(self) -> None:
        status = self._mpi.Status()
        while self._comm.Iprobe(status=status):
            self._comm.Recv(self._in, status.source)
            came = float(self._in[-1])
            share = came / (self._mass + came)
            self._mass += came
            parts = torch.from_numpy(self._in[:-1]).split(self._sizes)
            for parameter, part in zip(self._parameters, parts, strict=True):
                parameter.lerp_(part.view_as(parameter), share)

    def after_step(self, place: int) -> None:
        """Receive; perhaps send."""
        self._drain()
        if self._when.at(place)[0]:
            return
        self._mass /= 2
        torch.cat([parameter.flatten() for parameter in self._parameters], out=torch.from_numpy(self._out)[:-1])
        self._out[-1] = self._mass
        request = self._comm.Isend(self._out, 1 - self._comm.rank)
        while not request.Test():  # blocking, but two that send to each other must both receive
            self._drain()

    def end(self) -> None:
        """The other rank may still be sending."""
        barrier = self._comm.Ibarrier()
        while not barrier.Test():
            self._drain()


class Ddp(Side):
    """torch's own synchronous training."""

    def __init__(self, millions: int, rank: int, steps: int) -> None:
        super().__init__(millions, rank, steps)
        self.model = nn.parallel.DistributedDataParallel(self.model, gradient_as_bucket_view=True)

    def run(self) -> Cost:
        """Nobody knows the share: it is inside backward."""
        return super().run()._replace(inside=float("nan"))


class Averager(Side):
    """torch's own periodic averaging."""

    def __init__(self, millions: int, rank: int, steps: int, period: int) -> None:
        super().__init__(millions, rank, steps)
        from torch.distributed.algorithms.model_averaging.averagers import PeriodicModelAverager

        self._averager = PeriodicModelAverager(period=period, warmup_steps=0)

    def backward(self) -> None:
        """The averager takes only parameters with a gradient: the last one stays until here."""
        self.optimizer.zero_grad(set_to_none=True)
        super().backward()

    def update(self) -> None:
        """One step."""
        self.optimizer.step()
        self.step += 1

    def after_step(self, place: int) -> None:
        """Average, when it is time."""
        self._averager.average_parameters(self.model.parameters())


def sides(millions: int, comm: Communicator, least: int, *, complete: bool) -> dict[str, Side]:
    """All that is compared; what the others are compared with makes more steps."""
    from mpi4py import MPI

    found = {"alone": Side(millions, comm.rank, 3 * least)}
    for rho in RHOS:
        tau = round(1 / rho)
        steps = max(1, least // tau) * tau
        kinds = LONG[1] if complete or rho > RHOS[0] else LONG[millions]
        if "gossip" in kinds:
            found[f"gossip {rho}"] = Ours(millions, comm, steps, {"name": "gossip", "rho": rho})
        if "push" in kinds:
            found[f"push {rho}"] = Push(millions, MPI, steps, rho)
        if "persyn" in kinds:
            found[f"persyn {tau}"] = Ours(millions, comm, steps, {"name": "persyn", "tau": tau})
        if "averager" in kinds:
            found[f"averager {tau}"] = Averager(millions, comm.rank, steps, tau)
    found["sync"] = Ours(millions, comm, least, {"name": "sync"})
    found["ddp"] = Ddp(millions, comm.rank, least)
    return found


def body(arguments: argparse.Namespace) -> None:
    """What each of the two ranks does, for one network; rank 0 prints all costs."""
    (millions,) = arguments.millions
    comm = connect(120.0)
    pin(comm.rank)
    port = comm.gather(20000 + int.from_bytes(os.urandom(2)) % 20000, "agree on a port")[0]
    torch.distributed.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=comm.rank, world_size=comm.size)
    compared = sides(millions, comm, arguments.steps, complete=arguments.complete)
    found: dict[str, list[Cost]] = {name: [] for name in compared}
    for number in range(-1, arguments.rounds):  # the first round warms up
        for name in list(compared) if number % 2 else list(reversed(compared)):
            comm.barrier("start together")
            cost = compared[name].run()
            if number >= 0:
                found[name].append(cost)
    everyone = comm.gather(found, "collect the costs")
    for side in compared.values():
        if isinstance(side, Ours):
            side.exchange.close()
    comm.barrier("end")
    torch.distributed.destroy_process_group()
    steps = {name: side.steps for name, side in compared.items()}
    if comm.rank == 0:
        print(json.dumps({"vendor": comm.vendor, "steps": steps, "found": everyone}))


def report(arguments: argparse.Namespace) -> None:
    """Starts the ranks; the table of what they found."""
    torch.set_num_threads(1)
    load, vendor = os.getloadavg()[0], ""
    lines = [
        "| parameters | strategy | steps a round | ms a step | over alone | CPU time over alone | share inside, % |",
        "|---|---|---|---|---|---|---|",
    ]
    for millions in arguments.millions:
        steps = arguments.steps or STEPS[millions]
        program = [__file__, f"--millions={millions}", f"--rounds={arguments.rounds}", f"--steps={steps}"]
        program += ["--complete"] if arguments.complete else []
        told = on_ranks(2, program, limit_s=300 + arguments.rounds * (1000 + 10 * steps) * 0.1 * millions)
        vendor, ranks = told["vendor"], told["found"]
        both = {name: np.mean([rank[name] for rank in ranks], 0).T for name in ranks[0]}  # of each: one number a round
        for name, (times, cpu, shares) in both.items():
            ratios = f"{ratio(times, both['alone'][0])} | {ratio(cpu, both['alone'][1])}"
            net = shares - both["alone"][2] * both["alone"][0] / times
            inside = "" if np.isnan(net).any() else spread(100 * net)
            lines.append(
                f"| {millions} M | {name} | {told['steps'][name]} | {spread(1e3 * times)} | {ratios} | {inside} |"
            )
            print(lines[-1], flush=True)
    about = f"{vendor}; {arguments.rounds} rounds; load at the start {load:.1f}, at the end {os.getloadavg()[0]:.1f}."
    publish("exchange", "Two ranks, a core each: median [quartiles]", [about, "", *lines])


def main() -> None:
    options = parser(__doc__, 10)
    options.add_argument("--steps", type=int, help="of a side in a round, at least")
    options.add_argument("--millions", type=int, nargs="+", default=[1, 10, 20], choices=WIDTHS)
    options.add_argument("--complete", action="store_true", help="all sides at rho 0.01 for every network")
    arguments = options.parse_args()
    (body if is_rank() else report)(arguments)


if __name__ == "__main__":
    main()
