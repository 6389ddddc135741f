"""Workers and a master in one process, and the same events played again with numpy alone."""

import importlib.util
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from hpc.exchange.agenda import Agenda, Pause
from hpc.exchange.contents import float_buffers

_spec = importlib.util.spec_from_file_location("channel", Path(__file__).parent / "channel.py")
assert _spec is not None
assert _spec.loader is not None
channel = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(channel)

DEADLINE_S = 120.0


class Net(nn.Module):
    """Weights, and statistics."""

    def __init__(self, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        self.first = nn.Linear(3, 4, dtype=dtype)
        self.norm = nn.BatchNorm1d(4, dtype=dtype)
        self.last = nn.Linear(4, 2, dtype=dtype)


def net(seed: int, dtype: torch.dtype = torch.float64) -> Net:
    model, chance = Net(dtype), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in [*model.parameters(), *float_buffers(model)]:
            value.copy_(torch.rand(value.shape, generator=chance, dtype=torch.float64) + 0.5)
    return model


def weights(model: nn.Module) -> np.ndarray:
    return torch.cat([value.detach().flatten() for value in model.parameters()]).double().numpy()


def statistics(model: nn.Module) -> np.ndarray:
    return torch.cat([value.detach().flatten() for value in float_buffers(model)]).double().numpy()


def numbers(model: nn.Module) -> np.ndarray:
    return np.concatenate([weights(model), statistics(model)])


def update(rank: int, step: int, size: int) -> np.ndarray:
    """What a rank adds to its weights in a step."""
    return np.random.default_rng([rank, step]).normal(size=size)


def make_step(model: nn.Module, rank: int, step: int, scale: float = 1.0) -> None:
    change = torch.from_numpy(scale * update(rank, step, len(weights(model))))
    with torch.no_grad():
        for value in model.parameters():
            value.add_(change[: value.numel()].view(value.shape))
            change = change[value.numel() :]


def speak(comm: Any) -> Any:
    """A rank that can broadcast, too."""
    comm.broadcast_ = lambda values, what, root=0: values.copy_(comm._share(values.clone(), what)[root])
    return comm


@dataclass
class Ended:
    """What stands on one rank at the end."""

    model: nn.Module
    strategy: Any
    steps: int
    pauses: int


def train(
    strategy: Any,
    model: nn.Module,
    *,
    epochs: int,
    scale: float = 1.0,
    slow: float = 0.0,
    measure: Callable[[nn.Module, int], None] = lambda _model, _rank: None,
) -> Ended:
    """A life as the engine leads it, but for the network: ranks resume, train and quiesce until the epochs are over."""
    comm, steps, pauses, epoch = strategy.comm, 0, 0, 0
    chance = np.random.default_rng(comm.rank)
    while epoch < epochs:
        strategy.resume(epoch, steps)
        pause = None
        while pause is None:
            if getattr(strategy, "trains", True):
                steps += 1
                make_step(model, comm.rank, steps, scale)
                measure(model, comm.rank)
                time.sleep(float(chance.uniform(0, slow)))
                strategy.after_step(steps)
            else:
                strategy.attend()
            pause = strategy.pause(steps, requested=False)
        strategy.quiesce()
        pauses += 1
        epoch += pause is Pause.EPOCH
    strategy.close()
    return Ended(model, strategy, steps, pauses)


def many(size: int, build: Any, seed: int = 0, *, workers: int | None = None, epochs: int = 2, **how: Any) -> list[Any]:
    """Ranks with a master through messages that take their time. ``build``: (comm, model, agenda) -> strategy."""
    world = channel.World(size, seed, delay_s=0.003)

    def body(comm: Any) -> Ended:
        model = net(100 * seed + comm.rank)
        strategy = build(speak(comm), model, Agenda(20, 7, workers or size))
        strategy.events = []
        if comm.rank == 0:
            record_requests(strategy)
        return train(strategy, model, epochs=epochs, **({"slow": 0.004} | how))

    ended = channel.together(world, body)
    assert world.left() == (0, 0), "something is still under way"
    return ended


def record_requests(strategy: Any) -> None:
    opened = strategy._open

    def with_record() -> Any:
        star = opened()
        star.desk.events = []
        return star

    strategy._open = with_record


class Replay:
    """The events of a run, in the order that they had, with numpy.

    Args:
        start: what each rank started with, (ranks, numbers).
        weights: how many of them are weights.
        served: (worker, step) of each request, in the master's order.
        logs: (ask or take, step) of each worker.
        steps: how many steps each rank made.
    """

    def __init__(
        self,
        start: np.ndarray,
        weights: int,
        served: list[tuple[int, int]],
        logs: list[list[tuple[str, int]]],
        steps: list[int],
        scale: float = 1.0,
    ) -> None:
        self.w, self.centre, self.base = start.copy(), start[0].copy(), start[:, :weights].copy()
        self.size, self.scale, self.steps = weights, scale, steps
        self._made = [0] * len(start)
        self._logs = [deque(log) for log in logs]
        self._requests: dict[int, np.ndarray] = {}
        self._answers: dict[int, np.ndarray] = {}
        for worker, step in served:
            self._go_on(worker, step)
            self._answers[worker] = self.answer(self._requests.pop(worker))
        for worker in range(len(start)):
            self._go_on(worker, None)
            self._make(worker, steps[worker])
        assert not self._requests
        assert not self._answers

    def _make(self, worker: int, until: int) -> None:
        for step in range(self._made[worker] + 1, until + 1):
            self.w[worker, : self.size] += self.scale * update(worker, step, self.size)
        self._made[worker] = until

    def _go_on(self, worker: int, asked: int | None) -> None:
        while self._logs[worker]:
            what, step = self._logs[worker].popleft()
            self._make(worker, step)
            if what == "take":
                self.take(worker, self._answers.pop(worker))
            else:
                self._requests[worker] = self.ask(worker)
                if step == asked:
                    return
        assert asked is None, "the master answered what nobody asked"

    def ask(self, worker: int) -> np.ndarray:
        raise NotImplementedError

    def answer(self, request: np.ndarray) -> np.ndarray:
        raise NotImplementedError

    def take(self, worker: int, answer: np.ndarray) -> None:
        raise NotImplementedError


def one_at_a_time(size: int, build: Any, schedule: list[int], *, own: bool = False) -> list[tuple[Ended, np.ndarray]]:
    """Ticks of a universal clock: in each one worker makes a step, asks if it is time, and takes the answer at once."""
    world, turn = channel.World(size, eager=1.0), [0]

    def body(comm: Any) -> Ended:
        model = net(comm.rank)
        strategy = build(speak(comm), model, Agenda(10**6, None, size - own))
        strategy.resume(0, 0)
        steps = 0
        until = time.monotonic() + DEADLINE_S
        for tick, awake in enumerate(schedule):
            if awake + own == comm.rank:
                steps += 1
                make_step(model, comm.rank, steps)
                strategy.after_step(steps)
                while not strategy._traffic.free():
                    strategy._traffic.pump()
                    strategy._mix()
                    assert time.monotonic() < until
                turn[0] = tick + 1
            while turn[0] <= tick:
                strategy._traffic.pump()
                assert time.monotonic() < until, "the tick does not end"
        return Ended(model, strategy, steps, 0)

    return channel.together(world, body)
