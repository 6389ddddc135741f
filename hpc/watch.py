"""What a method does beside the steps of a run, and what it puts into the record."""

from collections.abc import Iterator
from contextlib import contextmanager

from hpc.communicator import Communicator
from hpc.record import Record


class Watch:
    """A method that has nothing to do beside the steps. Others override what they need."""

    def after_step(self, step: int) -> None:
        """This rank has made so many steps. Nothing here may wait for a device."""

    @contextmanager
    def consensus(self, comm: Communicator) -> Iterator[None]:
        """Inside, the network is the consensus: also in what is no weight. Collective."""
        yield

    def after_epoch(self, epoch: int, step: int) -> None:
        """Epoch number ``epoch`` (from 1) has been evaluated, and the network is still the consensus."""

    def record(self, record: Record) -> None:
        """Put what has been seen since the last time into the record: before a checkpoint, and at an epoch's end."""
