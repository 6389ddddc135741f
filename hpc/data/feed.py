"""The engine's view of data: batches on the device, ready for the network.

Samples live on the device as tensors, so that a step only picks rows; or on the host, where a thread picks
ahead of the step. Both give bit-identical batches.
"""

import copy
import os
from collections.abc import Iterable, Iterator
from contextlib import closing
from itertools import repeat
from typing import Literal

import torch
from torch import Tensor

from hpc.config.data import Augment, DataConfig, Images
from hpc.config.sizes import steps_per_epoch
from hpc.data.augment import augment, draw
from hpc.data.dataset import DataSet, Part, PartName
from hpc.data.order import evaluation_share, rank_batches, rank_share
from hpc.data.prefetch import prefetched
from hpc.seeding import generator

Batch = tuple[Tensor, Tensor]
EVALUATION_BATCH = 256


class Feed:
    """Batches of a data set for one rank.

    Inputs are float32 ``(x - mean) / std``, except text, which stays int64; targets are as in ``Part``.
    Zeros of the padding are zeros of the image, before normalisation.

    **Memory.** ``placement: auto`` puts all parts on the device when they take at most a quarter of its free
    memory; on the CPU always, for there the device's memory is the host's. Where augmentation leaves resident
    training inputs alone, they are normalised once and kept as float32 when that takes at most a quarter of
    what is still free: a step is then one ``index_select``. (On the CPU: a quarter of the host's memory
    divided by ``world_size``, for all ranks may share the host, and at most 1 GiB, for a job may be allowed
    less than its host has.) Else every batch is normalised by itself, with the same result, bit for bit.

    Args:
        dataset: the samples.
        config: the section ``data``.
        device: where batches are wanted.
        seed: the master seed.
        rank: this rank, among those that train; None: it does not, and has no share of the samples.
        world_size: number of ranks that train.
        channels_last: give images in torch's channels-last memory format. For images only.

    Attributes:
        steps_per_epoch: batches in an epoch, the same on every rank.

    Raises:
        RunError: there are too few samples for one global batch.
    """

    def __init__(
        self,
        dataset: DataSet,
        config: DataConfig,
        device: torch.device,
        *,
        seed: int,
        rank: int | None,
        world_size: int,
        channels_last: bool = False,
    ) -> None:
        self.steps_per_epoch = steps_per_epoch(len(dataset.train), config.batch_size, world_size)
        self._config, self._device, self._seed = config, device, seed
        self._rank, self._world_size, self._channels_last = rank, world_size, channels_last
        self._augment = config.augment if isinstance(config, Images) and config.augment != Augment() else None
        self._scaled = dataset.task != "sequence"
        self._mean, self._std = dataset.mean.to(device), dataset.std.to(device)
        self._samples = len(dataset.train)
        self._parts: dict[PartName, Part] = {
            "train": dataset.train,
            "valid": dataset.valid,
            "test": dataset.test,
        }
        size = sum(part.nbytes for part in self._parts.values())
        self._resident = config.placement == "device" or (
            config.placement == "auto" and (device.type == "cpu" or size <= _budget(device, world_size))
        )
        self._home = device if self._resident else torch.device("cpu")
        self._parts = {name: part.to(self._home) for name, part in self._parts.items()}
        self._ready = self._normalise_all()

    def among(self, rank: int, world_size: int) -> "Feed":
        """The same samples, shared out among another number of ranks. They are kept once."""
        other = copy.copy(self)
        other._rank, other._world_size = rank, world_size  # noqa: SLF001 - one of this class
        other.steps_per_epoch = steps_per_epoch(self._samples, self._config.batch_size, world_size)
        return other

    def batches(self, step: int) -> Iterator[Batch]:
        """This rank's batches after its first ``step``, epoch after epoch, without end."""
        epoch, start = divmod(step, self.steps_per_epoch)
        while True:
            yield from self.epoch(epoch, start)
            epoch, start = epoch + 1, 0

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """The epoch's training batches from step ``start`` on, each of ``batch_size`` samples.

        Samples, their order and their augmentation depend on seed, epoch, step, rank and the number of ranks
        only: starting at step k gives, bit for bit, what a whole epoch gives from k on.
        """
        assert self._rank is not None, "a rank that does not train has no batches"
        assert 0 <= start <= self.steps_per_epoch, f"step {start} of {self.steps_per_epoch}"
        batch_size = self._config.batch_size
        order = rank_batches(
            self._samples,
            batch_size,
            seed=self._seed,
            epoch=epoch,
            rank=self._rank,
            world_size=self._world_size,
        )
        index = torch.from_numpy(order[start:]).to(self._home)
        if self._ready is not None:
            return self._select(*self._ready, index)
        if self._augment is None:
            return self._batches("train", index, repeat(None))
        chance = generator(self._seed, "augment", epoch)
        changes = draw(self._samples, self._augment.pad, self._augment.flip, chance)
        share = rank_share(changes, batch_size, self._rank, self._world_size)[start:]
        return self._batches("train", index, torch.from_numpy(share).to(self._device))

    def evaluation(self, part: Literal["valid", "test"], *, whole: bool = False) -> Iterator[Batch]:
        """This rank's share of a part in order, unaugmented; every sample is in one rank's share.

        ``whole``: all of the part instead.
        """
        rank, ranks = (0, 1) if whole else (self._rank, self._world_size)
        share = range(0) if rank is None else evaluation_share(len(self._parts[part]), rank, ranks)
        index = torch.arange(share.start, share.stop, device=self._home)
        size = max(self._config.batch_size, EVALUATION_BATCH)
        return self._batches(part, torch.split(index, size) if share else (), repeat(None))

    def some(self) -> Tensor:
        """The inputs of a batch of validation samples, the same on every rank."""
        return next(iter(self.evaluation("valid", whole=True)))[0]

    def _select(self, inputs: Tensor, targets: Tensor, index: Tensor) -> Iterator[Batch]:
        """The whole work of a step where inputs are normalised and on the device."""
        for chosen in index:
            batch = inputs.index_select(0, chosen)
            # Stored (N, H, W, C): seen as (N, C, H, W), that is channels last.
            yield batch.permute(0, 3, 1, 2) if self._channels_last else batch, targets.index_select(0, chosen)

    def _batches(self, part: PartName, index: Iterable[Tensor], changes: Iterable[Tensor | None]) -> Iterator[Batch]:
        """Batches by the general way: pick, bring to the device, augment, normalise."""
        samples = self._parts[part]
        if self._resident:
            for chosen, change in zip(index, changes, strict=False):
                inputs, targets = samples[chosen]
                yield self._finish(inputs, change), targets
            return
        # The copies stay on the stream of the steps: from pinned memory they are short, and need no events.
        with closing(prefetched(samples, index, self._config.prefetch, self._device)) as ahead:
            for (inputs, targets), change in zip(ahead, changes, strict=False):
                moved = inputs.to(self._device, non_blocking=True)
                yield self._finish(moved, change), targets.to(self._device, non_blocking=True)

    def _finish(self, inputs: Tensor, change: Tensor | None) -> Tensor:
        """From stored samples to the network's inputs."""
        if change is not None and self._augment is not None:
            inputs = augment(inputs, self._augment.pad, change)
        if self._scaled:
            inputs = (inputs - self._mean).div_(self._std)
        return inputs.contiguous(memory_format=torch.channels_last) if self._channels_last else inputs

    def _normalise_all(self) -> Batch | None:
        """The training part as ``_select`` wants it; None where it cannot be made ready in advance."""
        if not self._resident or self._augment is not None:
            return None
        part = self._parts["train"]
        if self._scaled and 4 * part.inputs.numel() > _budget(self._device, self._world_size):
            return None
        inputs = self._finish(part.inputs, None)
        del self._parts["train"]  # nothing asks for the stored form any more: free it on the device
        return inputs.permute(0, 2, 3, 1) if self._channels_last else inputs, part.targets


def _budget(device: torch.device, world_size: int) -> int:
    """Bytes of a device's memory that samples may take."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] // 4
    host = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return min(host // 4 // world_size, 1 << 30)
