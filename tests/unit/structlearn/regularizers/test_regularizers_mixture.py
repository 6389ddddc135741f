"""The density of samples under Gaussians fitted to them: its value by numpy and scipy, its gradient by autograd."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit
from scipy.stats import norm
from torch import Tensor

from structlearn.regularizers import mixture as module
from structlearn.regularizers.mixture import FLOOR, negative_log_density

SIZES = st.tuples(st.integers(1, 4), st.integers(2, 9), st.integers(1, 4), st.integers(1, 7))


def draw(seed: int, draws: int, rows: int, columns: int, scale: float) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = scale * torch.randn(rows, columns, generator=generator, dtype=torch.float64)
    return x, 0.3 * torch.randn(draws, rows, columns, generator=generator, dtype=torch.float64)


def basis_of(seed: int, dimension: int, columns: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(dimension, columns, generator=generator, dtype=torch.float64)


def by_scipy(z: np.ndarray, *, mixture: bool) -> float:
    """B eq. 5.11 and 5.13, coordinate by coordinate; z is [samples, D]."""
    total = 0.0
    for each in z.T:
        if not mixture:
            total += norm.logpdf(each, each.mean(), math.sqrt(max(each.var(), FLOOR))).mean()
            continue
        density = np.zeros(len(each))
        for weight in (expit(each), expit(-each)):
            mean = np.average(each, weights=weight)
            variance = np.average((each - mean) ** 2, weights=weight)
            density += weight.mean() * norm.pdf(each, mean, math.sqrt(max(variance, FLOOR)))
        total += np.log(density).mean()
    return -total


def by_autograd(x: Tensor, noise: Tensor, basis: Tensor | None, *, mixture: bool) -> Tensor:
    """Written out, q a constant."""
    z = x + noise if basis is None else (x + noise) @ basis.mT
    flat = z.flatten(0, 1)
    fixed = flat.detach()
    joint = []
    for weight in (fixed.sigmoid(), (-fixed).sigmoid()) if mixture else (torch.ones_like(fixed),):
        mean = (weight * fixed).sum(0) / weight.sum(0)
        variance = ((weight * (fixed - mean).square()).sum(0) / weight.sum(0)).clamp(min=FLOOR)
        density = torch.distributions.Normal(mean, variance.sqrt()).log_prob(flat)
        joint.append(weight.mean(0).log() + density)
    return -torch.stack(joint).logsumexp(0).sum(-1).mean()


@settings(max_examples=60, deadline=None)
@given(SIZES, st.integers(0, 10_000), st.floats(0.1, 4.0), st.booleans(), st.booleans())
def test_it_is_the_sources_formula(
    sizes: tuple[int, int, int, int], seed: int, scale: float, projected: bool, mixture: bool
) -> None:
    draws, rows, columns, dimension = sizes
    x, noise = draw(seed, draws, rows, columns, scale)
    basis = basis_of(seed, dimension, columns) if projected else None
    loss, _ = negative_log_density(x, noise, basis, mixture=mixture)
    z = (x + noise if basis is None else (x + noise) @ basis.mT).flatten(0, 1).numpy()
    assert loss.item() == pytest.approx(by_scipy(z, mixture=mixture), rel=1e-6, abs=1e-6)


@settings(max_examples=60, deadline=None)
@given(SIZES, st.integers(0, 10_000), st.floats(0.1, 4.0), st.booleans(), st.booleans())
def test_its_gradient_is_autograds(
    sizes: tuple[int, int, int, int], seed: int, scale: float, projected: bool, mixture: bool
) -> None:
    draws, rows, columns, dimension = sizes
    x, noise = draw(seed, draws, rows, columns, scale)
    basis = basis_of(seed, dimension, columns) if projected else None
    x.requires_grad_()
    (wanted,) = torch.autograd.grad(3.0 * by_autograd(x, noise, basis, mixture=mixture), x)
    (found,) = torch.autograd.grad(3.0 * negative_log_density(x, noise, basis, mixture=mixture)[0], x)
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-6 * (1 + wanted.abs().max().item()))


@pytest.mark.parametrize("room", [1, 7, 20, 100])
@pytest.mark.parametrize("projected", [False, True])
def test_parts_make_no_difference(monkeypatch: pytest.MonkeyPatch, room: int, projected: bool) -> None:
    x, noise = draw(0, 5, 11, 3, 2.0)
    basis = basis_of(0, 6, 3) if projected else None
    x.requires_grad_()
    whole, modes = negative_log_density(x, noise, basis)
    (wanted,) = torch.autograd.grad(whole, x)
    monkeypatch.setattr(module, "CACHED", room)
    parts, others = negative_log_density(x, noise, basis)
    (found,) = torch.autograd.grad(parts, x)
    torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(parts, whole)
    torch.testing.assert_close(others, modes)


def test_two_clear_modes_are_found() -> None:
    torch.manual_seed(0)
    high = torch.full((300, 1), 20.0) + torch.randn(300, 1)
    low = torch.full((100, 1), -20.0) + 2 * torch.randn(100, 1)
    _, modes = negative_log_density(torch.cat([high, low]).double(), torch.zeros(1, 400, 1, dtype=torch.float64))
    assert modes.share1.item() == pytest.approx(0.75, abs=1e-2)
    assert modes.share0.item() == pytest.approx(0.25, abs=1e-2)
    assert modes.mean1.item() == pytest.approx(high.mean().item(), abs=0.1)
    assert modes.mean0.item() == pytest.approx(low.mean().item(), abs=0.1)
    assert modes.variance1.item() == pytest.approx(high.var(correction=0).item(), rel=0.05)
    assert modes.variance0.item() == pytest.approx(low.var(correction=0).item(), rel=0.05)


@pytest.mark.parametrize("value", [0.0, 3.0, 40.0, -40.0, 300.0, -300.0])
@pytest.mark.parametrize("mixture", [True, False])
def test_a_coordinate_that_never_moves_has_the_least_variance(value: float, mixture: bool) -> None:
    x = torch.full((4, 1), value, requires_grad=True)
    loss, _ = negative_log_density(x, torch.zeros(2, 4, 1), mixture=mixture)
    loss.backward()
    assert loss.item() == pytest.approx(0.5 * math.log(2 * math.pi * FLOOR), rel=1e-4)
    assert x.grad is not None
    torch.testing.assert_close(x.grad, torch.zeros(4, 1), rtol=0, atol=1e-3)


@pytest.mark.parametrize("scale", [1e-4, 1.0, 30.0, 500.0])
def test_single_precision_is_near_double(scale: float) -> None:
    x, noise = draw(3, 12, 64, 8, scale)
    results = []
    for dtype in (torch.float64, torch.float32):
        given_x = x.to(dtype).requires_grad_()
        loss, _ = negative_log_density(given_x, noise.to(dtype))
        results.append((loss.double(), torch.autograd.grad(loss, given_x)[0].double()))
    (wanted, slope), (found, other) = results
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(other, slope, rtol=1e-2, atol=1e-2 * slope.abs().max().item())


def test_only_the_first_derivative_is_there() -> None:
    x, noise = draw(0, 2, 3, 2, 1.0)
    x.requires_grad_()
    with pytest.raises(RuntimeError, match="create_graph"):
        torch.autograd.grad(negative_log_density(x, noise)[0], x, create_graph=True)
