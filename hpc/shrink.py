"""A run of fewer ranks: what those who are left agree on when others are lost."""

from dataclasses import dataclass, field
from typing import Any

from hpc.exchange import Exchange
from hpc.pruning import Decision, Pruning
from hpc.ulfm import Ulfm


@dataclass(frozen=True)
class Shrunk:
    """Where those who are left go on: alike on all of them, but for their own states."""

    lost: tuple[int, ...]
    """Who is gone, by the numbers that the ranks were started with."""
    epoch: int
    """Epochs that have ended altogether on all."""
    steps: int
    """Steps made by all ranks together, those that are lost among them."""
    exchange: dict[str, Any]
    """This rank's state of the exchange, among those who are left."""
    mass: float
    """The part of the whole mass that was lost: what the lost ranks had, and what was under way."""
    consensus_errors: list[tuple[int, float]]
    """Those that have not been recorded yet."""
    cut: Decision = field(default_factory=Decision)
    """What others have cut and this rank has not, if anything."""


def agree(before: Ulfm, comm: Ulfm, epoch: int, step: int, exchange: Exchange, pruning: Pruning) -> Shrunk:
    """Come to one answer. Collective over those who are left.

    Messages under way are dropped. The steps of those who are lost count as made.

    Args:
        before: all ranks, the lost ones among them.
        comm: those who are left.
        epoch: epochs that have ended altogether on this rank.
        step: the step that the run is at, as far as this rank knows.
        exchange: its part of the exchange among all ranks, at rest.
        pruning: of its network. All ranks hear of a cut before any of them makes it, and meet again when they have made
            it; a loss may come between: some have made it, and those that have not are told.
    """
    own = [epoch, step, exchange.state_dict(), exchange.consensus_errors, pruning.version, pruning.last.as_dict()]
    everyone = comm.gather(own, "agree on how to go on without a lost rank")
    epochs, steps, states, errors, versions, cuts = zip(*everyone, strict=True)
    newest = max(versions)
    state, mass = exchange.survive(states, comm.rank, before.size)
    return Shrunk(
        lost=tuple(sorted(set(before.started) - set(comm.started))),
        epoch=min(epochs),
        steps=max(steps) * before.size,
        exchange=state,
        mass=mass,
        consensus_errors=[(int(at), float(error)) for at, error in errors[0]],
        cut=Decision.from_dict(cuts[versions.index(newest)]) if pruning.version < newest else Decision(),
    )
