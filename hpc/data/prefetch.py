"""Picking samples on the host, in a thread, ahead of the step that needs them."""

from collections import deque
from collections.abc import Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor

from hpc.data.dataset import Samples

Batch = tuple[Tensor, Tensor]


def prefetched(
    samples: Samples, batches: Iterable[Tensor], ahead: int, device: torch.device
) -> Generator[Batch, None, None]:
    """The batches that indices name, made ready by a thread while the caller works on an earlier one.

    An error in the thread is raised here, in the place of its batch. When the generator ends or is closed,
    the thread finishes the batch it is at, and ends before this returns.

    Args:
        samples: where batches come from; only ever used from that one thread.
        batches: 1-D int64 indices, one for each batch.
        ahead: how many batches may be ready or in the making beyond the one handed out.
        device: where batches go next; for a CUDA device they are put into pinned memory, from which copies
            need not be waited for.
    """

    def pick(index: Tensor) -> Batch:
        inputs, targets = samples[index]
        if device.type != "cuda":
            return inputs, targets
        with torch.cuda.device(device):  # a new thread starts on device 0: keep off a device of another rank
            return inputs.pin_memory(), targets.pin_memory()

    waiting: deque[Future[Batch]] = deque()
    with ThreadPoolExecutor(1, thread_name_prefix="structlearn-data") as thread:
        try:
            for index in batches:
                waiting.append(thread.submit(pick, index))
                if len(waiting) > ahead:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
