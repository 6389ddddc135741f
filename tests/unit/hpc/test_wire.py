"""A message is what was packed, for any shapes, layouts, payloads and slices; a damaged one is found."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hpc.errors import RunError
from hpc.exchange.slices import borders, slices_of
from hpc.exchange.wire import Letter, Message, message_size

PAYLOADS = ("float32", "bfloat16", "int8")
BLOCK = 256  # numbers that share a scale in int8
HEADER = message_size(0)
SHAPE = st.one_of(
    st.lists(st.integers(1, 40), min_size=1, max_size=3),
    st.tuples(st.integers(1, 4), st.integers(1, 4), st.integers(1, 5), st.integers(1, 5)).map(list),
)
SHAPES = st.lists(SHAPE, min_size=1, max_size=5)


def tensors(shapes, seed, dtype=torch.float32, scale=1.0):
    """Numbers of different magnitudes; those with four sides lie channels last in every other case."""
    generator = torch.Generator().manual_seed(seed)
    made = []
    for place, shape in enumerate(shapes):
        value = torch.randn(shape, generator=generator, dtype=dtype) * scale * 10.0 ** (place - 2)
        made.append(value.contiguous(memory_format=torch.channels_last) if len(shape) == 4 and seed % 2 else value)
    return made


def memory(values):
    """The numbers of tensors in the order of their memory."""
    flat = [value.permute(0, 2, 3, 1) if value.dim() == 4 and not value.is_contiguous() else value for value in values]
    return torch.cat([value.reshape(-1) for value in flat])


def joined(part):
    return torch.cat([torch.zeros(0), *part]).clone()


def deliver(outbox, inbox, letter):
    outbox.pack(letter)
    assert outbox.ready()
    size = outbox.size(letter.slice)
    inbox.bytes[:] = 0xAB  # what lay there before
    inbox.bytes[:size] = outbox.bytes[:size]
    return size


def rounded(numbers, payload):
    """(what numbers come back as, the largest error of each) by the definition of the payload."""
    if payload == "float32":
        return numbers, np.zeros(len(numbers))
    if payload == "bfloat16":  # the upper half of a float32, rounded to even
        bits = numbers.view(np.uint32).astype(np.uint64)
        upper = ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16 << 16).astype(np.uint32)
        return upper.view(np.float32), np.abs(numbers) * 2.0**-8
    padded = np.zeros(-(-len(numbers) // BLOCK) * BLOCK, np.float32)
    padded[: len(numbers)] = numbers
    scales = np.abs(padded.reshape(-1, BLOCK)).max(1) / np.float32(127)
    each = np.repeat(scales, BLOCK)[: len(numbers)]
    whole = np.round(np.divide(numbers, each, out=np.zeros_like(numbers), where=each > 0))
    return whole * each, each / 2 * (1 + 1e-5)


# --- slices --------------------------------------------------------------------------------------------


@given(SHAPES, st.integers(1, 9), st.integers(0, 1000))
@settings(deadline=None)
def test_slices_are_views_that_hold_every_number_once(shapes, slices, seed):
    values = tensors(shapes, seed)
    parts = slices_of(values, slices)
    assert len(parts) == slices
    assert torch.equal(torch.cat([joined(part) for part in parts]), memory(values))
    sizes = [len(joined(part)) for part in parts]
    assert max(sizes) - min(sizes) <= 1
    for part in parts:
        for view in part:
            view.fill_(7.0)
    assert all((value == 7.0).all() for value in values)


@given(SHAPES, st.integers(1, 9), st.integers(0, 1000))
@settings(deadline=None)
def test_what_goes_beside_a_tensor_is_cut_as_it_is(shapes, slices, seed):
    values = tensors(shapes, seed)
    others = {value.data_ptr(): [10.0 * value, 100.0 * value] for value in values[::2] if value.numel()}
    plain, parts = slices_of(values, slices), slices_of(values, slices, others)
    for before, part in zip(plain, parts, strict=True):
        own, more = part[: len(before)], part[len(before) :]
        assert all(map(torch.equal, before, own))
        expected = [
            factor * view for view in own for factor in (10.0, 100.0)
            if any(view.untyped_storage().data_ptr() == value.untyped_storage().data_ptr() for value in values[::2])
        ]  # fmt: skip
        assert len(more) == len(expected)
        assert all(map(torch.equal, more, expected))


@given(SHAPES, st.integers(1, 9), st.integers(0, 1000))
@settings(deadline=None)
def test_slices_that_divide_no_tensor_are_as_near_to_one_size_as_that_allows(shapes, slices, seed):
    values = tensors(shapes, seed)
    ends = borders(values, slices)
    assert ends == sorted(ends)
    assert (len(ends), ends[-1]) == (slices, len(values))
    parts = slices_of(values, ends)
    assert [len(part) for part in parts] == [last - first for first, last in pairwise([0, *ends])]
    assert torch.equal(torch.cat([joined(part) for part in parts]), memory(values))
    sizes, total = [value.numel() for value in values], sum(value.numel() for value in values)
    starts = np.cumsum([0, *sizes])
    for place, end in enumerate(ends, 1):
        wanted = total * place / slices
        assert abs(starts[end] - wanted) == np.abs(starts - wanted).min()


@given(SHAPES, st.integers(1, 4), st.integers(0, 1000), st.sampled_from(PAYLOADS))
@settings(deadline=None)
def test_a_buffer_that_was_fitted_to_less_holds_that_and_what_came_before(shapes, slices, seed, payload):
    """A network shrinks; a message of before has come, and one of after comes."""
    before, after = tensors(shapes, seed), [value[:1].clone() for value in tensors(shapes, seed)]
    ends = borders(before, slices)
    outbox, later, inbox = (Message(slices_of(values, ends), payload) for values in (before, after, before))
    room = inbox.bytes.size
    for part in range(slices):
        for sender, values in ((outbox, before), (later, after)):
            inbox.fit(slices_of(values, ends))
            assert deliver(sender, inbox, Letter(5, 6, part, 7)) <= room
            came = joined(inbox.take(part)).float()
            found, errors = rounded(joined(slices_of(values, ends)[part]).numpy(), payload)
            np.testing.assert_allclose(came.numpy(), found, rtol=0, atol=errors.max(initial=0))
            inbox.fit(slices_of(after, ends))
            assert torch.equal(inbox.numbers()[: len(came)].float(), came)
    assert inbox.bytes.size == room


def test_tensors_without_numbers_are_left_out():
    assert [joined(part).tolist() for part in slices_of([torch.zeros(0), torch.ones(2), torch.zeros(3, 0)], 1)] == [
        [1, 1]
    ]


def test_a_tensor_within_another_ones_memory_is_seen_where_it_is():
    base = torch.arange(10.0)
    (part,) = slices_of([base[4:7]], 1)
    part[0].mul_(-1)
    assert base.tolist() == [0, 1, 2, 3, -4, -5, -6, 7, 8, 9]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
@pytest.mark.parametrize("payload", PAYLOADS)
def test_a_message_of_a_device_holds_its_weights_as_they_were_when_it_was_packed(payload):
    """Whatever kernels come before and after on the stream of the steps."""
    own, other = (torch.full((3000,), value, device="cuda") for value in (1.0, 5.0))
    outbox, inbox = (Message(slices_of([value], 1), payload) for value in (own, other))
    torch.cuda._sleep(50_000_000)
    own.add_(1.0)
    outbox.pack(Letter(7, 1, 0, 0))
    own.zero_()
    torch.cuda.synchronize()
    assert outbox.ready()
    inbox.bytes[:] = outbox.bytes
    assert inbox.open().mass == 7
    torch.cuda._sleep(50_000_000)
    inbox.mix(0, 0.5)
    inbox.hand_over()
    torch.cuda.synchronize()
    assert inbox.reusable()
    torch.testing.assert_close(other.cpu(), torch.full((3000,), 3.5))


# --- there and back ------------------------------------------------------------------------------------


@given(SHAPES, st.integers(1, 4), st.integers(0, 1000), st.sampled_from(PAYLOADS))
@settings(deadline=None)
def test_what_arrives_is_what_was_packed_rounded_as_the_payload_says(shapes, slices, seed, payload):
    here, there = tensors(shapes, seed), tensors(shapes, seed, scale=0.0)
    outbox, inbox = (Message(slices_of(values, slices), payload) for values in (here, there))
    parts = slices_of(here, slices)
    for part in range(slices):
        letter = Letter(mass=2**40 - part, step=17, slice=part, sent_ns=123456789, sender=5)
        size = deliver(outbox, inbox, letter)
        assert size <= len(inbox.bytes)
        assert inbox.open() == letter
        numbers = joined(parts[part]).numpy()
        found = joined(inbox.take(part)).float().numpy()
        expected, bound = rounded(numbers, payload)
        assert (np.abs(found.astype(np.float64) - numbers) <= bound).all()
        if payload == "int8":
            np.testing.assert_allclose(found, expected, rtol=1e-6, atol=float(bound.max(initial=0)) * 2.01)
        else:
            np.testing.assert_array_equal(found, expected)
    assert torch.equal(memory(here), memory(tensors(shapes, seed)))  # packing changes nothing


@pytest.mark.parametrize("payload", PAYLOADS)
def test_sizes_are_what_the_payload_needs(payload):
    message = Message(slices_of([torch.zeros(1001)], 2), payload)
    expected = {"float32": [4 * 500, 4 * 501], "bfloat16": [2 * 500, 2 * 501], "int8": [2 * 260, 2 * 260]}[payload]
    assert [message.size(part) - HEADER for part in (0, 1)] == expected
    assert len(message.bytes) == max(message.size(part) for part in (0, 1))


@given(st.integers(0, 10**6), st.integers(1, 700))
@settings(deadline=None)
def test_int8_is_off_by_half_a_step_of_its_block_at_most(seed, size):
    draw = np.random.default_rng(seed)
    numbers = (draw.standard_normal(size) * 10.0 ** draw.integers(-20, 20, size)).astype(np.float32)
    here, there = torch.from_numpy(numbers), torch.zeros(size)
    outbox, inbox = (Message(slices_of([values], 1), "int8") for values in (here, there))
    deliver(outbox, inbox, Letter(1, 1, 0, 0))
    found = joined(inbox.take(0)).numpy().astype(np.float64)
    for first in range(0, size, BLOCK):
        block = slice(first, first + BLOCK)
        assert np.abs(found[block] - numbers[block]).max() <= np.abs(numbers[block]).max() / 254 * (1 + 1e-5)


def test_int8_keeps_zeros_and_the_largest_number():
    values = torch.tensor([0.0] * 256 + [3.0, -3.0, 0.0])
    outbox, inbox = (Message(slices_of([tensor], 1), "int8") for tensor in (values, torch.ones(259)))
    deliver(outbox, inbox, Letter(1, 1, 0, 0))
    torch.testing.assert_close(joined(inbox.take(0)), values, rtol=1e-6, atol=0)


def test_int8_numbers_of_another_slice_do_not_coarsen_a_slice():
    """The two slices have one number more or less; what the longer left behind belongs to nobody."""
    values = torch.cat([torch.full((3,), 0.01), torch.tensor([0.02, 0.01, 0.01, 1000.0])])
    outbox, inbox = (Message(slices_of([tensor], 2), "int8") for tensor in (values, torch.zeros(7)))
    deliver(outbox, inbox, Letter(1, 1, 1, 0))
    deliver(outbox, inbox, Letter(1, 1, 0, 0))
    torch.testing.assert_close(joined(inbox.take(0)), values[:3], rtol=1e-5, atol=0)


@pytest.mark.parametrize("payload", PAYLOADS)
@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_a_number_that_is_none_does_not_arrive_as_one(payload, wrong):
    values = torch.tensor([1.0, wrong, 2.0])
    outbox, inbox = (Message(slices_of([tensor], 1), payload) for tensor in (values, torch.zeros(3)))
    deliver(outbox, inbox, Letter(1, 1, 0, 0))
    assert not torch.isfinite(joined(inbox.take(0)).float()[1])


# --- mixing --------------------------------------------------------------------------------------------


@given(SHAPES, st.integers(1, 3), st.integers(0, 1000), st.sampled_from(PAYLOADS), st.floats(0, 1))
@settings(deadline=None)
def test_mixing_is_the_weighted_mean_and_touches_one_slice(shapes, slices, seed, payload, share):
    here, there = tensors(shapes, seed), tensors(shapes, seed + 2)
    outbox, inbox = Message(slices_of(here, slices), payload), Message(slices_of(there, slices), payload)
    part = seed % slices
    before = [joined(each).double() for each in slices_of(there, slices)]
    deliver(outbox, inbox, Letter(1, 1, part, 0))
    came = joined(inbox.take(part)).double()
    inbox.mix(part, share)
    after = [joined(each).double() for each in slices_of(there, slices)]
    for place, (old, new) in enumerate(zip(before, after, strict=True)):
        expected = (1 - share) * old + share * came if place == part else old
        slack = 4 * 2.0**-24 * (old.abs() + came.abs()) if place == part else torch.zeros_like(old)
        assert ((new - expected).abs() <= slack + 1e-44).all()


@pytest.mark.parametrize("payload", PAYLOADS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_weights_of_another_type_are_mixed_in_their_own(payload, dtype):
    here, there = torch.tensor([1.0, 2.0], dtype=dtype), torch.tensor([3.0, 6.0], dtype=dtype)
    outbox, inbox = (Message(slices_of([values], 1), payload) for values in (here, there))
    deliver(outbox, inbox, Letter(1, 1, 0, 0))
    inbox.mix(0, 0.5)
    assert there.dtype == dtype
    torch.testing.assert_close(there.double(), torch.tensor([2.0, 4.0], dtype=torch.float64), rtol=1e-2, atol=0)


@pytest.mark.parametrize("payload", PAYLOADS)
def test_more_slices_than_numbers_leave_some_empty(payload):
    here, there = torch.tensor([1.0, 2.0]), torch.zeros(2)
    outbox, inbox = (Message(slices_of([values], 5), payload) for values in (here, there))
    for part in range(5):
        deliver(outbox, inbox, Letter(1, 1, part, 0))
        assert inbox.open().slice == part
        inbox.mix(part, 1.0)
    torch.testing.assert_close(there, here, rtol=1e-2, atol=0)


# --- damage --------------------------------------------------------------------------------------------


def arrived(numbers=40, payload="float32"):
    values = torch.randn(numbers, generator=torch.Generator().manual_seed(0))
    outbox, inbox = (Message(slices_of([tensor], 1), payload) for tensor in (values, torch.zeros(numbers)))
    deliver(outbox, inbox, Letter(5, 6, 0, 7, 1))
    return inbox


FIELDS = 10 * 8  # bytes of the header that say something


@given(st.integers(0, FIELDS - 1), st.integers(1, 255))
@settings(deadline=None)
def test_any_damage_to_the_header_is_found(place, change):
    message = arrived()
    message.bytes[place] ^= change
    with pytest.raises(RunError, match="damaged header; the network between the ranks is faulty"):
        message.open()


@pytest.mark.parametrize("payload", PAYLOADS)
@given(place=st.integers(0, 2**16), change=st.integers(1, 255))
@settings(deadline=None)
def test_any_damage_to_a_small_payload_is_found(payload, place, change):
    message = arrived(payload=payload)
    size = message.size(0)
    message.bytes[HEADER + place % (size - HEADER)] ^= change
    with pytest.raises(RunError, match="damaged payload; the network between the ranks is faulty"):
        message.open()


@given(st.floats(0, 0.98))
@settings(deadline=None)
def test_a_large_payload_that_was_overwritten_in_one_place_is_found(where):
    message = arrived(100_000)
    payload = message.bytes[HEADER:]
    first = int(where * len(payload))
    payload[first : first + len(payload) // 50] ^= 0x55
    with pytest.raises(RunError, match="damaged payload"):
        message.open()


def test_a_message_that_another_overwrote_is_found():
    message, other = arrived(100_000), arrived(100_000)
    other.bytes[HEADER:] = np.random.default_rng(1).integers(0, 256, other.bytes.size - HEADER, np.uint8)
    half = message.bytes.size // 2
    message.bytes[half:] = other.bytes[half:]
    with pytest.raises(RunError, match="damaged payload"):
        message.open()


def test_what_was_never_a_message_is_found():
    message = arrived()
    message.bytes[:] = 0
    with pytest.raises(RunError, match="damaged header"):
        message.open()


def test_a_message_says_which_structure_it_is_of_and_is_refused_where_that_is_another():
    outbox, inbox = (Message(slices_of([torch.ones(4)], 1), "float32") for _ in range(2))
    deliver(outbox, inbox, Letter(1, 1, 0, 0, structure=1))
    letter = inbox.open()
    letter.check(1)
    with pytest.raises(RunError, match="of structure 1, but this rank holds 2"):
        letter.check(2)


def test_a_message_longer_than_its_buffer_is_refused():
    outbox, inbox = (Message(slices_of([torch.ones(numbers)], 1), "float32") for numbers in (9, 8))
    outbox.pack(Letter(1, 1, 0, 0))
    assert outbox.ready()
    inbox.bytes[:] = outbox.bytes[: len(inbox.bytes)]
    with pytest.raises(RunError, match="a message of 164 bytes arrived where at most 160 were expected"):
        inbox.open()


def test_a_header_holds_the_largest_mass():
    outbox, inbox = (Message(slices_of([torch.ones(4)], 1), "float32") for _ in range(2))
    letter = Letter(2**63 - 1, 2**40, 0, 2**62, 2**23 - 1)
    deliver(outbox, inbox, letter)
    assert inbox.open() == letter
