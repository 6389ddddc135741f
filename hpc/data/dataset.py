"""What a data set is, once it is in memory."""

import zlib
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

Task = Literal["classification", "regression", "sequence"]
PartName = Literal["train", "valid", "test"]


class Samples(Protocol):
    """All that feeding from the host asks of samples: how many there are, and some of them by index.

    ``Part`` is one; samples that stay on disk (a packed ImageNet) are to be another.
    """

    def __len__(self) -> int:
        """How many samples there are."""

    def __getitem__(self, index: Tensor, /) -> tuple[Tensor, Tensor]:
        """Inputs and targets, on the host, of the samples that a 1-D int64 tensor names, in its order."""


@dataclass(frozen=True, eq=False)
class Part:
    """Samples that are in memory.

    Attributes:
        inputs: (N, ...): images uint8 (N, C, H, W), rows float32 (N, F), text int64 (N, T).
        targets: classes int64 (N,), regression float32 (N, D), text int64 (N, T): each character's next.
    """

    inputs: Tensor
    targets: Tensor

    def __post_init__(self) -> None:
        assert len(self.inputs) == len(self.targets), "inputs and targets are of different lengths"

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, index: Tensor) -> tuple[Tensor, Tensor]:
        return self.inputs.index_select(0, index), self.targets.index_select(0, index)

    def at(self, index: Tensor) -> "Part":
        """The part that an index picks out of this one."""
        return Part(*self[index])

    def to(self, device: torch.device) -> "Part":
        """The same samples on a device; on their own device, the very same tensors."""
        return Part(self.inputs.to(device), self.targets.to(device))

    @property
    def nbytes(self) -> int:
        """The memory the samples take."""
        return self.inputs.nbytes + self.targets.nbytes


@dataclass(frozen=True, eq=False)
class Source:
    """What a reader found: the samples as they are published, before any split.

    Attributes:
        train: the published training samples; all samples where there is no ``test``.
        valid: published validation samples; None: to be held out from ``train``.
        test: published test samples; None: to be held out from ``train``.
        labels: names of the outputs: of the classes, the regression's targets, or the characters.
    """

    train: Part
    valid: Part | None
    test: Part | None
    labels: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class DataSet:
    """A data set, split, with what a network needs to know about it.

    Attributes:
        name: its name in the configuration.
        task: what is learned; it decides the loss.
        train: samples to train on.
        valid: samples held out from training; empty where the run has no validation.
        test: samples for the final test.
        input_shape: shape of one sample: (C, H, W), (F,) or (T,).
        outputs: how many outputs a network needs: classes, regression targets, or characters.
        mean: float32, taken from inputs before ``std`` divides them: (C, 1, 1), (F,), or a 0 for text. From
            the training samples; 0 where ``normalize`` is none.
        std: float32, of the same shape; 1 where an input is constant or ``normalize`` is none.
        labels: names of the outputs.
    """

    name: str
    task: Task
    train: Part
    valid: Part
    test: Part
    input_shape: tuple[int, ...]
    outputs: int
    mean: Tensor
    std: Tensor
    labels: tuple[str, ...]

    @property
    def answers(self) -> int:
        """Of how many answers the loss of all training samples is a mean: of a text, one for each character."""
        return self.train.targets.numel() if self.task == "sequence" else len(self.train)

    def about(self) -> dict[str, Any]:
        """What whoever uses the trained network has to know, as plain values; without the samples."""
        return {
            "name": self.name,
            "task": self.task,
            "input_shape": list(self.input_shape),
            "outputs": self.outputs,
            "mean": self.mean.tolist(),
            "std": self.std.tolist(),
            "labels": list(self.labels),
        }

    def fingerprint(self) -> str:
        """Eight hexadecimal digits that change with any sample, with their order, and with the split."""
        digest = 0
        for part in (self.train, self.valid, self.test):
            for values in (part.inputs, part.targets):
                digest = zlib.crc32(str((values.dtype, tuple(values.shape))).encode(), digest)
                digest = zlib.crc32(values.contiguous().view(-1).view(torch.uint8).numpy().data, digest)
        return f"{digest:08x}"
