"""Measure the consensus error of PerSyn and gossip on real ranks: the engine's strategies, with noise for gradients.

    mpiexec -n 8 python experiments/consensus/ranks.py [FILE.yaml]

A step is what it is in training: each rank changes its weights, here by noise, and calls the strategy. The weights have
one block of ``dim`` numbers for each variance, so that one run measures all of them, on one schedule.

- ``ranks.csv``: the ranks pause after every step at which somebody pushes, as they do for a checkpoint, so that all
  messages are mixed before the next step: the same process as in ``run.py``, step by step.
- ``running.csv``: gossip as it is in training. Nobody pauses; every message is mixed when it is found, at the earliest
  after its receiver's next step. The ranks only wait for each other to be measured at one step, and a step takes so
  many seconds that a message has the time that it has in training. ``delays.csv`` says how many steps it took (-1: not
  sent, because the last one was still under way).
"""

import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn

from analysis.experiment import keep, parser
from hpc.comm import connect
from hpc.communicator import Communicator
from hpc.config import yamls
from hpc.config.training import Gossip as GossipSection
from hpc.config.training import PerSyn as PerSynSection
from hpc.exchange import Agenda, Exchange
from hpc.exchange.gossip import Gossip
from hpc.exchange.matrices import Floats, is_due
from hpc.exchange.peers import Draws
from hpc.exchange.persyn import PerSyn
from hpc.exchange.replay import Kind
from hpc.seeding import generator, seed_for

HERE = Path(__file__).parent
DEADLINE_S = 120.0
WAIT_S = 0.0005
PROCESSES = {("gossip", False): 300, ("persyn", False): 400, ("gossip", True): 500}
"""Where the random streams of each begin: the place of rho and the run follow."""


class WhenPushed(Agenda):
    """The ranks pause after the given steps, and after the last."""

    def __init__(self, steps: int, size: int, stops: set[int]) -> None:
        super().__init__(steps, None, size)
        self._stops = sorted(stop * size for stop in stops)

    def resume(self, epoch: int, total: int) -> None:
        """The next of them."""
        super().resume(epoch, total)
        self._saves = next((stop for stop in self._stops if stop > total), None)


def pushes(seed: int, rho: float, steps: int, ranks: int) -> set[int]:
    """The steps after which somebody pushes: every rank can tell what all draw."""
    everyone = [Draws(seed, rank) for rank in range(ranks)]
    return {step for draws in everyone for step in range(1, steps + 1) if draws.at(step)[0] < rho}


class World:
    """One run of one strategy on this rank.

    Args:
        comm: the ranks.
        plan: the file.
        strategy: gossip or persyn.
        place: which rho.
        run: number of the run.
        running: no pauses.
    """

    def __init__(
        self, comm: Communicator, plan: dict[str, Any], strategy: str, place: int, run: int, *, running: bool
    ) -> None:
        self.comm, self.rho, self.steps = comm, plan["rho"][place], plan["steps"][place]
        self.variances: list[float] = plan["variance"]
        stream = (PROCESSES[strategy, running] + place, run)
        self._noise = generator(plan["seed"], "test", *stream, comm.rank)
        self.model = nn.Linear(plan["dim"], len(self.variances), bias=False)
        nn.init.zeros_(self.model.weight)
        optimizer = torch.optim.SGD(self.model.parameters())
        self.stops = {self.steps}
        self.exchange: Exchange
        if strategy == "gossip":
            section = GossipSection(rho=self.rho, consensus_every=None)
            seed = seed_for(plan["seed"], "exchange", *stream)
            if not running:
                self.stops |= pushes(seed, self.rho, self.steps, comm.size)
            agenda = WhenPushed(self.steps, comm.size, self.stops)
            self.exchange = Gossip(comm, self.model, optimizer, section, agenda, seed=seed, deadline_s=DEADLINE_S)
            self.exchange.events = []
        else:  # where tau is no whole number, the strategy is called at the steps at which a mean is due
            tau = round(1 / self.rho)
            self._whole = abs(tau * self.rho - 1) < 1e-9
            agenda = Agenda(self.steps, None, comm.size)
            averages = PerSynSection(tau=tau if self._whole else 1, consensus_every=None)
            self.exchange = PerSyn(comm, self.model, optimizer, averages, agenda, seed=plan["seed"])

    def step(self, step: int) -> None:
        """One step of this rank: noise, and the strategy's part."""
        drawn = self._noise.standard_normal(self.model.weight.shape) * np.sqrt(self.variances)[:, None]
        with torch.no_grad():
            self.model.weight.add_(torch.from_numpy(drawn))
        self.exchange.after_backward()
        if isinstance(self.exchange, Gossip) or self._whole or is_due(step, 1 / self.rho):
            self.exchange.after_step(step)

    def errors(self) -> Floats:
        """Eps / dim of each block of the weights, exactly. Collective."""
        own = self.model.weight.detach().double()
        total = torch.stack([own, own * own])
        self.comm.sum_(total, "measure")
        apart = total[1] - total[0] ** 2 / self.comm.size
        return apart.mean(dim=1).clamp_(min=0.0).numpy()

    def measured(self, every: int, pace_s: float) -> Iterator[tuple[int, Floats]]:
        """Eps / dim after every so many steps; a step takes so many seconds at least (0: the ranks do not wait)."""
        self.exchange.resume(0, 0)
        for step in range(1, self.steps + 1):
            begun = time.monotonic()
            self.step(step)
            if step in self.stops:
                while self.exchange.pause(step, requested=False) is None:  # in training a rank would go on meanwhile
                    time.sleep(WAIT_S)
                self.exchange.quiesce()
            if step % every == 0 and not (pace_s and step in self.stops):  # running ranks have just been stopped
                yield step, self.errors()
            if step in self.stops and step < self.steps:
                self.exchange.resume(0, step)
            if pace_s:
                time.sleep(max(0.0, pace_s - (time.monotonic() - begun)))
                self.comm.barrier("wait for the step's end")
        self.exchange.close()

    def delays(self) -> Counter[int]:
        """How many steps later each message was mixed than it was sent, of all ranks. Collective."""
        assert isinstance(self.exchange, Gossip)
        sent: dict[tuple[int, int], list[int]] = {}
        mixed: dict[tuple[int, int], list[int]] = {}
        step = 0
        for kind, rank, peer, _, _ in self.exchange.events or []:
            if kind == Kind.STEP:
                step += 1
            elif kind == Kind.SEND:
                sent.setdefault((rank, peer), []).append(step)
            else:
                mixed.setdefault((peer, rank), []).append(step)
        logs = self.comm.gather(
            [[[*pair, steps] for pair, steps in log.items()] for log in (sent, mixed)], "gather the delays"
        )
        sends = {(s, r): steps for theirs, _ in logs for s, r, steps in theirs}
        arrivals = {(s, r): steps for _, theirs in logs for s, r, steps in theirs}
        return Counter(
            after - before for pair, steps in sends.items() for before, after in zip(steps, arrivals[pair], strict=True)
        )


def plans(plan: dict[str, Any]) -> Iterator[tuple[int, str, int, bool]]:
    """Every run: its number, strategy, place of its rho, and whether it is running; all of one number together."""
    asked = plan["ranks"]
    for run in range(max(asked["runs"])):
        for strategy, running in PROCESSES:
            for place, rho in enumerate(plan["rho"]):
                if run < asked["runs"][place] and not (running and rho not in asked["running"]):
                    yield run, strategy, place, running


def measure(comm: Communicator, plan: dict[str, Any], out: Path) -> None:
    """All runs, one after the other; rank 0 writes after each."""
    asked = plan["ranks"]
    rows: dict[bool, list[dict[str, Any]]] = {False: [], True: []}
    delays: list[dict[str, Any]] = []
    for run, strategy, place, running in plans(plan):
        begun = time.monotonic()
        world = World(comm, plan, strategy, place, run, running=running)
        facts = {"run": run, "strategy": strategy, "rho": world.rho}
        for step, errors in world.measured(asked["every"][place], asked["pace_s"] if running else 0.0):
            for variance, error in zip(plan["variance"], errors, strict=True):
                rows[running].append({**facts, "variance": variance, "step": step, "error": error})
        if running:
            counts = world.delays()
            counts[-1] = sum(comm.gather(world.exchange.counters.skipped, "count"))
            delays += [{**facts, "delay": delay, "messages": number} for delay, number in sorted(counts.items())]
        if comm.rank == 0:
            kind, seconds = "running" if running else "paused", time.monotonic() - begun
            print(f"run {run}, {strategy}, {kind}, rho {world.rho}: {world.steps} steps, {seconds:.1f} s", flush=True)
            found = {"ranks": rows[False], "running": rows[True], "delays": delays}
            keep({name: pd.DataFrame(each) for name, each in found.items()}, out)


def main() -> None:
    arguments = parser(__doc__, HERE).parse_args()
    plan = yamls.load(arguments.file)
    comm = connect(DEADLINE_S)
    assert comm.size == plan["workers"], f"start {plan['workers']} ranks with mpiexec, not {comm.size}"
    measure(comm, plan, arguments.results)


if __name__ == "__main__":
    main()
