"""What a method does beside the steps of a run, and what it puts into the record."""

from hpc.communicator import Communicator
from hpc.record import Record


class Watch:
    """A method that has nothing to do beside the steps. Others override what they need."""

    def after_step(self, step: int) -> None:
        """This rank has made so many steps. Nothing here may wait for a device."""

    def after_epoch(self, epoch: int, step: int, comm: Communicator) -> None:
        """Epoch number ``epoch`` (from 1) has been evaluated, and the network is still the consensus. Collective."""

    def record(self, record: Record) -> None:
        """Put what has been seen since the last time into the record: before a checkpoint, and at an epoch's end."""
