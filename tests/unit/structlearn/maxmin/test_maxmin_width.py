"""MaxMin for ReLU at equal width: what a network computes stays; each layer's old weights meet their channels."""

from __future__ import annotations

import copy
import runpy
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from structlearn.maxmin import MaxMin, convert
from structlearn.models import MODELS, build

if TYPE_CHECKING:
    from collections.abc import Callable

support = runpy.run_path(str(Path(__file__).parents[3] / "support" / "surgery.py"))
assert_equal, stir = support["assert_equal"], support["stir"]

SHAPES = {"mlp": (3, 4, 5), "cvnn": (3, 16, 17), "cnn": (3, 8, 9), "lenet": (1, 12, 13)}
SUMS = {"resnet18", "resnet50"}  # activated sums go on as shortcuts


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def count(model: nn.Module) -> int:
    return sum(each.numel() for each in model.parameters())


class Made(nn.Module):
    """Layers, and a forward pass that is a function of them and the input."""

    def __init__(self, forward: Callable[[nn.Module, Tensor], Tensor], **layers: nn.Module) -> None:
        super().__init__()
        self.way = forward
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, x: Tensor) -> Tensor:
        return self.way(self, x)


def dense(m: nn.Module, x: Tensor) -> Tensor:
    a = m.act(m.one(x))
    b = torch.cat([x, a, m.act(m.two(a)), a], 1)
    return m.head(F.max_pool2d(m.other(m.norm(b)), 2).mean((2, 3)))


def gated(m: nn.Module, x: Tensor) -> Tensor:
    y = m.act(m.one(x))
    return m.head((y * m.gate(y).sigmoid().sum(1, keepdim=True)).flatten(1))


def cells(m: nn.Module, x: Tensor) -> Tensor:
    return m.head(m.rnn(m.two(m.act(m.one(x))))[0].transpose(1, 2).mean(2))


IMAGES = torch.Size((3, 2, 8, 8))
NETWORKS: dict[str, tuple[Callable[[], nn.Module], torch.Size]] = {
    "two of them": (
        lambda: nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3)),
        (4, 6),
    ),
    "no batch": (lambda: nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4)), (6,)),
    "steps": (lambda: nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4)), (3, 7, 6)),
    "flattened": (
        lambda: nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 3)),
        IMAGES,
    ),
    "a line": (
        lambda: nn.Sequential(
            nn.Conv1d(2, 4, 3), nn.ReLU(), nn.Conv1d(4, 5, 3), nn.ReLU(), nn.BatchNorm1d(5), nn.AvgPool1d(2),
            nn.Flatten(), nn.Linear(10, 3),
        ),
        (3, 2, 8),
    ),
    "a body": (
        lambda: nn.Sequential(
            nn.Conv3d(2, 4, 3), nn.BatchNorm3d(4), nn.ReLU(), nn.Conv3d(4, 5, 2), nn.ReLU(), nn.AdaptiveAvgPool3d(1),
            nn.Flatten(), nn.Linear(5, 3),
        ),
        (2, 2, 4, 5, 4),
    ),
    "norm, activation, norm, activation": (
        lambda: nn.Sequential(
            nn.Conv2d(2, 4, 3), nn.ReLU(), nn.BatchNorm2d(4), nn.ReLU(), nn.InstanceNorm2d(4, affine=True), nn.PReLU(4),
            nn.Conv2d(4, 3, 3), nn.Flatten(), nn.Linear(48, 3),
        ),
        IMAGES,
    ),
    "depthwise": (
        lambda: nn.Sequential(
            nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Conv2d(4, 8, 3, groups=4), nn.BatchNorm2d(8), nn.ReLU(),
            nn.Conv2d(8, 3, 1), nn.Flatten(),
        ),
        IMAGES,
    ),
    "transposed": (
        lambda: nn.Sequential(
            nn.Conv2d(2, 4, 3), nn.ReLU(), nn.ConvTranspose2d(4, 5, 3), nn.ReLU(),
            nn.ConvTranspose2d(5, 5, 2, groups=5), nn.ReLU(), nn.Conv2d(5, 2, 1),
        ),
        IMAGES,
    ),
    "grouped in front": (
        lambda: nn.Sequential(nn.Conv2d(2, 4, 3, groups=2), nn.ReLU(), nn.Conv2d(4, 2, 3)),
        IMAGES,
    ),
    "no statistics": (
        lambda: nn.Sequential(
            nn.Conv2d(2, 4, 3), nn.ReLU(), nn.InstanceNorm2d(4), nn.ReLU(),
            nn.BatchNorm2d(4, affine=False, track_running_stats=False), nn.Conv2d(4, 2, 3),
        ),
        IMAGES,
    ),
    "the input activated": (
        lambda: nn.Sequential(nn.BatchNorm2d(2), nn.ReLU(), nn.Conv2d(2, 3, 3), nn.ReLU(), nn.Conv2d(3, 2, 1)),
        IMAGES,
    ),
    "concatenated": (
        lambda: Made(
            dense, one=nn.Conv2d(2, 4, 3, padding=1), two=nn.Conv2d(4, 3, 3, padding=1), act=nn.ReLU(),
            norm=nn.BatchNorm2d(13), other=nn.Conv2d(13, 5, 3), head=nn.Linear(5, 3),
        ),
        IMAGES,
    ),
    "gated": (
        lambda: Made(
            gated, one=nn.Conv2d(2, 4, 3), gate=nn.Conv2d(4, 3, 1), act=nn.ReLU(inplace=True), head=nn.Linear(144, 2)
        ),
        IMAGES,
    ),
    "cells": (
        lambda: Made(
            cells, one=nn.Linear(6, 5), two=nn.Linear(5, 4), act=nn.ReLU(), rnn=nn.LSTM(4, 3, batch_first=True),
            head=nn.Linear(3, 2),
        ),
        (2, 5, 6),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", NETWORKS)
def test_the_function_stays_and_the_network_given_is_left_alone(name: str) -> None:
    make, shape = NETWORKS[name]
    model, x = stir(make().double()), torch.randn(*shape, dtype=torch.float64)
    said, before = model(x), copy.deepcopy(model.state_dict())
    done = convert(model, x)
    assert_equal(done.model(x), said)
    assert done.parameters_before == count(model)
    assert done.parameters == count(done.model)
    assert done.factor == 1.0
    assert done.activations
    assert all(isinstance(done.model.get_submodule(each), MaxMin) for each in done.activations)
    assert not any(isinstance(each, nn.ReLU) for each in done.model.modules())
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(each, before[key]) for key, each in model.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in done.model.modules())
    other = torch.randn(*shape, dtype=torch.float64)
    assert_equal(done.model(other), model(other))


@pytest.mark.parametrize("name", NETWORKS)
def test_the_new_weights_learn_though_they_start_at_zero(name: str) -> None:
    make, shape = NETWORKS[name]
    torch.manual_seed(1)
    model, x = make().double(), torch.randn(*shape, dtype=torch.float64)
    done = convert(model, x)
    answer = done.model.eval()(x)
    (answer * torch.randn_like(answer)).sum().backward()
    plain = dict(model.named_parameters())
    grown = {
        key: each for key, each in done.model.named_parameters() if each.shape != plain[key].shape and each.dim() > 1
    }
    assert grown
    for key, each in grown.items():
        assert bool((each.grad[each == 0] != 0).any()) == bool((each == 0).any()), key


@pytest.mark.parametrize("name", sorted(MODELS.keys() - SUMS - {"lstm"}))
def test_a_network_of_ours_becomes_what_it_is_built_as_with_maxmin(name: str) -> None:
    shape = SHAPES.get(name, (3, 32, 32))
    model, x = stir(build(name, shape, 5, width=0.125)), torch.randn(2, *shape)
    done = convert(model, x)
    torch.testing.assert_close(done.model(x), model(x), rtol=1e-3, atol=1e-4)
    built = build(name, shape, 5, width=0.125, activation="maxmin")
    if name == "mobilenet_v2":  # which, built so, has a BatchNorm less on some shortcuts
        built.load_state_dict(built.state_dict())
        assert len(done.activations) == sum(isinstance(each, MaxMin) for each in built.modules())
        return
    assert {key: each.shape for key, each in done.model.state_dict().items()} == {
        key: each.shape for key, each in built.state_dict().items()
    }
    built.load_state_dict(done.model.state_dict())
    assert torch.equal(built.eval()(x), done.model(x))


def test_old_columns_come_first_and_the_negative_parts_behind() -> None:
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(3 * 4, 5))
    new = convert(model, torch.randn(2, 2, 4, 4)).model
    assert torch.equal(new[3].weight[:, :12], model[3].weight)
    assert new[3].weight.shape == (5, 24)
    assert not new[3].weight[:, 12:].any()
    assert (new[3].in_features, new[3].out_features) == (24, 5)
    assert torch.equal(new[0].weight, model[0].weight)


def test_in_a_concatenation_each_part_has_its_own_new_columns() -> None:
    make, shape = NETWORKS["concatenated"]
    model = make()
    new = convert(model, torch.randn(shape)).model
    # x (2), a (4 + 4), act(two) (3 + 3), a once more
    old = [*range(2), *range(2, 6), *range(10, 13), *range(16, 20)]
    assert new.other.weight.shape[1] == 24
    assert torch.equal(new.other.weight[:, old], model.other.weight)
    rest = sorted(set(range(24)) - set(old))
    assert not new.other.weight[:, rest].any()
    assert torch.equal(new.norm.weight[old], model.norm.weight)
    assert new.norm.running_var[rest].eq(1).all()
    assert new.norm.num_features == 24


def test_a_depthwise_convolution_gives_twice_as_many_channels() -> None:
    make, shape = NETWORKS["depthwise"]
    new = convert(make(), torch.randn(shape)).model
    layer = new[2]
    assert (layer.groups, layer.in_channels, layer.out_channels) == (8, 8, 16)
    assert layer.weight[8:].abs().min() > 0  # else, with zeros behind them, these channels would never learn
    assert new[5].in_channels == 32


@pytest.mark.parametrize(("example", "dim"), [((4, 6), 1), ((3, 7, 6), -1), ((2, 3, 7, 6), -1), ((6,), -1)])
def test_channels_are_doubled_on_the_axis_that_they_are_on(example: tuple[int, ...], dim: int) -> None:
    new = convert(nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4)), torch.randn(example)).model
    assert new[1].dim == dim
    assert new(torch.randn(example)).shape == (*example[:-1], 4)


def test_several_arguments_modes_and_memory_formats_stay() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.act, self.two = nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Conv2d(4, 3, 3)

        def forward(self, x: Tensor, *, shift: float = 0.0, beside: Tensor | None = None) -> Tensor:
            y = self.two(self.act(self.one(x)))
            return y + shift if beside is None else y + beside

    model = Two().to(memory_format=torch.channels_last)
    model.two.eval()
    model.one.weight.requires_grad_(False)
    x = torch.randn(2, 2, 6, 6)
    new = convert(model, (x,)).model
    assert new.training
    assert new.act.training
    assert not new.two.training
    assert not new.one.weight.requires_grad
    assert new.two.weight.is_contiguous(memory_format=torch.channels_last)
    assert not new.two.weight.is_contiguous()


def test_parts_that_are_skipped_stay() -> None:
    model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Sequential(nn.Linear(5, 4), nn.ReLU()), nn.Linear(4, 3))
    done = convert(model, torch.randn(2, 6), skip=("2",))
    assert done.activations == ("1",)
    assert isinstance(done.model[2][1], nn.ReLU)
    assert done.model[2][0].in_features == 10
    assert done.model[3].in_features == 4


def test_other_activations_are_replaced_where_asked_for_and_the_layers_drawn() -> None:
    model = nn.Sequential(nn.Linear(6, 5), nn.GELU(), nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3))
    done = convert(model, torch.randn(2, 6), activations=(nn.GELU, nn.Tanh))
    assert done.activations == ("1", "3")
    assert done.model[2].weight[:, 5:].abs().min() > 0
    assert not torch.equal(done.model[0].weight, model[0].weight)


def test_drawing_anew_starts_as_our_networks_start() -> None:
    model = build("mlp", (300,), 7, widths=[400, 500], batch_norm=True).double()
    stir(model)
    torch.manual_seed(3)
    new = convert(model, torch.randn(2, 300).double(), draw=True).model
    linear = [each for each in new.modules() if isinstance(each, nn.Linear)]
    for layer in linear[:-1]:
        assert layer.weight.std().item() == pytest.approx((2 / layer.in_features) ** 0.5, rel=0.02)
        assert not layer.bias.any()
    assert linear[1].in_features == 800
    assert 0.98 < linear[2].weight.abs().max().item() * 1000**0.5 <= 1  # torch's uniform start
    for norm in new.modules():
        if isinstance(norm, nn.BatchNorm1d):
            assert norm.running_var.eq(1).all()
            assert norm.weight.eq(1).all()
    torch.manual_seed(3)
    again = convert(model, torch.randn(2, 300).double(), draw=True).model
    assert all(torch.equal(one, other) for one, other in zip(new.parameters(), again.parameters(), strict=True))


@given(st.integers(0, 2**31), st.integers(1, 4), st.integers(1, 4), st.integers(1, 5))
def test_max_pooling_of_both_parts_is_the_maximum_and_the_minimum(
    seed: int, channels: int, window: int, times: int
) -> None:
    """B 3.3.3: (max(relu(x)), max(relu(-x))) = (relu(max(x)), relu(-min(x)))."""
    x = torch.randn(2, channels, window * times, window * times, generator=torch.Generator().manual_seed(seed))
    pooled = F.max_pool2d(MaxMin()(x), window)
    windows = x.unfold(2, window, window).unfold(3, window, window)
    by_hand = torch.cat([windows.amax((-2, -1)).relu(), (-windows.amin((-2, -1))).relu()], 1)
    assert torch.equal(pooled, by_hand)


def test_what_the_caller_drew_next_is_what_he_draws_next() -> None:
    model, x = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Dropout(), nn.Linear(5, 4)), torch.randn(2, 6)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    convert(model, x)
    assert torch.equal(torch.rand(3), expected)
