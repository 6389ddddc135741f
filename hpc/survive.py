"""A run goes on without ranks that are lost (``compute.fault_tolerance: shrink``).

Who notices a loss leaves the loop with what it holds, and takes care that all others notice it, too. Those who are
left meet, come to one answer on where they are, and build what knows the ranks anew among themselves, as a run does
that is resumed with another number of ranks; but each goes on from its own network. What they have decided is applied
when all of them have agreed that they know it: one more may be lost meanwhile, and then they begin again.
"""

import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from hpc.engine import Engine, Parts
from hpc.errors import RankTimeoutError
from hpc.lock import alone_in
from hpc.output import say
from hpc.progress import Shown
from hpc.shrink import Shrunk, agree
from hpc.summary import summarise
from hpc.ulfm import Ulfm


class Survival:
    """One run on this rank, whoever else is lost.

    Args:
        engine: this rank's.
        among: builds the parts of a run among fewer ranks. Collective over them.
    """

    def __init__(self, engine: Engine, among: Callable[[Parts, Ulfm], Parts]) -> None:
        self._engine, self._among = engine, among
        self._lock = ExitStack()
        self._gone: list[object] = []
        """What talked to the ranks that were lost: MPI may still read and write messages that were under way."""

    def attempt(self, shown: Shown) -> dict[str, Any] | None:
        """Train; what the run ends with, or nothing where a rank was lost. All who are left are answered alike."""
        comm = self._engine.parts.comm
        summary = None
        try:
            summary = summarise(self._engine, self._engine.run(shown))
        except Exception as error:
            if not (isinstance(comm, Ulfm) and comm.lost(error)):
                raise
            comm.revoke()
        return summary if comm.agree("end the run", fine=summary is not None) else None

    def shrink(self) -> None:
        """Bring the engine among the ranks that are left. Collective over them."""
        began, engine = time.monotonic(), self._engine
        comm, exchange = engine.parts.comm, engine.parts.exchange
        assert isinstance(comm, Ulfm)
        exchange.let_go()
        self._gone.append(exchange)
        decided = None
        while decided is None:
            decided = self._decide(comm)
            if not comm.agree("go on without a lost rank", fine=decided is not None):
                decided = None
        parts, shrunk = decided
        engine.go_on(parts, shrunk, began)
        if parts.comm.rank == 0:
            say(f"structlearn: {_told(engine, shrunk)}", sys.stderr)

    def close(self) -> None:
        """The run is over: let its folder go."""
        self._lock.close()

    def _decide(self, before: Ulfm) -> tuple[Parts, Shrunk] | None:
        """What is there among those who are left, and what they agree on; nothing where one more was lost."""
        engine, comm = self._engine, None
        try:
            comm = _less(before)
            if comm.started[0] != 0:  # the rank is gone that held the folder
                self._lock.close()
                self._lock.enter_context(alone_in(Path(engine.parts.config.run_dir), comm))
            exchange = engine.parts.exchange
            shrunk = agree(before, comm, engine.ended, exchange.made(engine.taken), exchange, engine.parts.pruning)
            return self._among(engine.parts, comm), shrunk
        except Exception as error:
            if not before.lost(error):
                raise
            if comm is not None:
                comm.revoke()
            return None


def _less(before: Ulfm) -> Ulfm:
    comm = before.shrink()
    if comm.size == before.size:
        raise RankTimeoutError("messages between the ranks fail, though all of them are there")
    return comm


def _told(engine: Engine, shrunk: Shrunk) -> str:
    ranks = " and ".join(str(rank) for rank in shrunk.lost)
    many = len(shrunk.lost) > 1
    return (
        f"rank{'s' if many else ''} {ranks} {'are' if many else 'is'} lost, and {100 * shrunk.mass:.1f} % of the mass; "
        f"{engine.parts.comm.size} rank(s) go on at epoch {engine.place.epoch}, step {engine.place.step}"
    )
