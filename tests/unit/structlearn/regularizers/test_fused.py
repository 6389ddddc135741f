"""SHADE's C against the formulas in float64, and against torch's own passes."""

import math
import os
import shutil
import signal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from structlearn import native
from structlearn.regularizers import fused, variance
from structlearn.regularizers.variance import latent_variance

pytestmark = pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")

SHAPES = [  # and where the units are; both ways to sum, with lanes left over, more than a block, and nothing
    ((5, 3, 8, 8), 1), ((3, 2, 9, 11), 1), ((2, 5, 100), 1), ((4, 3, 2, 2), 1), ((200, 37), 1), ((64, 16), 1),
    ((3, 65, 5), 2), ((1, 1), 1), ((2, 3, 1, 1), 1), ((0, 3), 1), ((0, 3, 8, 8), 1), ((2, 3, 0), 1),
]  # fmt: skip


def drawn(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def exact(y, axis, mean0, mean1, factor, upstream):
    """The five sums and the gradient, in float64."""
    y, mean0, mean1 = (each.double() for each in (y.movedim(axis, -1), mean0, mean1))
    above = y.relu()
    p0 = torch.exp(-above)
    sums = torch.stack([each.flatten(0, -2).sum(0) for each in (y, y * y, p0, above, p0 * above)])
    slope = 2 * (y - mean1) + 2 * p0 * (mean1 - mean0) - (y > 0) * p0 * (mean1 - mean0) * (2 * y - mean0 - mean1)
    return sums, factor * slope.movedim(-1, axis) + (0 if upstream is None else upstream.double())


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(SHAPES), st.floats(0.01, 30), st.integers(0, 2**31), st.booleans(), st.booleans(), st.booleans())
def test_sums_and_slopes_are_those_of_the_formulas(place, size, seed, last, given_, in_place):
    shape, axis = place
    y, upstream = drawn(seed, *shape) * size, drawn(seed + 1, *shape)
    if last and len(shape) == 4:
        y, upstream = (each.to(memory_format=torch.channels_last) for each in (y, upstream))
    mean0, mean1 = drawn(seed + 2, shape[axis]), drawn(seed + 3, shape[axis])
    sums, slope = exact(y, axis, mean0, mean1, 0.5, upstream if given_ else None)
    found = fused.sums(y, axis).sum(2)
    count = max(1, y.numel() // shape[axis])
    torch.testing.assert_close(found.double(), sums, rtol=1e-5, atol=1e-6 * count * max(1, size))
    out = upstream if in_place else torch.full_like(y, torch.nan)
    assert fused.slopes(y, axis, mean0, mean1, torch.tensor(0.5), upstream if given_ else None, out)
    torch.testing.assert_close(out.double(), slope, rtol=1e-5, atol=1e-5 * max(1, size))


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(SHAPES), st.floats(0.01, 30), st.integers(0, 2**31))
def test_moments_and_loss_are_those_of_torch_in_float64(place, size, seed):
    shape, axis = place
    y = drawn(seed, *shape) * size
    mean0, mean1 = drawn(seed + 1, shape[axis]), drawn(seed + 2, shape[axis])
    found = fused.moments(y, axis, mean0, mean1)
    expected = variance._latent_variance(y.double(), axis, mean0.double(), mean1.double())[:4]
    count = max(1, y.numel() // shape[axis])
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=1e-5, atol=1e-6 * count * max(1, size))


def test_the_exponential_is_exact_over_its_range():
    y = torch.cat([torch.linspace(0, 100, 100_001), torch.tensor([1e-30, 1e10, 3e38])]).view(-1, 1)
    sums = torch.stack([fused.sums(each.view(1, 1), 1)[2] for each in y[::97]]).flatten()
    expected = torch.exp(-y[::97, 0].double())
    seen = expected > 1e-36
    torch.testing.assert_close(sums[seen].double(), expected[seen], rtol=3e-7, atol=0)
    assert sums[~seen].max() < 1e-36
    assert fused.sums(torch.full((5, 70), -3.0), 1)[2].eq(5).all()  # exactly 1, so that p1 is exactly 0


def test_long_sums_are_exact():
    y = torch.full((1, 1, 1024, 1024), 0.1)
    expected = exact(y, 1, torch.zeros(1), torch.zeros(1), 1.0, None)[0]
    torch.testing.assert_close(fused.sums(y, 1).sum(2).double(), expected, rtol=1e-6, atol=0)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_a_forked_process_has_threads_of_its_own(monkeypatch):
    y = torch.ones(64, 3, 32, 32)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    expected = fused.sums(y, 1)
    child = os.fork()
    if not child:
        signal.alarm(20)
        os._exit(0 if torch.equal(fused.sums(y, 1), expected) else 1)
    assert os.waitpid(child, 0)[1] == 0


def test_any_number_of_threads_makes_the_same_bits():
    threads, found = torch.get_num_threads(), []
    try:
        for number in (1, 2, 3):
            torch.set_num_threads(number)
            now = []
            for shape in ((33, 16, 16, 16), (5000, 40)):
                y, units = drawn(0, *shape), shape[1]
                out = torch.empty_like(y)
                fused.slopes(y, 1, drawn(1, units), drawn(2, units), torch.tensor(0.1), None, out)
                now += [fused.sums(y, 1), out]
            found.append(now)
    finally:
        torch.set_num_threads(threads)
    for now in found[1:]:
        assert all(torch.equal(one, other) for one, other in zip(found[0], now, strict=True))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_finite_stays_so(bad):
    for shape in ((4, 3, 8, 8), (4, 3)):
        y, out = drawn(0, *shape), torch.empty(shape)
        y.view(-1)[0] = bad
        sums = fused.sums(y, 1).sum(2)
        assert not sums[1, 0].isfinite()
        assert sums[:, 1:].isfinite().all()
        fused.slopes(y, 1, drawn(1, 3), drawn(2, 3), torch.tensor(0.1), None, out)
        assert not out.view(-1)[0].isfinite()
        assert out.view(-1)[1:].isfinite().all()


def test_means_that_are_not_in_one_piece_are_read_right():
    y, means = drawn(0, 6, 3, 8, 8), drawn(1, 3, 2)
    out, same = torch.empty_like(y), torch.empty_like(y)
    fused.slopes(y, 1, means[:, 0], means[:, 1], torch.tensor(1.0), None, out)
    fused.slopes(y, 1, means[:, 0].clone(), means[:, 1].clone(), torch.tensor(1.0), None, same)
    assert torch.equal(out, same)


@pytest.mark.parametrize(
    ("shape", "view"),
    [
        ((4, 3), lambda x: x.double()),
        ((4, 3, 9, 9), lambda x: x.half()),
        ((8, 3), lambda x: x[::2]),
        ((4, 3, 8, 8), lambda x: x[..., :5]),
        ((3, 4, 6), lambda x: x.transpose(0, 1)),
        ((3, 4), lambda x: x[:, :1].expand(3, 4)),
    ],
)
def test_other_values_are_left_to_torch(shape, view):
    x = drawn(0, *shape).requires_grad_()
    y, copied = view(x), view(x).float().contiguous()
    assert fused.sums(y, 1) is None
    assert fused.sums(copied, 1) is not None
    means = drawn(1, y.shape[1]), drawn(2, y.shape[1])
    found = []
    for each in (y, copied):
        kind = torch.promote_types(each.dtype, torch.float32)
        seen = latent_variance(each, 1, *(mean.to(kind) for mean in means))
        found.append([seen.loss.float(), *torch.autograd.grad(seen.loss + seen.y.relu().float().square().sum(), x)])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=2e-3, atol=2e-3)


def test_without_a_compiler_torch_does_the_same(monkeypatch):
    def found():
        y = drawn(0, 8, 5, 9, 9).requires_grad_()
        seen = latent_variance(2 * y, 1, drawn(1, 5), drawn(2, 5))
        (seen.loss + seen.y.relu().square().mean()).backward()
        return [y.grad, seen.loss.detach(), *seen.moments]

    ours = found()
    monkeypatch.setattr(native, "compiled", lambda _: None)
    assert fused.sums(drawn(0, 2, 3), 1) is None
    for one, other in zip(ours, found(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own, when its compiler is imported
def test_compiled_as_on_a_gpu_it_is_the_same(caplog):
    """What a GPU runs is made by torch.compile, which can be seen here by its code for a CPU."""
    for shape in ((6, 3, 40), (2, 5, 7), (4, 3, 8)):
        y, given_ = drawn(0, *shape), drawn(1, *shape)
        means = [drawn(seed, 1, shape[1], 1) for seed in (2, 3)]
        for function, arguments in (
            (variance._five, (y, torch.float32)),
            (variance._add_slope, (y, *means, torch.tensor(0.3), given_, torch.empty_like(y))),
            (variance._add_slope, (y, *means, torch.tensor(0.3), None, torch.empty_like(y))),
            (variance._five, (y.half(), torch.float32)),
        ):
            expected = function(*arguments).clone()
            torch.testing.assert_close(variance._at_once(function)(*arguments), expected)
        expected = variance._add_slope(y, *means, torch.tensor(0.3), given_, torch.empty_like(y))
        variance._at_once(variance._add_slope)(y, *means, torch.tensor(0.3), given_, given_)
        torch.testing.assert_close(given_, expected)  # in its place
    assert "cannot compile" not in caplog.text  # nothing was left to the plain functions


def test_where_torch_cannot_compile_it_says_so_and_goes_on(monkeypatch, caplog):
    def fails(*_):
        raise RuntimeError("no such thing as triton")

    monkeypatch.setattr(torch, "compile", lambda *_, **__: fails)
    call = variance._at_once.__wrapped__(variance._five)
    for _ in range(2):
        assert torch.equal(call(drawn(0, 2, 3, 4), torch.float32), variance._five(drawn(0, 2, 3, 4), torch.float32))
    assert caplog.text.count("no such thing as triton") == 1
