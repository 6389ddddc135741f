"""What a message is: a short header and numbers, in one flat buffer.

The header is ten int64: a mark of the format, the mass, the sender's step, the version of the network's structure, the
slice, the sender, the time of sending, the number of bytes, a checksum of a sample of the payload, and one of the
header itself. A sample, because a checksum of forty megabytes takes as long as a training step of a small network; it
finds a message that was overwritten while it was read, and ranks that hold other networks than they think.
"""

import math
import time
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
import torch

from hpc.errors import RunError
from hpc.flat import copy_all

Bytes = np.ndarray[Any, np.dtype[np.uint8]]
Payload = Literal["float32", "bfloat16", "int8", "float64"]

_MARK: Final = 0x5354_5255_4354_0002  # "STRUCT", version 2
_FIELDS: Final = 10
_HEADER: Final = 128  # the numbers behind it start where a cache line does
_SAMPLED: Final = 256
_BLOCK: Final = 256
"""Numbers that share a scale in int8."""


@dataclass(frozen=True)
class Letter:
    """A header: what came with the weights."""

    mass: int
    step: int
    slice: int
    sent_ns: int
    """When it was packed, on the sender's clock (time.time_ns)."""
    sender: int = 0
    """Its rank."""
    structure: int = 0
    """The version of the network that the weights are of: how often it had been cut."""

    def check(self, structure: int) -> None:
        """Raises RunError where the weights are of another version of the network than this."""
        if self.structure != structure:
            raise RunError(f"a message is of structure {self.structure}, but this rank holds {structure}")


class Envelope:
    """The bytes of a message, in host memory.

    Args:
        room: bytes of the longest payload.
        pinned: let a CUDA device read and write it by itself.
    """

    def __init__(self, room: int, *, pinned: bool = False) -> None:
        whole = torch.empty(_HEADER + room, dtype=torch.uint8, pin_memory=pinned)
        whole.zero_()  # so that its memory is there from the start, not from some later message on
        self.payload = whole[_HEADER:]
        self.bytes = whole.numpy()
        self._header = self.bytes[:_HEADER].view(np.int64)

    @property
    def size(self) -> int:
        """Bytes of the message that has arrived, by its header; the header is among them."""
        return int(self._header[_FIELDS - 3])

    def seal(self, letter: Letter, size: int) -> None:
        """Write the header of a message of so many bytes; the header is among them."""
        fields = (_MARK, letter.mass, letter.step, letter.structure, letter.slice, letter.sender, letter.sent_ns, size)
        self._header[:] = 0
        self._header[: len(fields)] = fields
        self._header[_FIELDS - 2] = self._sample(size)
        self._header[_FIELDS - 1] = zlib.crc32(self._header[: _FIELDS - 1].tobytes())

    def open(self) -> Letter:
        """Read and verify the header of a message that has arrived. Raises RunError."""
        mark, mass, step, structure, part, sender, sent, size, sample, check = (
            int(value) for value in self._header[:_FIELDS]
        )
        if mark != _MARK or check != zlib.crc32(self._header[: _FIELDS - 1].tobytes()):
            raise RunError("a message arrived with a damaged header; the network between the ranks is faulty")
        if not _HEADER <= size <= len(self.bytes):
            raise RunError(f"a message of {size} bytes arrived where at most {len(self.bytes)} were expected")
        if sample != self._sample(size):
            raise RunError("a message arrived with a damaged payload; the network between the ranks is faulty")
        return Letter(mass, step, part, sent, sender, structure)

    def _sample(self, size: int) -> int:
        words = self.bytes[_HEADER:size]
        return zlib.crc32(words[:: max(1, len(words) // _SAMPLED)].tobytes())


def message_size(payload: int) -> int:
    """Bytes of a message whose payload has so many."""
    return _HEADER + payload


class Message:
    """A buffer that holds one message; the sender's, or one of the receiver's.

    On a CUDA device the weights are gathered on the device and cross to pinned memory on a stream of their own.

    Args:
        slices: the views of every slice (see :func:`hpc.exchange.slices.slices_of`), on one device.
        payload: what the numbers travel as.
    """

    def __init__(self, slices: Sequence[Sequence[torch.Tensor]], payload: Payload) -> None:
        self._device = next(view.device for part in slices for view in part)  # a slice may be empty
        cuda = self._device.type == "cuda"
        self._quantised, self._dtype = payload == "int8", getattr(torch, payload)
        most = max(sum(view.numel() for view in part) for part in slices)
        size = math.ceil(most / _BLOCK) * (4 + _BLOCK) if self._quantised else most * self._dtype.itemsize
        self.envelope = Envelope(size, pinned=cuda)
        self._host = self.envelope.payload
        self._staging = torch.empty_like(self._host, device=self._device) if cuda else self._host
        self._stream = torch.cuda.Stream(self._device) if cuda else None
        self._event = torch.cuda.Event() if cuda else None
        self._letter: Letter | None = None
        self.arrived_ns = 0
        """When all of it was here, by this rank's clock, if it is a message that arrived."""
        self.fit(slices)

    def fit(self, slices: Sequence[Sequence[torch.Tensor]]) -> None:
        """From now on hold messages of these slices, none of which is longer than the longest so far.

        What has arrived before, of others, stays there for :meth:`numbers`.
        """
        self._slices = slices
        self._numbers = [sum(view.numel() for view in part) for part in slices]
        most = max(self._numbers)
        if self._quantised:  # gathered and scattered as float32, in a buffer beside the message
            blocks = math.ceil(most / _BLOCK)
            self._plain = torch.zeros(blocks * _BLOCK, device=self._device)
            self._scales, self._small = self._blocks(blocks)
        else:
            self._plain = self._staging[: most * self._dtype.itemsize].view(self._dtype)
        self._views = [_split(self._plain, part) for part in slices]

    @property
    def bytes(self) -> Bytes:
        """All of it, as MPI sees it."""
        return self.envelope.bytes

    def size(self, part: int) -> int:
        """Bytes of the message that carries a slice."""
        if self._quantised:  # scales and numbers lie apart: one length for all slices
            return message_size(self._scales.nbytes + self._small.numel())
        return message_size(self._numbers[part] * self._plain.element_size())

    def pack(self, letter: Letter, base: torch.Tensor | None = None) -> None:
        """Copy a slice of the weights in. On a CUDA device this only queues; see :meth:`ready`.

        Args:
            letter: what goes with them; it says which slice.
            base: flat numbers: the message says how far the first of the weights are from these, and moves these there.
        """
        copy_all(self._views[letter.slice], self._slices[letter.slice])
        if base is not None:
            base.add_(self._plain[: len(base)].sub_(base))
        if self._quantised:
            self._plain[self._numbers[letter.slice] :].zero_()  # a longer slice's rest would coarsen the last block
            self._quantise()
        self._letter = letter
        if self._stream is not None and self._event is not None:
            self._stream.wait_stream(torch.cuda.current_stream(self._device))
            with torch.cuda.stream(self._stream):
                self._host.copy_(self._staging, non_blocking=True)
                self._event.record(self._stream)

    def ready(self) -> bool:
        """Is all of it in host memory? Then the header is closed and it can be sent."""
        if self._event is not None and not self._event.query():
            return False
        if (letter := self._letter) is not None:
            self.envelope.seal(letter, self.size(letter.slice))
            self._letter = None
        return True

    def open(self) -> Letter:
        """Read and verify the header of a message that has arrived. Raises RunError."""
        return self.envelope.open()

    def take(self, part: int) -> list[torch.Tensor]:
        """The numbers that came, on the device of the weights: views in the form of the slice's.

        They are valid until the next message is packed, or arrives.
        """
        self._bring()
        if self._quantised:
            torch.mul(self._small, self._scales[:, None], out=self._plain.view(-1, _BLOCK))
        return self._views[part]

    def numbers(self) -> torch.Tensor:
        """All numbers that came, flat, whatever slices they are of; there may be more of them at the end."""
        self._bring()
        length = self.envelope.size - _HEADER
        if not self._quantised:
            return self._staging[:length].view(self._dtype)
        scales, small = self._blocks(length // (4 + _BLOCK))
        return (small * scales[:, None]).flatten()

    def mix(self, part: int, share: float) -> None:
        """Move the weights towards the message's: ``w <- (1 - share) w + share w_s``."""
        own, came = list(self._slices[part]), self.take(part)
        if not own:  # torch refuses to mix nothing
            return
        with torch.no_grad():
            if all(view.dtype == self._plain.dtype for view in own):
                torch._foreach_lerp_(own, came, share)
            else:
                torch._foreach_mul_(own, 1.0 - share)
                torch._foreach_add_(own, came, alpha=share)

    def reusable(self) -> bool:
        """Has the device read all of it? Then another message may arrive here."""
        return self._event is None or bool(self._event.query())

    def hand_over(self) -> None:
        """Note where the device is: once it has passed this place, the message has been read."""
        if self._event is not None:
            self._event.record()

    def _quantise(self) -> None:
        blocks = self._plain.view(-1, _BLOCK)
        scales = blocks.abs().amax(1).div_(127).clamp_(min=torch.finfo(torch.float32).tiny)
        self._scales.copy_(scales)
        self._small.copy_((blocks / scales[:, None]).round_())

    def _bring(self) -> None:
        """Bring what came to the device of the weights."""
        if self._stream is not None:
            self._staging.copy_(self._host, non_blocking=True)  # on the stream of the steps

    def _blocks(self, blocks: int) -> tuple[torch.Tensor, torch.Tensor]:
        """(scales [blocks], numbers [blocks, _BLOCK]) in a message of so many blocks."""
        small = self._staging[4 * blocks : (4 + _BLOCK) * blocks]
        return self._staging[: 4 * blocks].view(torch.float32), small.view(torch.int8).view(blocks, _BLOCK)


def now_ns() -> int:
    """The time that goes into a letter."""
    return time.time_ns()


def _split(flat: torch.Tensor, like: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    used = flat[: sum(view.numel() for view in like)]
    return list(used.split([view.numel() for view in like]))
