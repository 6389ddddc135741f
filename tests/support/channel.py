"""Ranks as threads of this process, with messages between them that take their time, as MPI's may.

What MPI promises is kept, and no more: messages of one pair of ranks arrive in order, those of different pairs in any;
a send may end when it is made or only when it is received; a collective ends at another moment on each rank. What MPI
demands is demanded: one thread at a time, the same collectives in the same order on all ranks, no buffer written while
it is under way.
"""

import random
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from hpc.alone import Alone

PATIENCE_S = 120.0


class World:
    """Where ranks meet.

    Args:
        size: number of ranks.
        seed: of the delays.
        delay_s: longest time that a message or a collective takes.
        eager: the share of sends that end at once.
    """

    def __init__(self, size: int, seed: int = 0, delay_s: float = 0.0, eager: float = 0.5) -> None:
        self.size, self.delay_s, self.eager = size, delay_s, eager
        self.chance = random.Random(seed)
        self.lock = threading.RLock()
        self.slots: list[Any] = [None] * size
        self.barrier = threading.Barrier(size, timeout=PATIENCE_S)
        self.networks: list[Network] = []
        self.held: set[tuple[int, int]] = set()
        """Pairs (from, to) whose messages stay under way."""

    def later(self) -> float:
        return time.monotonic() + self.chance.uniform(0, self.delay_s)

    def left(self) -> tuple[int, int]:
        """(messages that never arrived, receives that nobody gave up), of all channels."""
        flying = sum(len(queue) for network in self.networks for queue in network.flying.values())
        return flying, sum(len(queue) for network in self.networks for queue in network.posted)


class Network:
    """What is under way between the ranks of one channel."""

    def __init__(self, world: World) -> None:
        self.world = world
        ranks = range(world.size)
        self.flying: dict[tuple[int, int], deque[Send]] = {(a, b): deque() for a in ranks for b in ranks}
        self.posted: list[deque[Receive]] = [deque() for _ in ranks]
        self.gatherings: list[Gathering] = []

    def deliver(self, to: int) -> None:
        """Bring what has had its time to the receives of a rank."""
        sources = [source for source in range(self.world.size) if (source, to) not in self.world.held]
        self.world.chance.shuffle(sources)
        for source in sources:
            queue = self.flying[source, to]
            while queue and self.posted[to] and queue[0].at <= time.monotonic():
                self.posted[to].popleft().take(queue.popleft())


class Send:
    def __init__(self, network: Network, buffer: np.ndarray, source: int, to: int) -> None:
        self.network, self.buffer, self.source, self.to = network, buffer, source, to
        self.content = buffer.tobytes()
        self.at = network.world.later()
        self.eager = network.world.chance.random() < network.world.eager
        self.over = False

    def done(self) -> bool:
        with self.network.world.lock:
            self.network.deliver(self.to)
            if not self.over and not self.eager:
                assert self.buffer.tobytes() == self.content, "a message was written while it was under way"
            return self.over or self.eager


class Receive:
    def __init__(self, network: Network, buffer: np.ndarray, rank: int) -> None:
        self.network, self.buffer, self.rank = network, buffer, rank
        self.over = False
        self.source: int | None = None

    def take(self, message: Send) -> None:
        size = len(message.content)
        assert size <= len(self.buffer), f"a message of {size} bytes came to a buffer of {len(self.buffer)}"
        self.buffer[:size] = np.frombuffer(message.content, np.uint8)
        self.over = message.over = True
        self.source = message.source

    def done(self) -> bool:
        with self.network.world.lock:
            self.network.deliver(self.rank)
            return self.over

    def sender(self) -> int | None:
        return self.source  # here, a message comes at once or not at all

    def cancel(self) -> None:
        with self.network.world.lock:
            assert not self.over, "a message that has come cannot be given up"
            self.network.posted[self.rank].remove(self)


class Gathering:
    """One collective: what each rank gave."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.given: dict[int, np.ndarray] = {}


class Part:
    """A rank's part of a collective."""

    def __init__(self, world: World, gathering: Gathering, rank: int, into: np.ndarray | None) -> None:
        self.world, self.gathering, self.rank, self.into = world, gathering, rank, into
        self.at = world.later()
        self.over = False

    def done(self) -> bool:
        with self.world.lock:
            given = self.gathering.given
            if not self.over and len(given) == self.world.size and self.at <= time.monotonic():
                self.over = True
                total = sum(given[rank] for rank in sorted(given))
                if self.into is not None:
                    self.into[:] = total if self.gathering.kind == "sum" else total[self.rank]
            return self.over


class Channel:
    """One rank's door to a network."""

    def __init__(self, network: Network, rank: int) -> None:
        self.network, self.rank, self.collectives = network, rank, 0
        self.inside = threading.Lock()

    def _alone(self, call: Callable[[], Any]) -> Any:
        assert self.inside.acquire(blocking=False), "two threads at once"
        try:
            with self.network.world.lock:
                return call()
        finally:
            self.inside.release()

    def send(self, message: np.ndarray, to: int) -> Send:
        def call() -> Send:
            assert to != self.rank, "a message to itself"
            flight = Send(self.network, message, self.rank, to)
            self.network.flying[self.rank, to].append(flight)
            return flight

        return self._alone(call)

    def receive(self, into: np.ndarray) -> Receive:
        def call() -> Receive:
            flight = Receive(self.network, into, self.rank)
            self.network.posted[self.rank].append(flight)
            return flight

        return self._alone(call)

    def _gather(self, kind: str, given: np.ndarray, into: np.ndarray | None) -> Part:
        def call() -> Part:
            if self.collectives == len(self.network.gatherings):
                self.network.gatherings.append(Gathering(kind))
            gathering = self.network.gatherings[self.collectives]
            self.collectives += 1
            assert gathering.kind == kind, f"one rank calls {gathering.kind}, another {kind}"
            gathering.given[self.rank] = given.copy()
            return Part(self.network.world, gathering, self.rank, into)

        return self._alone(call)

    def sum_(self, values: np.ndarray) -> Part:
        return self._gather("sum", values, values)

    def expect(self, sent: np.ndarray, expected: np.ndarray) -> Part:
        return self._gather("expect", sent, expected)

    def barrier(self) -> Part:
        return self._gather("barrier", np.zeros(1), None)


class Rank(Alone):
    """The communicator of one rank among several."""

    def __init__(self, world: World, rank: int) -> None:
        self.world, self.rank, self.size = world, rank, world.size
        self.channels = 0

    def _share(self, value: Any, what: str) -> list[Any]:
        self.world.slots[self.rank] = (value, what)
        self.world.barrier.wait()
        found = list(self.world.slots)
        self.world.barrier.wait()
        assert len({name for _, name in found}) == 1, found
        return [each for each, _ in found]

    def sum_(self, values: torch.Tensor, what: str) -> None:
        values.copy_(torch.stack(self._share(values.clone(), what)).sum(0))

    def gather(self, value: Any, what: str) -> list[Any]:
        return self._share(value, what)

    def barrier(self, what: str) -> None:
        self._share(None, what)

    def channel(self) -> Any:
        with self.world.lock:
            if self.channels == len(self.world.networks):
                self.world.networks.append(Network(self.world))
            network = self.world.networks[self.channels]
        self.channels += 1
        return Channel(network, self.rank)


def together(world: World, body: Callable[[Rank], Any]) -> list[Any]:
    """What a body returns on each rank of a world. The first error that is not another's echo is raised."""
    results: list[Any] = [None] * world.size
    errors: list[BaseException] = []

    def run(rank: int) -> None:
        try:
            results[rank] = body(Rank(world, rank))
        except BaseException as error:  # noqa: BLE001 - it is raised below
            errors.append(error)
            world.barrier.abort()

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(world.size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for error in sorted(errors, key=lambda error: isinstance(error, threading.BrokenBarrierError)):
        raise error
    return results
