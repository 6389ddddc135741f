"""Worlds of ranks that gossip at random speeds; what must be conserved is looked at whenever they pause.

    mpiexec -n 8 python experiments/gossip_chaos/body.py PLAN.yaml FIRST COUNT

Everything about world number s is drawn from the seed s: its ranks, its configuration, their speeds, when somebody
asks one to stop, where all start again from their states. Several worlds run side by side, as many as fit into
mpiexec's ranks. No gradient moves the weights, so that their weighted mean must stay. Prints one line of JSON a world.
The first violation ends all ranks with code 1, and says which world it was.
"""

import copy
import json
import os
import sys
import tempfile
import time
import traceback
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mpi4py import MPI
from torch import nn

from hpc import exchange
from hpc.communicator import Communicator
from hpc.config import yamls
from hpc.config.root import Config
from hpc.config.training import Compute, Gossip
from hpc.exchange import mass
from hpc.exchange.contents import weights_and_buffers
from hpc.exchange.replay import Kind
from hpc.exchange.slices import slices_of
from hpc.mpi import Mpi
from hpc.seeding import generator

EXACT = 1e-6
"""What the weighted mean may move by, relative to the largest of it, where weights travel as they are."""
ROUNDING = {"float32": 0.0, "bfloat16": 2.0**-8, "int8": 1 / 254}
"""The largest error of a number that travels, relative to the largest number."""
MOMENTUM = 0.9
LOOK_WITHIN = 100_000
"""Weights of a rank up to which the mean is looked at at every pause; else at the ends of epochs."""
MEBI = 1 << 20


def between(draw: np.random.Generator, limits: list[float]) -> float:
    """A number between two limits; by its logarithm where they are far apart."""
    low, high = limits
    return float(np.exp(draw.uniform(np.log(low), np.log(high)))) if high > 20 * low else float(draw.uniform(low, high))


def drawn(plan: dict[str, Any], seed: int) -> dict[str, Any]:
    """The world of a seed."""
    draw = generator(seed, "test", 0)

    def one(key: str) -> Any:
        return plan[key][draw.integers(len(plan[key]))]

    ranks = int(draw.integers(plan["ranks"][0], plan["ranks"][1] + 1))
    epochs = int(draw.integers(plan["epochs"][0], plan["epochs"][1] + 1))
    world = {
        "seed": seed,
        "ranks": ranks,
        "rho": between(draw, plan["rho"]),
        "numbers": int(plan["large"] if draw.random() < 0.05 else between(draw, plan["numbers"])),
        "epochs": epochs,
        "steps": int(between(draw, plan["steps"])),
        "pace_s": between(draw, plan["pace_s"]),
    }
    keys = ("slices", "payload", "peers", "momentum", "progress", "consensus_every", "every", "stall", "restart")
    world.update({key: one(key) for key in keys})
    world["stop_at"] = int(draw.integers(1, world["steps"] * epochs + 1)) if draw.random() < one("request") else None
    world["stop_rank"] = int(draw.integers(ranks))
    world["speeds"] = [float(speed) for speed in draw.uniform(0.1, 1.0, ranks)]  # of a step's mean length
    world["stall_s"] = plan["stall_s"]
    return world


def matrix(world: dict[str, Any], folder: str) -> str:
    """A file with chances that connect all ranks: a ring, and what else is drawn."""
    size = world["ranks"]
    draw = generator(world["seed"], "test", 1)
    chances = draw.random((size, size)) * (draw.random((size, size)) < 0.4)
    order = draw.permutation(size)
    chances[order, np.roll(order, 1)] += 0.1
    np.fill_diagonal(chances, 0.0)
    path = Path(folder) / f"{world['seed']}-{os.getpid()}.txt"
    np.savetxt(path, chances / chances.sum(axis=1, keepdims=True), fmt="%.17g")
    return str(path)


def by_pair(logs: list[list[tuple[int, int, int, int, int]]], asked: Kind) -> dict[tuple[int, int], list[int]]:
    """The masses of all messages from one rank to another, in the order of one kind of events."""
    found: dict[tuple[int, int], list[int]] = defaultdict(list)
    for log in logs:
        for kind, rank, peer, _, moved in log:
            if kind == asked:
                found[(rank, peer) if kind == Kind.SEND else (peer, rank)].append(moved)
    return dict(found)


class Net(nn.Module):
    """Weights in several shapes and layouts, and float buffers."""

    def __init__(self, numbers: int, draw: torch.Generator) -> None:
        super().__init__()
        self.bulk = nn.Linear(max(1, numbers // 3), 3, bias=False)
        self.filters = nn.Conv2d(2, 3, 3).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.norm = nn.BatchNorm1d(5)
        with torch.no_grad():
            for value in weights_and_buffers(self):
                value.copy_(torch.randn(value.shape, generator=draw))


class Life:
    """One rank of one world: how it goes through its steps and pauses."""

    def __init__(self, world: dict[str, Any], comm: Communicator, folder: str, deadline_s: float) -> None:
        self.world, self.comm = world, comm
        self.draw = generator(world["seed"], "test", 2, comm.rank)
        chance = torch.Generator().manual_seed(world["seed"] * 100 + comm.rank)
        self.model = Net(world["numbers"], chance)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.0, momentum=MOMENTUM)
        for parameter in self.model.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=chance)
        keys = ("rho", "peers", "momentum", "payload", "slices", "progress", "consensus_every")
        section = {key: world[key] for key in keys}
        if world["peers"] == "matrix":
            section["matrix"] = matrix(world, folder)
        gossip, compute = Gossip(**section), Compute(deadline_s=deadline_s)
        self.config = Config(seed=world["seed"], exchange=gossip, compute=compute)
        self.shared = generator(world["seed"], "test", 3)  # of what all ranks decide alike
        self.taken = self.epoch = 0
        self.longest = 0.0  # step since the last pause
        self.events: list[tuple[int, int, int, int, int]] = []
        self.seen: Counter[str] = Counter()
        self.worst = {"drain_s": 0.0, "step_s": 0.0, "drain_over_step_s": -np.inf, "error": 0.0, "consensus_error": 0.0}
        self.measured = 0
        self.exchange = self.start(None)
        self.largest = max(comm.gather(self.magnitude(), "find the largest weight"))
        self.before = self.weighted()

    # --- training ------------------------------------------------------------------------------------------

    def start(self, state: Any) -> Any:
        """The exchange of a run that starts, or goes on from what was saved."""
        world = self.world
        agenda = exchange.Agenda(world["steps"], world["every"], world["ranks"])
        made: Any = exchange.build(self.config, self.comm, self.model, self.optimizer, agenda)
        made.events = self.events
        if state is not None:
            made.load_state_dict(json.loads(json.dumps(state)))
        return made

    def step(self) -> None:
        """One step of this rank, at its own speed."""
        begun = time.monotonic()
        world = self.world
        time.sleep(float(self.draw.uniform(0, 2)) * world["pace_s"] * world["speeds"][self.comm.rank])
        if self.draw.random() < world["stall"]:
            time.sleep(world["stall_s"])
        self.optimizer.step()
        self.taken += 1
        self.exchange.after_step(self.taken)
        self.longest = max(self.longest, time.monotonic() - begun)

    def requested(self) -> bool:
        """Is this rank asked to stop? Once in a world."""
        at = self.world["stop_at"]
        mine = self.comm.rank == self.world["stop_rank"] and not self.seen["stop"]
        return at is not None and mine and self.taken >= at

    def live(self) -> dict[str, Any]:
        """All epochs; what was measured."""
        begun = time.monotonic()
        while self.epoch < self.world["epochs"]:
            self.exchange.resume(self.epoch, self.taken)
            why = None
            while why is None:
                self.step()
                why = self.exchange.pause(self.taken, requested=self.requested())
            self.seen[why.value] += 1
            drained = time.monotonic()
            self.exchange.quiesce()
            self.look(time.monotonic() - drained, ended=why is exchange.Pause.EPOCH)
            self.epoch += why is exchange.Pause.EPOCH
            self.measured += len(self.exchange.consensus_errors)
            self.exchange.consensus_errors.clear()
            if why is exchange.Pause.STOP or self.shared.random() < self.world["restart"]:
                self.restart()
        self.exchange.close()
        return self.row(time.monotonic() - begun)

    def restart(self) -> None:
        """What was saved comes back in a new exchange with messages of its own."""
        self.seen["restart"] += 1
        state = copy.deepcopy(self.exchange.state_dict())
        self.exchange.close()
        self.exchange = self.start(state)
        assert self.exchange.state_dict() == state, "the state did not come back"

    # --- what must hold ------------------------------------------------------------------------------------

    def look(self, drain_s: float, *, ended: bool) -> None:
        """Count masses and messages; compare the weighted mean with the one of the start."""
        counters, masses = self.exchange.counters, self.exchange.masses
        own = [masses, counters.sent, counters.received, self.longest, drain_s]
        everyone = self.comm.gather(own, "count masses and messages")
        whole = mass.UNITS * self.comm.size
        for part in range(self.world["slices"]):
            found = [theirs[0][part] for theirs in everyone]
            assert sum(found) == whole, f"masses {found} of slice {part} add up to {sum(found)}, not {whole}"
            assert min(found) >= 1, f"a rank has no mass left in slice {part}: {found}"
        sent, received = (sum(theirs[place] for theirs in everyone) for place in (1, 2))
        assert sent == received, f"{sent} messages were sent, {received} received"
        slowest, drain = (max(theirs[place] for theirs in everyone) for place in (3, 4))
        self.raise_to(step_s=slowest, drain_s=drain, drain_over_step_s=drain - slowest)
        self.longest = 0.0
        if ended or self.before.numel() <= LOOK_WITHIN:
            self.compare()
        if ended:
            self.evaluate()

    def raise_to(self, **found: float) -> None:
        """Keep the worst."""
        for key, value in found.items():
            self.worst[key] = max(self.worst[key], value)

    def magnitude(self) -> float:
        """The largest number of this rank that travels: a weight, or what momentum tends to under equal gradients."""
        values = weights_and_buffers(self.model)
        if self.world["momentum"] == "mix":
            values += [parameter.grad / (1 - MOMENTUM) for parameter in self.model.parameters()]
        return max(float(value.abs().max()) for value in values)

    def parts(self) -> Iterator[tuple[torch.Tensor, float]]:
        """Copies of the weights in float64, slice by slice, alike on all ranks, and each slice's share of mass."""
        values = [value.double() for value in weights_and_buffers(self.model)]
        for part, units in zip(slices_of(values, self.world["slices"]), self.exchange.masses, strict=True):
            yield torch.cat([torch.zeros(0, dtype=torch.float64), *part]), units / (mass.UNITS * self.comm.size)

    def weighted(self) -> torch.Tensor:
        """The mean of all ranks' weights by their masses, in float64. Collective."""
        flat = torch.cat([part.mul_(share) for part, share in self.parts()])
        self.comm.sum_(flat, "add up the weights")
        return flat

    def compare(self) -> None:
        """The weighted mean must be what it was, but for the rounding of what travelled."""
        error = float((self.weighted() - self.before).abs().max() / self.before.abs().max())
        allowed = self.allowed()
        assert error <= allowed, f"the weighted mean moved by {error:.2e} of its largest number, allowed {allowed:.2e}"
        self.raise_to(error=error)

    def allowed(self) -> float:
        """What the mean may move by: each message brings its rounding, in the proportion of its mass. Collective."""
        moved = sum(given for kind, _, _, _, given in self.events if kind == Kind.SEND)
        everyone = self.comm.gather(moved, "add up the mass that was moved")
        rounded = sum(everyone) / (mass.UNITS * self.comm.size) * ROUNDING[self.world["payload"]] * self.largest
        return EXACT + 1.01 * rounded / float(self.before.abs().max())

    def evaluate(self) -> None:
        """Inside consensus, the model is the weighted mean; after, each rank has its own back."""
        whole = self.weighted()
        values = weights_and_buffers(self.model)
        own = [value.clone() for value in values]
        with self.exchange.consensus():
            inside = torch.cat([part for part, _ in self.parts()])
        error = float((inside - whole).abs().max() / whole.abs().max())
        assert error <= EXACT, f"the consensus is {error:.2e} away from the weighted mean"
        assert all(map(torch.equal, values, own)), "the weights did not come back after the consensus"
        self.raise_to(consensus_error=error)

    def row(self, seconds: float) -> dict[str, Any]:
        """What was measured, after the log of exchanges is compared with itself. Collective."""
        logs = self.comm.gather(self.events, "compare what was sent and received")
        pushed, mixed = by_pair(logs, Kind.SEND), by_pair(logs, Kind.RECEIVE)
        assert {pair: sorted(moved) for pair, moved in pushed.items()} == {
            pair: sorted(moved) for pair, moved in mixed.items()
        }, "the log of what was sent is not the log of what was received"
        counters = [vars(self.exchange.counters), self.taken]
        everyone = self.comm.gather(counters, "gather the counters")
        totals = {
            key: sum(theirs[key] for theirs, _ in everyone) for key in ("sent", "received", "skipped", "bytes_sent")
        }
        logged = sum(map(len, pushed.values()))
        assert logged == totals["sent"], f"{logged} messages in the log, {totals['sent']} counted"
        steps = [taken for _, taken in everyone]
        planned = self.world["steps"] * self.world["epochs"] * self.comm.size
        assert sum(steps) >= planned, f"{sum(steps)} steps of {planned}"
        keys = (
            *("seed", "ranks", "rho", "numbers", "slices", "payload", "peers", "momentum", "progress"),
            *("consensus_every", "steps", "epochs", "every", "pace_s", "stall"),
        )
        row = {key: self.world[key] for key in keys}
        for reason in ("save", "epoch", "stop", "restart"):
            row[f"pauses_{reason}" if reason != "restart" else "restarts"] = self.seen[reason]
        row.update(sent=totals["sent"], received=totals["received"], skipped=totals["skipped"])
        row["mebibytes"] = totals["bytes_sent"] / MEBI
        row["steps_made"], row["steps_planned"] = sum(steps), planned
        row["quickest"], row["slowest"] = max(steps), min(steps)
        row["overtaking"] = sum(pushed[pair] != mixed[pair] for pair in pushed)  # pairs of ranks
        row["measured"] = self.measured
        row["allowed"] = self.allowed()
        return {**row, **self.worst, "load": os.getloadavg()[0], "seconds": seconds}


def grouped(plan: dict[str, Any], seeds: range, size: int) -> Iterator[list[dict[str, Any]]]:
    """Worlds that fit side by side into so many ranks, in the order of seeds."""
    group: list[dict[str, Any]] = []
    for seed in seeds:
        world = drawn(plan, seed)
        if group and sum(other["ranks"] for other in group) + world["ranks"] > size:
            yield group
            group = []
        group.append(world)
    if group:
        yield group


def meet(comm: Any) -> None:
    """A barrier at which the ranks that wait leave the cores to the others."""
    request = comm.Ibarrier()
    while not request.Test():
        time.sleep(0.001)


def live(worlds: list[dict[str, Any]], plan: dict[str, Any], folder: str) -> dict[str, Any] | None:
    """This rank's part of one of the worlds; rank 0 of each world returns what was measured. Collective."""
    owners = [place for place, world in enumerate(worlds) for _ in range(world["ranks"])]
    everyone = MPI.COMM_WORLD
    place = owners[everyone.rank] if everyone.rank < len(owners) else None
    part = everyone.Split(MPI.UNDEFINED if place is None else place, everyone.rank)
    row = None
    if place is not None:
        comm = Mpi(MPI, part, plan["deadline_s"])
        try:
            found = Life(worlds[place], comm, folder, plan["deadline_s"]).live()
        except BaseException as error:  # noqa: BLE001 - one rank must end all
            violation = {"seed": worlds[place]["seed"], "rank": comm.rank, "world": worlds[place]}
            violation["violation"] = f"{type(error).__name__}: {error}"
            violation["where"] = traceback.format_exc()
            print(json.dumps(violation), file=sys.stderr, flush=True)
            time.sleep(0.5)  # others may have something to say, too
            everyone.Abort(1)
        row = found if comm.rank == 0 else None
    meet(everyone)
    if place is not None:
        part.Free()
    return row


def main() -> None:
    """The worlds FIRST, FIRST + 1, ... of a plan."""
    file, first, count = sys.argv[1:]
    torch.set_num_threads(1)
    plan = yamls.load(Path(file))
    everyone = MPI.COMM_WORLD
    with tempfile.TemporaryDirectory() as folder:
        for worlds in grouped(plan, range(int(first), int(first) + int(count)), everyone.size):
            if everyone.rank == 0:
                print(f"seeds {[world['seed'] for world in worlds]}", file=sys.stderr, flush=True)
            row = live(worlds, plan, folder)
            if row is not None:
                print(json.dumps(row) + "\n", end="", flush=True)


if __name__ == "__main__":
    main()
