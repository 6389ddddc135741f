"""Many tensors as one flat buffer, and back."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hpc.flat import FlatBuffer

FLOATS = [torch.float32, torch.float64, torch.float16, torch.bfloat16]

shapes = st.lists(st.lists(st.integers(0, 4), max_size=4), min_size=1, max_size=6)


def noise(shape, dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def same(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
    return all(a.dtype == b.dtype and torch.equal(a, b) for a, b in zip(one, other, strict=True))


@settings(max_examples=50)
@given(shapes, st.data())
def test_what_is_packed_comes_back_exactly(shapes, data):
    dtypes = [data.draw(st.sampled_from(FLOATS)) for _ in shapes]
    tensors = [noise(shape, dtype, place) for place, (shape, dtype) in enumerate(zip(shapes, dtypes, strict=True))]
    buffer = FlatBuffer(tensors, direct=data.draw(st.sampled_from([None, True, False])))
    flat = buffer.pack(tensors)
    assert flat.is_contiguous()
    assert flat.numel() == sum(tensor.numel() for tensor in tensors)
    found = [torch.full_like(tensor, 7) for tensor in tensors]
    buffer.unpack(found)
    narrow = flat.dtype == torch.float32
    assert same(found, [tensor.float().to(tensor.dtype) if narrow else tensor for tensor in tensors])


def test_values_lie_in_the_order_of_the_tensors():
    tensors = [torch.arange(3.0), torch.tensor(9.0), torch.arange(4.0).reshape(2, 2)]
    assert FlatBuffer(tensors).pack(tensors).tolist() == [0, 1, 2, 9, 0, 1, 2, 3]


@pytest.mark.parametrize(
    ("dtypes", "wide"),
    [
        ([torch.float32], torch.float32), ([torch.float32, torch.float64], torch.float32),
        ([torch.float32, torch.float64, torch.float64], torch.float64),
        ([torch.float64], torch.float64), ([torch.bfloat16, torch.float16], torch.float32),
    ],
)  # fmt: skip
def test_the_buffer_is_float64_where_most_of_the_numbers_are(dtypes, wide):
    tensors = [torch.ones(2, dtype=dtype) for dtype in dtypes]
    assert FlatBuffer(tensors).pack(tensors).dtype == wide


def test_float64_keeps_its_digits():
    tensors = [torch.tensor([1 + 2**-50] * 3, dtype=torch.float64), torch.ones(2)]
    buffer = FlatBuffer(tensors)
    found = [torch.zeros_like(tensor) for tensor in tensors]
    buffer.pack(tensors)
    buffer.unpack(found)
    assert same(found, tensors)


def test_layout_in_memory_does_not_matter():
    tensors = [noise((2, 3, 4, 5), torch.float32).to(memory_format=torch.channels_last), noise((4, 6), torch.float32).T]
    buffer = FlatBuffer(tensors)
    assert torch.equal(buffer.pack(tensors), torch.cat([tensor.flatten() for tensor in tensors]))
    found = [torch.empty_like(tensor) for tensor in tensors]
    buffer.unpack(found)
    assert same(found, tensors)
    assert found[0].is_contiguous(memory_format=torch.channels_last)


def test_a_buffer_serves_again_and_what_happened_to_it_comes_back():
    tensors = [torch.ones(2, 2), torch.ones(3)]
    buffer = FlatBuffer(tensors)
    for factor in (2.0, 5.0):
        buffer.pack([tensor * factor for tensor in tensors]).mul_(10)
        buffer.unpack(tensors)
        assert all((tensor == factor * 10).all() for tensor in tensors)
        for tensor in tensors:
            tensor.fill_(1)


def test_other_tensors_of_the_same_shapes_may_be_packed():
    like = [torch.zeros(2), torch.zeros(3)]
    assert FlatBuffer(like).pack([torch.ones(2), torch.full((3,), 2.0)]).tolist() == [1, 1, 2, 2, 2]


@pytest.mark.parametrize("wrong", [[torch.zeros(2)], [torch.zeros(2), torch.zeros(4)]])
def test_tensors_of_other_shapes_are_refused(wrong):
    with pytest.raises(RuntimeError):
        FlatBuffer([torch.zeros(2), torch.zeros(3)]).pack(wrong)


def test_no_tensors_at_all_are_an_empty_message():
    buffer = FlatBuffer([])
    assert buffer.pack([]).numel() == 0
    buffer.unpack([])


@pytest.mark.parametrize(("direct", "copies"), [(None, 0), (True, 0), (False, 1)])
def test_what_travels_is_where_the_tensors_are_gathered_or_a_copy_of_it(direct, copies):
    """On the CPU as on a device."""
    tensors = [noise((3, 4), torch.float32), noise((15,), torch.float64)]
    buffer = FlatBuffer(tensors, direct=direct)
    buffer.pack(tensors).mul_(2)
    before = [view.clone() for view in buffer._views]
    found = [torch.zeros_like(tensor) for tensor in tensors]
    buffer.unpack(found)
    assert same(found, [tensor * 2 for tensor in tensors])
    assert (buffer.flat is not buffer._staging) == copies
    assert same(before, [(tensor if copies else tensor * 2).double() for tensor in tensors])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
def test_tensors_of_a_device_that_mpi_takes_stay_there():
    tensors = [noise((300, 400), torch.float32).cuda(), noise((5,), torch.float32, 1).cuda()]
    buffer = FlatBuffer(tensors, direct=True)
    torch.cuda._sleep(10**8)
    flat = buffer.pack(tensors)
    assert flat.is_cuda
    assert torch.cuda.current_stream().query()  # all is written: MPI knows of no streams
    flat.mul_(2)
    found = [torch.zeros_like(tensor) for tensor in tensors]
    buffer.unpack(found)
    assert same(found, [tensor * 2 for tensor in tensors])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
def test_tensors_of_a_device_come_back_exactly_over_pinned_memory():
    tensors = [noise((3, 4), torch.float32).cuda(), noise((5,), torch.float32, 1).cuda()]
    buffer = FlatBuffer(tensors)
    flat = buffer.pack(tensors)
    assert flat.is_pinned()
    assert torch.equal(flat, torch.cat([tensor.flatten() for tensor in tensors]).cpu())
    flat.mul_(2)
    found = [torch.zeros_like(tensor) for tensor in tensors]
    buffer.unpack(found)
    assert same(found, [tensor * 2 for tensor in tensors])
