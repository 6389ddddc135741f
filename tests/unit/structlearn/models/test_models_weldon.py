"""WELDON's pooling: against numpy, and with every method that takes a network."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, fx, nn

from structlearn.alrao import SGD, Alrao
from structlearn.models import Net, build
from structlearn.models.pooling import Weldon
from structlearn.scala import adopt, unscaled
from structlearn.structure import Plan, Structure, verify
from structlearn.units import units

if TYPE_CHECKING:
    from collections.abc import Callable

    OnMeta = Callable[..., Net]

# Width, and the smallest image of which 2 x 2 positions or more are left.
NETWORKS = {
    "resnet18": (0.0625, 16),
    "resnet50": (0.03125, 16),
    "wideresnet28_10": (0.0125, 8),
    "googlenet": (0.0625, 8),
    "densenet121": (0.0625, 16),
    "mobilenet_v1": (0.0625, 32),
    "mobilenet_v2": (0.125, 16),
}


def network(name: str, **options: Any) -> Net:
    width, side = NETWORKS[name]
    return build(name, (3, side, side), 5, width=width, pooling="weldon", **options).eval()


def images(name: str, count: int = 4) -> Tensor:
    side = NETWORKS[name][1]
    return torch.randn(count, 3, side, side)


@given(st.integers(0, 2**31), st.integers(1, 3), st.integers(1, 4), st.integers(1, 4), st.integers(1, 4), st.data())
def test_the_pooling_is_the_mean_of_the_largest_plus_that_of_the_smallest(
    seed: int, batch: int, classes: int, height: int, wide: int, data: st.DataObject
) -> None:
    regions = data.draw(st.integers(1, height * wide))
    scores = np.random.default_rng(seed).normal(size=(batch, classes, height, wide))
    ranked = np.sort(scores.reshape(batch, classes, -1), axis=2)
    by_hand = ranked[..., -regions:].mean(2) + ranked[..., :regions].mean(2)
    np.testing.assert_allclose(Weldon(regions)(torch.from_numpy(scores)).numpy(), by_hand, rtol=1e-12, atol=1e-12)


def test_one_region_is_max_plus_min_and_all_regions_are_twice_the_mean() -> None:
    scores = torch.randn(3, 4, 5, 6, dtype=torch.float64)
    assert torch.equal(Weldon()(scores), scores.amax((2, 3)) + scores.amin((2, 3)))
    torch.testing.assert_close(Weldon(30)(scores), 2 * scores.mean((2, 3)))


def test_gradients_are_those_of_finite_differences() -> None:
    scores = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(Weldon(3), (scores,))  # the two ends overlap in two of four positions


@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_that_ends_in_a_mean_takes_it(name: str) -> None:
    model, x = network(name, regions=2), images(name)
    maps = model.features(x)
    assert maps.dim() == 4
    assert maps.shape[2:].numel() >= 4
    assert isinstance(model.head, nn.Conv2d)
    assert model.training is False
    assert model.head.kernel_size == (1, 1)
    assert torch.equal(model.pool(model.head(maps)), model(x))
    weight, bias = model.head.weight.flatten(1), model.head.bias
    by_hand = (maps.flatten(2).transpose(1, 2) @ weight.T + bias).sort(1).values
    torch.testing.assert_close(model(x), by_hand[:, :2].mean(1) + by_hand[:, -2:].mean(1), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(fx.symbolic_trace(model)(x), model(x))


@pytest.mark.parametrize("name", NETWORKS)
def test_it_has_as_many_parameters_as_with_the_mean(name: str, on_meta: OnMeta) -> None:
    mean, weldon = (on_meta(name, (3, 32, 32), 10, pooling=pooling) for pooling in ("mean", "weldon"))
    assert sum(each.numel() for each in mean.parameters()) == sum(each.numel() for each in weldon.parameters())
    assert mean.training
    assert weldon.training
    assert isinstance(mean.head, nn.Linear)
    assert isinstance(mean.pool, nn.Identity)


def test_refusals_say_what_to_do() -> None:
    with pytest.raises(ValueError, match=r"unknown pooling 'wildon' \(did you mean 'weldon'\?\); use one of: mean, w"):
        build("resnet18", (3, 8, 8), 5, pooling="wildon")
    with pytest.raises(ValueError, match=r"pooling is 'mean' and regions 2; give pooling='weldon', or leave regions"):
        build("resnet18", (3, 8, 8), 5, regions=2)
    with pytest.raises(ValueError, match=r"regions must be a whole number of at least 1, got 0"):
        build("resnet18", (3, 8, 8), 5, width=0.05, pooling="weldon", regions=0)
    with pytest.raises(ValueError, match=r"the 5 largest .* but the maps have 4 positions; give fewer regions, or lar"):
        network("wideresnet28_10", regions=5)


def test_the_images_layout_in_memory_does_not_matter() -> None:
    model, x = network("wideresnet28_10"), images("wideresnet28_10")
    other = copy.deepcopy(model).to(memory_format=torch.channels_last)
    torch.testing.assert_close(other(x.contiguous(memory_format=torch.channels_last)), model(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["wideresnet28_10", "resnet18", "mobilenet_v2"])
def test_pruning_sees_its_units_and_leaves_its_classes(name: str) -> None:
    model, x = network(name), images(name)
    verify(model, x)
    structure = Structure(model, x)
    assert structure.fixed["head"] == "they are the network's answer"
    (last,) = [
        each for each in structure.sets.values() if ("head.weight", "in") in {(p.tensor, p.role) for p in each.places}
    ]
    structure.apply(Plan({last.name: (1, 0)}))
    assert model.head.in_channels == 2
    assert model(x).shape == (4, 5)


def test_alrao_mixes_its_heads_after_the_pooling() -> None:
    model, x = network("wideresnet28_10", regions=2), images("wideresnet28_10")
    net = Alrao(copy.deepcopy(model), heads=3).eval()
    assert net.head == "head"
    answers = []
    for number in range(3):
        model.head = net.heads.plain(number)
        answers.append(model(x).log_softmax(1))
    torch.testing.assert_close(net(x).exp(), torch.stack(answers).exp().mean(0), rtol=1e-4, atol=1e-6)
    net.train()
    optimizer, y = SGD(net), torch.randint(0, 5, (4,))
    before = net.heads.weight.clone()
    net.loss(net(x), y).backward()
    optimizer.step()
    assert all((net.heads.weight[number] != before[number]).any() for number in range(3))
    assert isinstance(net.best().head, nn.Conv2d)


def test_scala_scales_the_head_s_inputs_and_gives_it_back() -> None:
    model, x = network("wideresnet28_10"), images("wideresnet28_10")
    said = model(x)
    adopt(model, keep_function=True)
    assert model.head.scale.shape == (model.head.in_channels,)
    assert model.head.s2 == 1
    torch.testing.assert_close(model(x), said, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(unscaled(model)(x), said, rtol=1e-3, atol=1e-4)


def test_its_units_are_those_of_the_network_with_the_mean(on_meta: OnMeta) -> None:
    mean, weldon = (on_meta("resnet18", (3, 32, 32), 10, pooling=pooling) for pooling in ("mean", "weldon"))
    assert units(mean).layers == units(weldon).layers
