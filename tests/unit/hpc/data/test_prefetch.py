"""The thread that picks ahead: its order, its errors, its end."""

import threading
import time

import pytest
import torch
from torch import Tensor

from hpc.data.prefetch import prefetched


class Slow:
    """Samples that remember what was asked of them."""

    def __init__(self, fail_at: int | None = None) -> None:
        self.asked: list[int] = []
        self.threads: set[threading.Thread] = set()
        self.fail_at = fail_at

    def __len__(self) -> int:
        return 100

    def __getitem__(self, index: Tensor) -> tuple[Tensor, Tensor]:
        if self.fail_at is not None and self.fail_at in index:
            raise OSError(5, "disk failed")
        self.asked.append(int(index[0]))
        self.threads.add(threading.current_thread())
        return index.clone(), index.clone()


CPU = torch.device("cpu")
INDICES = [torch.tensor([i]) for i in range(10)]


def workers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("structlearn-data")]


def test_in_order_in_another_thread() -> None:
    samples = Slow()
    assert [inputs.item() for inputs, _ in prefetched(samples, INDICES, 3, CPU)] == list(range(10))
    assert samples.threads
    assert threading.current_thread() not in samples.threads
    assert not workers()


def test_works_ahead_but_not_further_than_told() -> None:
    samples = Slow()
    batches = prefetched(samples, INDICES, 3, CPU)
    next(batches)
    deadline = time.monotonic() + 10
    while len(samples.asked) < 4 and time.monotonic() < deadline:
        time.sleep(0.001)
    time.sleep(0.02)
    assert samples.asked == [0, 1, 2, 3]
    batches.close()


def test_closing_early_ends_the_thread() -> None:
    batches = prefetched(Slow(), INDICES, 2, CPU)
    next(batches)
    assert workers()
    batches.close()
    assert not workers()


def test_an_error_in_the_consumer_ends_the_thread() -> None:
    def consume() -> None:
        for _ in prefetched(Slow(), INDICES, 2, CPU):
            raise KeyError

    with pytest.raises(KeyError):
        consume()
    assert not workers()


def test_an_error_in_the_thread_comes_in_its_place() -> None:
    got = []
    with pytest.raises(OSError, match="disk failed"):
        got.extend(inputs.item() for inputs, _ in prefetched(Slow(fail_at=4), INDICES, 2, CPU))
    batches = prefetched(Slow(fail_at=4), INDICES, 2, CPU)
    assert [next(batches)[0].item() for _ in range(4)] == [0, 1, 2, 3]
    with pytest.raises(OSError, match="disk failed"):
        next(batches)
    assert not workers()
