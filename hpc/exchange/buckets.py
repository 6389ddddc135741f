"""Gradients that are averaged over ranks in buckets, each as soon as its last gradient is there."""

from collections import deque
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Final

import torch

from hpc.communicator import Communicator, Mean
from hpc.flat import copy_all

# A gradient of so many bytes has a bucket of its own: it travels from where it is. To copy 256 KiB takes 11 us, as long
# as the smallest message (12 us; MPICH 5.0 on shared memory).
ALONE: Final = 2**18

# Messages under way at a time: one is added up while the next arrives. Eight were no faster (VGG19, 2 ranks).
UNDER_WAY: Final = 2

# References to the memory of a gradient that is nobody else's: its own, and that of the question.
_NOBODY_ELSE: Final = 2


@dataclass(eq=False)
class Bucket:
    """Gradients that travel together."""

    places: list[int]
    """Which parameters they belong to."""
    alone: bool = False
    """One gradient that is large enough."""
    what: str = ""
    """The name of its messages."""
    missing: int = 0
    """Gradients of this step that are not there yet."""
    work: torch.Tensor | None = None
    """Where gradients are side by side, on their device; None: the one there is travels from where it is."""
    sent: torch.Tensor | None = None
    """Where MPI finds them: ``work``, or pinned memory of the host where MPI does not take them from their device."""
    views: list[torch.Tensor] = field(default_factory=list)
    """``work`` in the shapes of the parameters."""
    gradients: list[torch.Tensor] = field(default_factory=list)
    """What was taken from the parameters in this step."""
    ready: Any = None
    """The CUDA event that says that they are where MPI finds them."""


def layout(sizes: Sequence[int], limit: int, alone: int) -> list[Bucket]:
    """Buckets in the order in which backward fills them: that of the parameters, reversed.

    A bucket's turn is that of its last gradient. Were it that of the first, the biases of all layers, packed together,
    would hold up every weight. The last packed one is the very last and is always there, if empty.

    Args:
        sizes: bytes of each parameter's gradient.
        limit: bytes of gradients that are packed together.
        alone: bytes from which on a gradient has a bucket of its own.
    """
    buckets: list[Bucket] = []
    packed, filled = Bucket([]), 0
    for place in reversed(range(len(sizes))):
        if sizes[place] >= alone:
            buckets.append(Bucket([place], alone=True))
            continue
        if packed.places and filled + sizes[place] > limit:
            packed, filled = Bucket([]), 0
        if packed.places:
            buckets.remove(packed)
        packed.places.append(place)
        filled += sizes[place]
        buckets.append(packed)
    return [bucket for bucket in buckets if bucket is not packed] + [packed]


def _shared(gradient: torch.Tensor) -> bool:
    """Does anything else use the memory of a gradient?

    autograd may give two parameters gradients in one memory: those of a and b are that where a + b is used and both
    came there through views (torch 2.13). Written to in place, the second would travel with what the first has become.
    """
    return int(torch._C._storage_Use_Count(gradient.untyped_storage()._cdata)) > _NOBODY_ELSE  # noqa: SLF001


class Buckets:
    """The gradients of one network on this rank, on their way to become means over all ranks.

    Every rank sends the same buckets in the same order, whatever the order in which its gradients come: one that is
    there before its turn waits. The order is fixed. To take rank 0's of the first step instead, as torch's DDP does, is
    worth a collective only where modules are registered in another order than they are used in; ours are not.

    A parameter loses its ``grad`` when its bucket leaves, so that autograd never adds to values that MPI is reading. If
    more comes for it afterwards (a second call of ``backward``, a reentrant checkpoint), autograd makes a new one. The
    last bucket leaves only when backward is over, and has one element for the question whether that has happened on
    any rank; if so, what came late is averaged in a second round and added.

    Copies: on the CPU, autograd hands over the memory that a large gradient was computed in; MPI averages it right
    there, and it is the parameter's gradient again. Small ones are copied into a bucket, and become views of it. Views
    from the start (DDP's ``gradient_as_bucket_view``) move more: autograd adds to a gradient that is there, so that the
    bucket is set to zero, read and written again.

    On a CUDA device, gradients are put side by side on a second stream, and cross to pinned memory; ``backward`` goes
    on meanwhile. They come back the same way, and the next kernels wait for them. Where MPI takes memory of the device
    nothing crosses, and the copies are those on the CPU.

    Args:
        comm: the ranks.
        parameters: what has gradients, all on one device; the same on every rank.
        limit: bytes of a message.
        payload: what gradients travel as. float32 becomes float64 where one of them is.
    """

    def __init__(
        self, comm: Communicator, parameters: Sequence[torch.Tensor], limit: int, payload: torch.dtype
    ) -> None:
        if payload == torch.float32 and any(parameter.dtype == torch.float64 for parameter in parameters):
            payload = torch.float64
        self._comm, self._parameters, self._payload = comm, list(parameters), payload
        self._same_kind = all(parameter.dtype == payload for parameter in parameters)
        self._device = parameters[0].device if parameters else torch.device("cpu")
        self._direct = comm.takes(self._device)
        self._side = torch.cuda.Stream(self._device) if self._device.type == "cuda" else None
        self._like = [torch.empty_like(parameter, device="meta") for parameter in parameters]
        sizes = [like.numel() * payload.itemsize for like in self._like]
        self.nbytes = sum(sizes)
        """Bytes of all gradients on their way."""
        self._piece = max(1, limit // payload.itemsize)
        self._buckets = layout(sizes, limit, ALONE)
        self._bucket: dict[int, Bucket] = {}
        for number, bucket in enumerate(self._buckets, 1):
            bucket.what = f"average gradients (bucket {number} of {len(self._buckets)})"
            self._bucket.update(dict.fromkeys(bucket.places, bucket))
            self._lay_out(bucket)
        self._waiting: deque[tuple[Bucket, torch.Tensor]] = deque()
        self._under_way: deque[Mean] = deque()
        self._restart()

    def _lay_out(self, bucket: Bucket) -> None:
        """Give a bucket its memory, where it needs any."""
        like = [self._like[place] for place in bucket.places]
        if bucket.alone and self._direct and like[0].dtype == self._payload:
            return
        count = sum(each.numel() for each in like) + (bucket is self._buckets[-1])  # and the question
        bucket.work = torch.zeros(count, dtype=self._payload, device=self._device)
        bucket.sent = bucket.work
        if not self._direct:
            bucket.sent = torch.zeros(count, dtype=self._payload, pin_memory=self._side is not None)
        start = 0
        for each in like:
            bucket.views.append(bucket.work.as_strided(each.shape, each.stride(), start))
            start += each.numel()

    def _restart(self) -> None:
        self._there = [False] * len(self._parameters)
        for bucket in self._buckets:
            bucket.missing, bucket.gradients = len(bucket.places), []
        self._turn = 0

    # --- while backward runs ---------------------------------------------------------------------------

    def arrived(self, place: int) -> None:
        """The gradient of a parameter is there, or was added to. Whatever can leave leaves; what is under way moves."""
        if not self._there[place]:
            self._there[place] = True
            self._bucket[place].missing -= 1
            while self._turn < len(self._buckets) - 1 and not self._buckets[self._turn].missing:
                self._leave()
        self._move()

    def _leave(self) -> None:
        """Put the bucket whose turn it is on its way."""
        bucket = self._buckets[self._turn]
        self._turn += 1
        bucket.gradients = [self._take(place) for place in bucket.places]
        if bucket.sent is None:
            (gradient,) = bucket.gradients
            values = gradient.as_strided((gradient.numel(),), (1,))
            if self._side is not None:
                bucket.ready = torch.cuda.current_stream(self._device).record_event()
        else:
            self._pack(bucket)
            values = bucket.sent
        self._waiting.extend((bucket, piece) for piece in values.split(self._piece))

    def _take(self, place: int) -> torch.Tensor:
        """A parameter's gradient, laid out as on every rank; zeros where it took no part."""
        parameter, like = self._parameters[place], self._like[place]
        gradient, parameter.grad = parameter.grad, None
        if gradient is None:
            return torch.zeros_like(parameter)
        gradient = gradient.detach()
        if gradient.layout != like.layout or gradient.stride() != like.stride():
            return torch.empty_like(parameter).copy_(gradient.to_dense())
        written = self._bucket[place].sent is None or not self._same_kind
        return gradient.clone(memory_format=torch.preserve_format) if written and _shared(gradient) else gradient

    def _pack(self, bucket: Bucket) -> None:
        """Copy gradients into their bucket, on a CUDA device without waiting for it."""
        assert bucket.work is not None
        assert bucket.sent is not None
        if self._side is not None:
            self._side.wait_stream(torch.cuda.current_stream(self._device))
        with self._beside():
            copy_all(bucket.views, bucket.gradients)
            if bucket.sent is not bucket.work:
                bucket.sent.copy_(bucket.work, non_blocking=True)
        if self._side is not None:
            bucket.ready = self._side.record_event()

    def _beside(self) -> AbstractContextManager[object]:
        """Inside, kernels go to the second stream, where there is one."""
        return nullcontext() if self._side is None else torch.cuda.stream(self._side)

    def _move(self) -> None:
        """Ask MPI to go on (nobody else does), and start the next messages."""
        for mean in list(self._under_way):
            if mean.done():
                self._under_way.remove(mean)
        while self._waiting and len(self._under_way) < UNDER_WAY:
            bucket, values = self._waiting[0]
            if bucket.ready is not None and not bucket.ready.query():
                return
            self._waiting.popleft()
            self._under_way.append(self._comm.start_mean(values, bucket.what))

    # --- when it is over -------------------------------------------------------------------------------

    def finish(self) -> int:
        """Wait for all buckets: every parameter's ``grad`` is the mean over ranks. Collective.

        Returns:
            How often gradients went round: once, or twice where some came late on any rank.
        """
        late = any(self._parameters[place].grad is not None for place in self._gone())
        means, rounds = self._round(late=late), 1
        if self._anybody_late():
            means, rounds = [mean.clone(memory_format=torch.preserve_format) for mean in means], 2
            self._restart()
            for mean, more in zip(means, self._round(late=False), strict=True):
                mean.add_(more)
        for parameter, mean in zip(self._parameters, means, strict=True):
            parameter.grad = mean
        self._restart()
        return rounds

    def _gone(self) -> list[int]:
        """The parameters whose gradients have left."""
        return [place for bucket in self._buckets[: self._turn] for place in bucket.places]

    def _anybody_late(self) -> bool:
        """What the ranks said with the last bucket."""
        (*_, last) = self._buckets
        assert last.sent is not None
        return bool(last.sent[-1] > 0)

    def _round(self, *, late: bool) -> list[torch.Tensor]:
        """Send what has not left yet, and wait for everything: the means, by parameter."""
        (*_, last) = self._buckets
        assert last.work is not None
        last.work[-1] = float(late)
        while self._turn < len(self._buckets):
            self._leave()
        self._move()
        while self._waiting or self._under_way:
            if self._under_way:
                self._under_way.popleft().wait()
            else:
                self._waiting[0][0].ready.synchronize()
            self._move()
        means = {place: mean for bucket in self._buckets for place, mean in self._unpack(bucket)}
        if self._side is not None:
            torch.cuda.current_stream(self._device).wait_stream(self._side)
        return [means[place] for place in range(len(self._parameters))]

    def _unpack(self, bucket: Bucket) -> Iterable[tuple[int, torch.Tensor]]:
        """(place, mean) of a bucket's parameters: what travelled itself, views of the bucket, or copies of those."""
        if bucket.work is None or bucket.sent is None:
            return zip(bucket.places, bucket.gradients, strict=True)
        with self._beside():
            if bucket.sent is not bucket.work:
                bucket.work.copy_(bucket.sent, non_blocking=True)
            if self._same_kind:
                return zip(bucket.places, bucket.views, strict=True)
            copy_all(bucket.gradients, bucket.views)
            return zip(bucket.places, bucket.gradients, strict=True)
