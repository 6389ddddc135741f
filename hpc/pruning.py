"""How the network of a run changes its structure while it is trained: the contract, and a network that does not."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.optim import Optimizer

from hpc.evaluate import Score
from hpc.exchange import Exchange
from hpc.record import Record
from structlearn.structure import Plan


@dataclass(frozen=True)
class Decision:
    """A cut as plain data: rank 0 decides, and all ranks do what it has decided."""

    plan: Plan = field(default_factory=Plan)
    """Which units stay."""
    shifts: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    """What is added to biases and running means before: what the units that go still contribute, if it is absorbed."""

    def as_dict(self) -> dict[str, Any]:
        """Plain values, as JSON can hold them."""
        return {"plan": self.plan.as_dict(), "shifts": {name: list(values) for name, values in self.shifts.items()}}

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> "Decision":
        """Take back what :meth:`as_dict` gave."""
        shifts = {name: tuple(numbers) for name, numbers in values["shifts"].items()}
        return Decision(Plan.from_dict(values["plan"]), shifts)


class Pruning:
    """A network that keeps its structure. One that does not overrides all of this."""

    factor = 1.0
    """Of the learning rate, beside the schedule's."""
    done = False
    """Has the method ended the run?"""
    version = 0
    """How often the network has been cut."""
    last = Decision()
    """The last cut."""
    phase = ""
    """That the last epoch was trained in: ``pruning`` or ``fine_tuning``; empty where the structure is kept."""
    best: dict[str, torch.Tensor] | None = None
    """The run's answer if it ended now, as a state_dict on the host, where that is not the network as it is."""
    best_epoch = 0
    """The epoch that it is of; 0: there is none."""

    def regularise(self) -> None:
        """Gradients are there, and the same on all ranks in step; the optimiser has not stepped yet."""

    def after_step(self, optimizer: Optimizer) -> None:
        """The optimiser has made a step. Nothing here may wait for a device."""

    def cut(self, epoch: int, exchange: Exchange, optimizer: Optimizer) -> bool:
        """At the end of an epoch (from 1), cut this rank's network as all others do. Has it changed? Collective.

        Everything is at rest, and each rank has its own network back after it.
        """
        return False

    def follow(self, decision: Decision, exchange: Exchange, optimizer: Optimizer) -> None:
        """Cut the network as has been decided. No rank waits for another in it."""
        raise AssertionError("this network keeps its structure")

    def after_epoch(self, epoch: int, valid: Score) -> None:
        """The network that all ranks stand for has been evaluated, and this rank still holds it."""

    def record(self, record: Record) -> None:
        """Put the epoch that has ended into the record."""

    def line(self) -> str:
        """What the line of the epoch that has ended says of it; nothing where nothing has changed."""
        return ""

    def outlook(self, epochs: int) -> list[str]:
        """Sentences about a run of so many epochs, before it begins, that the user should read."""
        return []

    def news(self, ended_by: str) -> list[str]:
        """Sentences about the epoch that has ended that the user should read.

        Args:
            ended_by: why the run has ended with it; empty where it goes on.
        """
        return []

    def state_dict(self) -> dict[str, Any]:
        """What is carried from epoch to epoch: the same on all ranks."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what :meth:`state_dict` gave; the network has the structure already."""

    def restore(self, state: dict[str, Any], exchange: Exchange, optimizer: Optimizer) -> None:
        """Give the network, as it was built, the structure of when :meth:`state_dict` gave this; take the rest back."""
