"""The engine's view of data: the same batches by every way that leads to them."""

import threading
from collections.abc import Iterable, Iterator
from typing import Any

import pytest
import torch

from hpc.config.data import Augment, DataConfig, ImageFiles, Tabular, TextFiles
from hpc.data import feed as module
from hpc.data.augment import augment, draw
from hpc.data.dataset import DataSet, Part
from hpc.data.feed import Batch, Feed
from hpc.data.order import rank_batches
from hpc.errors import RunError
from hpc.seeding import generator

CPU = torch.device("cpu")
NOISE = torch.Generator().manual_seed(0)


def images(count: int) -> Part:
    return Part(
        torch.randint(0, 256, (count, 3, 8, 6), dtype=torch.uint8, generator=NOISE),
        torch.randint(0, 10, (count,), generator=NOISE),
    )


IMAGES = DataSet(
    name="cifar10",
    task="classification",
    train=images(50),
    valid=images(700),
    test=images(3),
    input_shape=(3, 8, 6),
    outputs=10,
    mean=torch.tensor([100.3, 120.1, 90.7]).view(3, 1, 1),
    std=torch.tensor([61.3, 60.9, 59.3]).view(3, 1, 1),
    labels=tuple("0123456789"),
)
AUGMENTED = Augment(pad=2, flip=True)


def config(**keys: Any) -> ImageFiles:
    return ImageFiles(name="cifar10", batch_size=8, **keys)


def feed(
    settings: DataConfig | None = None,
    rank: int = 0,
    world_size: int = 1,
    dataset: DataSet = IMAGES,
    **keys: Any,
) -> Feed:
    return Feed(dataset, settings or config(), CPU, seed=5, rank=rank, world_size=world_size, **keys)


def same(left: Iterable[Batch], right: Iterable[Batch]) -> None:
    left, right = list(left), list(right)
    assert len(left) == len(right)
    for (x, y), (u, v) in zip(left, right, strict=True):
        assert x.dtype == u.dtype
        assert torch.equal(x, u)
        assert torch.equal(y, v)


def expected(epoch: int, changed: bool) -> Iterator[Batch]:
    """What an epoch is, written down step by step."""
    order = torch.from_numpy(rank_batches(50, 8, seed=5, epoch=epoch, rank=0, world_size=1))
    changes = torch.from_numpy(draw(50, 2, True, generator(5, "augment", epoch)))
    for step, index in enumerate(order):
        x = IMAGES.train.inputs[index]
        if changed:
            x = augment(x, 2, changes[8 * step : 8 * step + 8])
        yield (x.float() - IMAGES.mean) / IMAGES.std, IMAGES.train.targets[index]


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("change", [Augment(), AUGMENTED, Augment(pad=1), Augment(flip=True)])
def test_every_way_gives_the_same_batches(
    change: Augment, channels_last: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = config(augment=change)
    resident = feed(settings, channels_last=channels_last)
    host = feed(config(augment=change, placement="host", prefetch=3), channels_last=channels_last)
    assert (resident._ready is not None) == (change == Augment())
    assert host._ready is None
    monkeypatch.setattr(module, "_budget", lambda *_: 0)
    scarce = feed(settings, channels_last=channels_last)
    assert scarce._ready is None
    for epoch in (0, 3):
        full = list(resident.epoch(epoch))
        same(full, host.epoch(epoch))
        same(full, scarce.epoch(epoch))
        if change in {Augment(), AUGMENTED}:
            same(full, expected(epoch, changed=change == AUGMENTED))
        for way in (resident, host, scarce):
            same(full[4:], way.epoch(epoch, start=4))
            assert not list(way.epoch(epoch, start=6))
            for x, _ in way.epoch(epoch):
                assert x.is_contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
    same(resident.evaluation("valid"), host.evaluation("valid"))


@pytest.mark.parametrize("change", [Augment(), AUGMENTED])
@pytest.mark.parametrize("placement", ["device", "host"])
def test_ranks_together_see_what_one_rank_with_the_whole_batch_sees(change: Augment, placement: str) -> None:
    few = config(augment=change, placement=placement)
    ranks = [list(feed(few, rank, 3).epoch(1)) for rank in range(3)]
    whole = ImageFiles(name="cifar10", batch_size=24, augment=change)
    for step, (x, y) in enumerate(feed(whole).epoch(1)):
        assert torch.equal(torch.cat([batches[step][0] for batches in ranks]), x)
        assert torch.equal(torch.cat([batches[step][1] for batches in ranks]), y)
    assert feed(few, 0, 3).steps_per_epoch == feed(whole).steps_per_epoch == 2


@pytest.mark.parametrize("placement", ["device", "host"])
def test_fewer_ranks_share_the_same_samples_as_if_there_had_never_been_more(placement: str) -> None:
    before = feed(config(placement=placement), rank=3, world_size=4)
    after, fresh = before.among(1, 2), feed(config(placement=placement), rank=1, world_size=2)
    assert (before.steps_per_epoch, after.steps_per_epoch) == (1, fresh.steps_per_epoch)
    same(after.epoch(1), fresh.epoch(1))
    same(after.evaluation("valid"), fresh.evaluation("valid"))


def test_epochs_differ_in_order_and_augmentation() -> None:
    way = feed(config(augment=AUGMENTED))
    first, second = (next(iter(way.epoch(epoch)))[0] for epoch in (0, 1))
    assert not torch.equal(first, second)


@pytest.mark.parametrize("placement", ["device", "host"])
def test_evaluation_covers_a_part_once_in_order_unchanged(placement: str) -> None:
    settings = config(placement=placement, augment=AUGMENTED)
    for part, samples in (("valid", IMAGES.valid), ("test", IMAGES.test)):
        batches = [batch for rank in range(4) for batch in feed(settings, rank, 4).evaluation(part)]
        assert torch.equal(torch.cat([y for _, y in batches]), samples.targets)
        assert torch.equal(torch.cat([x for x, _ in batches]), (samples.inputs - IMAGES.mean) / IMAGES.std)
    assert [len(y) for _, y in feed(settings).evaluation("valid")] == [256, 256, 188]
    assert not list(feed(settings, 0, 4).evaluation("test"))  # three samples on four ranks


def test_the_data_set_itself_is_left_alone() -> None:
    rows = Part(torch.randn(20, 4, generator=NOISE), torch.randn(20, 2, generator=NOISE))
    before = rows.inputs.clone()
    dataset = DataSet(
        "tabular",
        "regression",
        rows,
        rows,
        rows,
        (4,),
        2,
        torch.full((4,), 0.5),
        torch.full((4,), 2.0),
        ("a", "b"),
    )
    way = feed(Tabular(root="t.csv", batch_size=5, task="regression"), dataset=dataset)
    batches = [*way.epoch(0), *way.evaluation("valid")]
    assert torch.equal(rows.inputs, before)
    assert torch.equal(batches[-1][0], (before - 0.5) / 2)
    assert batches[0][0].dtype == torch.float32
    assert batches[0][1].shape == (5, 2)


@pytest.mark.parametrize("placement", ["auto", "device", "host"])
def test_text_stays_whole_numbers(placement: str) -> None:
    stream = torch.randint(0, 30, (101,), generator=NOISE)
    part = Part(stream[:100].view(20, 5), stream[1:].view(20, 5))
    dataset = DataSet(
        "text",
        "sequence",
        part,
        part,
        part,
        (5,),
        30,
        torch.tensor(0.0),
        torch.tensor(1.0),
        tuple(map(chr, range(30))),
    )
    way = feed(TextFiles(root=".", batch_size=4, placement=placement), dataset=dataset)
    for x, y in [*way.epoch(2), *way.evaluation("test")]:
        assert x.dtype == y.dtype == torch.int64
        assert torch.equal(x[:, 1:], y[:, :-1])


def test_too_few_samples_for_a_step() -> None:
    with pytest.raises(RunError, match=r"needs 56 training samples, but there are 50"):
        feed(world_size=7)


def test_leaving_an_epoch_early_ends_the_thread() -> None:
    for _ in feed(config(placement="host")).epoch(0):
        break
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("structlearn-data")]


def test_auto_keeps_what_is_too_large_for_the_device_on_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    """The decision, with the CPU in the place of a CUDA device."""
    size = sum(part.nbytes for part in (IMAGES.train, IMAGES.valid, IMAGES.test))
    monkeypatch.setattr(module.torch.cuda, "mem_get_info", lambda _: (4 * size, 10**12), raising=True)
    assert module._budget(torch.device("cuda"), 8) == size
    assert module._budget(CPU, 1) <= 1 << 30
    assert module._budget(CPU, 10**9) < 1000
    assert feed()._resident


@pytest.mark.gpu
@pytest.mark.parametrize("placement", ["device", "host"])
@pytest.mark.parametrize("change", [Augment(), AUGMENTED])
def test_a_cuda_device_gets_the_same_batches(placement: str, change: Augment) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    settings = config(placement=placement, augment=change)
    there = Feed(IMAGES, settings, torch.device("cuda"), seed=5, rank=0, world_size=1)
    for (x, y), (u, v) in zip(there.epoch(1), feed(settings).epoch(1), strict=True):
        assert x.is_cuda
        torch.testing.assert_close(x.cpu(), u)
        assert torch.equal(y.cpu(), v)
