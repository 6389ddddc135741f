"""Samples a second of four ranks of which one is slowed four times, against what each does alone.

    python benchmarks/straggler.py [--rounds 5] [--device_ms 20] [--slower 4]

A step is 20 ms asleep, and then forward, backward and update of a perceptron of 1 million parameters with 16 samples:
some milliseconds on the CPU. The last rank sleeps so long that its whole step takes four times as long. The sleep
stands for the time on a device of the rank's own, which its host only waits for: four ranks cannot compute at full
speed on two cores, but they can wait. What the exchange costs the host is real; what it would cost a device (copies to
it and from it) is not here. Any rank may run on any core. Threads: one a rank, and gossip's.

In each round, one after the other, the order alternating:

- ``alone``: each rank by itself for some seconds, the other three asleep; the sum of the four rates. Nothing else
  can be had of these ranks, so ratios are to this sum, in the same round;
- ``together``: all four at the same time, without any exchange: what sharing two cores costs them;
- ``none``, ``gossip``, ``persyn``, ``sync``: our strategies, each with the engine's question whether to pause after
  every step.

*Within an epoch*: for gossip and together, the sum of the ranks' rates in the first nine tenths of the time until
the first of them pauses; for those that go in step, all samples until the last rank's last step. *With its end*: all
samples of the epoch until every rank has come to rest (for gossip: all messages have come, and are mixed). An epoch is
200 steps a rank for gossip, fewer for the others, whose rates do not depend on it; a longer one has the same end.
"""

import argparse
import json
import os
import statistics
import time
from bisect import bisect
from itertools import pairwise
from typing import Any

import torch
from measure import is_rank, on_ranks, parser, pin, publish, ratio, spread
from trainer import Trainer

from hpc import exchange
from hpc.comm import connect
from hpc.communicator import Communicator
from hpc.config.read import validate
from hpc.exchange import Agenda

RANKS, MILLIONS, BATCH = 4, 1, 16
ALONE_S, TOGETHER_S = 1.5, 4.0
STRATEGIES: dict[str, tuple[int, dict[str, Any]]] = {
    "none": (40, {"name": "none"}),
    "gossip 0.01": (200, {"name": "gossip", "rho": 0.01}),
    "gossip 0.1": (200, {"name": "gossip", "rho": 0.1}),
    "persyn 10": (50, {"name": "persyn", "tau": 10}),
    "persyn 100": (100, {"name": "persyn", "tau": 100}),
    "sync": (40, {"name": "sync"}),
}
OWN_PACE = ("together", "gossip 0.01", "gossip 0.1")
Clock = dict[str, Any]
"""Of one rank: when it started, its steps ended, and it came to rest; on the clock that all processes share."""


class Worker(Trainer):
    """A network, and how long its device takes."""

    def __init__(self, rank: int, device_s: float) -> None:
        super().__init__(MILLIONS, rank, BATCH)
        self.device_s = device_s

    def compute(self) -> None:
        """Forward and backward, after the device."""
        time.sleep(self.device_s)
        self.backward()

    def train(self, seconds: float) -> Clock:
        """Train without any exchange."""
        start, ends = time.perf_counter(), []
        while time.perf_counter() < start + seconds:
            self.compute()
            self.update()
            ends.append(time.perf_counter())
        return {"start": start, "ends": ends, "rest": ends[-1]}


class Strategy(Worker):
    """The same under one of our strategies, in epochs."""

    def __init__(self, comm: Communicator, device_s: float, steps: int, section: dict[str, Any]) -> None:
        super().__init__(comm.rank, device_s)
        agenda = Agenda(steps, None, comm.size)
        self.exchange = exchange.build(validate({"exchange": section}), comm, self.model, self.optimizer, agenda)
        self._epoch = 0

    def run(self) -> Clock:
        """One epoch."""
        self.exchange.resume(self._epoch, self.step)
        self._epoch += 1
        counters = self.exchange.counters
        sent, skipped = counters.sent, counters.skipped
        start, ends, pause = time.perf_counter(), [], None
        while pause is None:
            self.compute()
            self.exchange.after_backward()
            self.update()
            self.exchange.after_step(self.step)
            ends.append(time.perf_counter())
            pause = self.exchange.pause(self.step, requested=False)
        self.exchange.quiesce()
        moved = {"sent": counters.sent - sent, "skipped": counters.skipped - skipped}
        return {"start": start, "ends": ends, "rest": time.perf_counter(), **moved}


def alone(comm: Communicator, worker: Worker) -> Clock:
    """Each rank in its turn, while the others sleep: a rank that waits for others would be busy."""
    mine: Clock = {}
    for rank in range(comm.size):
        comm.barrier("take turns")
        if rank == comm.rank:
            mine = worker.train(ALONE_S)
        else:
            time.sleep(ALONE_S + 0.1)
    return mine


def rate(clock: Clock, until: float = float("inf")) -> float:
    """Samples a second of one rank, from its first step to its last before some time."""
    ends = clock["ends"][: bisect(clock["ends"], until)]
    return BATCH * (len(ends) - 1) / (ends[-1] - ends[0])


def within(name: str, clocks: list[Clock]) -> float:
    """Samples a second of all ranks while an epoch lasts."""
    if name == "alone":
        return sum(rate(clock) for clock in clocks)
    start = min(clock["start"] for clock in clocks)
    if name in OWN_PACE:
        until = start + 0.9 * (min(clock["ends"][-1] for clock in clocks) - start)
        return sum(rate(clock, until) for clock in clocks)
    return BATCH * sum(len(clock["ends"]) for clock in clocks) / (max(clock["ends"][-1] for clock in clocks) - start)


def whole(clocks: list[Clock]) -> float:
    """Samples a second of all ranks until all of them rest."""
    seconds = max(clock["rest"] for clock in clocks) - min(clock["start"] for clock in clocks)
    return BATCH * sum(len(clock["ends"]) for clock in clocks) / seconds


def body(arguments: argparse.Namespace) -> None:
    """What each rank does; rank 0 prints what all of them found."""
    comm = connect(120.0)
    pin(None)
    device_s = arguments.device_ms / 1e3
    worker = Worker(comm.rank, device_s)
    for _ in range(2):  # the first time warms up
        ends = worker.train(1.0)["ends"]
    if comm.rank == comm.size - 1:
        host_s = statistics.median(late - early for early, late in pairwise(ends)) - device_s
        device_s = worker.device_s = arguments.slower * (device_s + host_s) - host_s
    built = {name: Strategy(comm, device_s, steps, section) for name, (steps, section) in STRATEGIES.items()}
    sides = {
        "alone": lambda: alone(comm, worker),
        "together": lambda: worker.train(TOGETHER_S),
        **{name: strategy.run for name, strategy in built.items()},
    }
    found: dict[str, list[list[Clock]]] = {name: [] for name in sides}
    for number in range(arguments.rounds):
        for name in list(sides) if number % 2 == 0 else list(reversed(sides)):
            comm.barrier("start together")
            found[name].append(comm.gather(sides[name](), "collect the times"))
    for strategy in built.values():
        strategy.exchange.close()
    if comm.rank == 0:
        print(json.dumps({"vendor": comm.vendor, "found": found}))


def report(arguments: argparse.Namespace) -> None:
    """Starts the ranks; the table of what they found."""
    torch.set_num_threads(1)
    before = os.getloadavg()[0]
    program = [__file__, "--rounds", str(arguments.rounds)]
    program += ["--device_ms", str(arguments.device_ms), "--slower", str(arguments.slower)]
    told = on_ranks(RANKS, program, limit_s=120 + arguments.rounds * 150)
    found = told["found"]
    inside = {name: [within(name, clocks) for clocks in rounds] for name, rounds in found.items()}
    cores, device, slower = len(os.sched_getaffinity(0)), arguments.device_ms, arguments.slower
    load = f"load at the start {before:.1f}, at the end {os.getloadavg()[0]:.1f}"
    lines = [
        f"{told['vendor']}; {RANKS} ranks on {cores} cores; {arguments.rounds} rounds; {load}.",
        f"A step: {device:g} ms asleep, which stand for a device of its own, and the host's work on a network of",
        f"{MILLIONS} million parameters with {BATCH} samples; {slower:g} times as long on the last rank.",
        "",
        "| | in an epoch, samples/s | over alone | over together | with its end | over alone | sent, skipped |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, measured in found.items():
        ends, over, moved = "", "", ""
        if name in STRATEGIES:
            values = [whole(clocks) for clocks in measured]
            ends, over = spread(values), ratio(values, inside["alone"])
        if "gossip" in name:
            counts = [sum(clock[key] for clocks in measured for clock in clocks) for key in ("sent", "skipped")]
            moved = f"{counts[0]}, {counts[1]}"
        against = [ratio(inside[name], inside[side]) for side in ("alone", "together")]
        lines.append(f"| {name} | {spread(inside[name])} | {' | '.join(against)} | {ends} | {over} | {moved} |")
    single = [[rate(clock) for clock in clocks] for clocks in found["alone"]]
    lines += ["", "Each alone, samples/s: " + "; ".join(spread(rank) for rank in zip(*single, strict=True)) + "."]
    publish("straggler", f"{RANKS} ranks, one {arguments.slower:g} times slower: median [quartiles]", lines)


def main() -> None:
    options = parser(__doc__, 5)
    options.add_argument("--device_ms", type=float, default=20.0)
    options.add_argument("--slower", type=float, default=4.0)
    arguments = options.parse_args()
    (body if is_rank() else report)(arguments)


if __name__ == "__main__":
    main()
