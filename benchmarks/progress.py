"""How long a gossip message takes while every rank computes in long stretches, and what memory a slow rank costs.

    python benchmarks/progress.py [--rounds 3] [--stretches 22] [--memory 40] [--ranks 2]

Runs on both transports of the MPI library of this Python: what it takes on one machine, and TCP.

**Delivery.** Each rank, on a core of its own, holds a network of 10 million parameters (40 MB) under gossip with rho 1.
It multiplies matrices for one second without calling the exchange, then calls it once, as after a step: it mixes what
has come, and pushes. A delivery is the time from the push (before the weights are packed) until the whole message is
in the receiver's memory, ready to be mixed; it is mixed when the receiver's stretch ends, and that time is reported
beside it. ``thread`` and ``inline`` take turns in the same processes; before each turn rank r waits for some part of a
stretch, another one each time, so that the ranks' calls meet in all ways. Messages that have not come when a turn ends
are left out: with ``inline`` these are the late ones. The last column is what the exchange's thread takes from the
computation: matrix products in a stretch, over those with ``inline`` in the same round.

A rank that another tenant of the machine keeps from its core computes nothing for a while. Where a rank has made no
product for 40 ms (a copy of a whole message takes 10 to 15), it was stopped; deliveries during which a rank was stopped
are in all numbers but one, the p99 apart from them.

**Memory.** All ranks push after each stretch of 20 ms, but the last rank's stretches take 200 ms. It cannot take what
is sent to it; the others skip a push while their last one is under way. The resident memory of each rank is read after
each stretch. Growth: the median of the last quarter less that of the first, the first tenth left out.
"""

import argparse
import json
import os
import time
from typing import Any

import numpy as np
import psutil
import torch
from measure import TRANSPORTS, is_rank, loopback, on_ranks, parser, pin, publish, spread
from trainer import Trainer

from hpc import exchange
from hpc.comm import connect
from hpc.communicator import Communicator
from hpc.config.read import validate
from hpc.exchange import Agenda
from hpc.exchange.gossip import Gossip

MILLIONS = 10
STRETCH_S, SHORT_S, SLOWER = 1.0, 0.02, 10
STOPPED_S = 0.04
MODES = ("thread", "inline")


class Work:
    """Products of matrices, about 2 ms each."""

    def __init__(self) -> None:
        self._left, self._right, self._out = torch.randn(3, 384, 384)
        self.stops: list[tuple[int, int]] = []
        """When this rank was kept from its core (``time.time_ns``)."""

    def __call__(self, seconds: float) -> int:
        """Compute for so long; how many products that was."""
        done, before = 0, time.time_ns()
        end = before + int(seconds * 1e9)
        while before < end:
            torch.mm(self._left, self._right, out=self._out)
            done += 1
            now = time.time_ns()
            if now - before > STOPPED_S * 1e9:
                self.stops.append((before, now))
            before = now
        return done


class Rank:
    """One rank's network under gossip; it computes, and does not train."""

    def __init__(self, comm: Communicator, mode: str, work: Work) -> None:
        trainer = Trainer(MILLIONS, comm.rank, 1)
        config = validate({"exchange": {"name": "gossip", "rho": 1.0, "progress": mode}})
        built = exchange.build(config, comm, trainer.model, trainer.optimizer, Agenda(10**9, None, comm.size))
        assert isinstance(built, Gossip)
        self.gossip, self._comm, self._work, self._step = built, comm, work, 0
        self.message = 4 * sum(parameter.numel() for parameter in trainer.model.parameters())
        self.memory: list[tuple[float, int]] = []

    def turn(self, stretch: float, *, least: int, seconds: float, wait: float) -> dict[str, Any]:
        """Compute and push until some rank has made so many stretches and so many seconds have passed."""
        gossip, process = self.gossip, psutil.Process()
        gossip.deliveries = []
        gossip.pause(self._step, requested=False)  # the last turn's wish to stop is over
        gossip.resume(0, self._step)
        self._comm.barrier("start together")
        skipped, sent, products, first = gossip.counters.skipped, gossip.counters.sent, [], self._step
        stops = len(self._work.stops)
        time.sleep(wait)
        start = time.perf_counter()
        while True:
            products.append(self._work(stretch))
            self._step += 1
            gossip.after_step(self._step)
            passed = time.perf_counter() - start
            self.memory.append((passed, process.memory_info().rss))
            over = self._step - first >= least and passed >= seconds
            if gossip.pause(self._step, requested=over) is not None:
                break
        deliveries = gossip.deliveries  # before the ranks wait for each other, and do nothing but receive
        gossip.deliveries = None
        gossip.quiesce()
        return {
            "deliveries": deliveries,
            "stops": self._work.stops[stops:],
            "sent": gossip.counters.sent - sent,
            "skipped": gossip.counters.skipped - skipped,
            "products": float(np.mean(products)),
        }


def growth(memory: list[tuple[float, int]]) -> dict[str, float]:
    """Of samples (second, bytes): MB at first, how many more at last, and the widest span; without the first tenth."""
    times, sizes = np.array([row for row in memory if row[0] > memory[-1][0] / 10]).T
    sizes, quarter = sizes / 1e6, (times[-1] - times[0]) / 4
    first, last = np.median(sizes[times < times[0] + quarter]), np.median(sizes[times > times[-1] - quarter])
    return {"first": float(first), "growth": float(last - first), "span": float(np.ptp(sizes)), "samples": len(sizes)}


def body(arguments: argparse.Namespace) -> None:
    """What each rank does; rank 0 prints what all of them found."""
    comm = connect(120.0)
    pin(comm.rank)
    work, found = Work(), {}
    modes = {mode: Rank(comm, mode, work) for mode in MODES}
    bytes_before = loopback()
    turns: dict[str, list[dict[str, Any]]] = {mode: [] for mode in MODES}
    for number in range(-1, arguments.rounds):  # the first round touches all memory
        for mode, rank in modes.items():
            least = 3 if number < 0 else max(1, arguments.stretches // (1 if mode == "thread" else 3))
            wait = STRETCH_S * (number + 0.5) / arguments.rounds * comm.rank % STRETCH_S if number >= 0 else 0.0
            done = rank.turn(STRETCH_S, least=least, seconds=0.0, wait=wait)
            turns[mode] += [done] if number >= 0 else []
    sent = sum(rank.gossip.counters.bytes_sent for rank in modes.values())
    totals = comm.gather([sent, loopback() - bytes_before], "add up what was sent")
    found["over loopback"] = totals[0][1] / sum(total[0] for total in totals)
    found["message"], found["vendor"] = modes["thread"].message, comm.vendor
    found["turns"] = comm.gather(turns, "collect the times")
    for rank in modes.values():
        rank.gossip.close()

    slow = comm.rank == comm.size - 1
    rank = Rank(comm, "thread", work)
    done = rank.turn(SHORT_S * SLOWER if slow else SHORT_S, least=0, seconds=arguments.memory, wait=0.0)
    rank.gossip.close()
    mine = growth(rank.memory) | {key: done[key] for key in ("sent", "skipped")} | {"received": len(done["deliveries"])}
    found["memory"] = comm.gather(mine, "collect the memory")
    if comm.rank == 0:
        print(json.dumps(found))


def delivery(transport: str, found: dict[str, Any]) -> list[str]:
    """The rows of one transport's deliveries."""
    rows = []
    inline = [turn["products"] for rank in found["turns"] for turn in rank["inline"]]
    for mode in MODES:
        turns = [turn for rank in found["turns"] for turn in rank[mode]]
        sent_ns, came_ns, mixed_ns = np.array([row for turn in turns for row in turn["deliveries"]]).T
        came, mixed = (came_ns - sent_ns) / 1e6, (mixed_ns - sent_ns) / 1e6
        stops = np.array([row for turn in turns for row in turn["stops"]]).reshape(-1, 2)
        apart = came[~((stops[:, :1] < came_ns) & (stops[:, 1:] > sent_ns)).any(0)]
        work = [turn["products"] / other for turn, other in zip(turns, inline, strict=True)]
        middle, late = (f"{np.quantile(mixed, part, method='higher'):.0f}" for part in (0.5, 0.99))
        sent, skipped = (sum(turn[key] for turn in turns) for key in ("sent", "skipped"))
        half, most = (f"{np.quantile(came, part, method='higher'):.1f}" for part in (0.5, 0.99))
        calm = f"{np.quantile(apart, 0.99, method='higher'):.1f} ({len(apart)})" if len(apart) else ""
        rows.append(
            f"| {transport} | {mode} | {len(came)} of {sent} | {half} | {most} | {calm} | {came.max():.1f} | "
            f"{middle}, {late} | {skipped} | {spread(work) if mode == 'thread' else ''} |"
        )
    return rows


def report(arguments: argparse.Namespace) -> None:
    """Starts the ranks; the table of what they found."""
    torch.set_num_threads(1)
    load = os.getloadavg()[0]
    program = [__file__, "--rounds", str(arguments.rounds), "--stretches", str(arguments.stretches)]
    program += ["--memory", str(arguments.memory)]
    limit = 300 + 4 * arguments.rounds * arguments.stretches * STRETCH_S + 4 * arguments.memory
    found = {name: on_ranks(arguments.ranks, program, limit_s=limit, transport=name) for name in TRANSPORTS}
    assert found["TCP"]["over loopback"] > 0.9, "the messages do not go over TCP"
    vendor, message = found["TCP"]["vendor"], found["TCP"]["message"] / 1e6
    over = ", ".join(f"{name} {run['over loopback']:.2f}" for name, run in found.items())
    lines = [
        f"{vendor}; {arguments.ranks} ranks, a core each; messages of {message:.1f} MB; stretches of {STRETCH_S:g} s.",
        f"{arguments.rounds} rounds; load at the start {load:.1f}, at the end {os.getloadavg()[0]:.1f}.",
        f"Bytes over the loopback device for each byte sent: {over}.",
        "",
        "Delivery while all ranks compute, ms from the push:",
        "",
        "| transport | mode | delivered | p50 | p99 | p99 apart (of) | most | mixed p50, p99 | skipped | over inline |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, run in found.items():
        lines += delivery(name, run)
    lines += [
        "",
        f"Memory with one rank {SLOWER} times slower, {arguments.memory:g} s, MB resident:",
        "",
        "| transport | rank | pushes | skipped | received | first quarter | growth | in messages | widest span |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, run in found.items():
        for number, rank in enumerate(run["memory"]):
            who = f"{number}, slow" if number == arguments.ranks - 1 else f"{number}"
            lines.append(
                f"| {name} | {who} | {rank['sent']} | {rank['skipped']} | {rank['received']} | {rank['first']:.1f} | "
                f"{rank['growth']:+.2f} | {rank['growth'] / message:+.3f} | {rank['span']:.2f} |"
            )
    library = "openmpi" if "Open MPI" in vendor else "mpich"
    publish(f"progress-{library}", "Progress of gossip messages while all ranks compute", lines)


def main() -> None:
    options = parser(__doc__, 3)
    options.add_argument(
        "--stretches", type=int, default=22, help="of a turn with the thread; inline has a third of them"
    )
    options.add_argument("--memory", type=float, default=40.0, help="seconds with a slow rank")
    options.add_argument("--ranks", type=int, default=2, help="each wants a core of its own")
    arguments = options.parse_args()
    (body if is_rank() else report)(arguments)


if __name__ == "__main__":
    main()
