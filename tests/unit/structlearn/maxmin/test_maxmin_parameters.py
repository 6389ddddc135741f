"""MaxMin with as many parameters as ReLU: counts, widths, which units go, how layers start."""

from __future__ import annotations

import copy
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from structlearn.maxmin import MaxMin, convert
from structlearn.maxmin.match import Count, matched
from structlearn.models import build
from structlearn.structure import Plan, Structure

NETWORKS = {
    "mlp": ((3, 4, 5), {"widths": [40, 30, 20]}),
    "lenet": ((1, 14, 14), {}),
    "cnn": ((1, 12, 12), {"channels": [9, 10, 12], "hidden": [17]}),
    "vgg11": ((3, 32, 32), {"width": 0.2}),
    "googlenet": ((3, 8, 8), {"width": 0.1}),
    "densenet121": ((3, 8, 8), {"width": 0.2}),
    "wideresnet28_10": ((3, 8, 8), {"width": 0.05}),
    "mobilenet_v1": ((3, 8, 8), {"width": 0.2}),
}


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def count(model: nn.Module) -> int:
    return sum(each.numel() for each in model.parameters())


def small(name: str, **more: Any) -> tuple[nn.Module, torch.Tensor]:
    shape, options = NETWORKS[name]
    return build(name, shape, 5, **options, **more), torch.randn(2, *shape)


@pytest.mark.parametrize("name", NETWORKS)
def test_the_number_of_parameters_is_within_half_of_what_a_unit_has(name: str) -> None:
    model, x = small(name)
    done = convert(model, x, keep="parameters")
    assert done.parameters == count(done.model)
    assert done.parameters_before == count(model)
    structure, wide = Structure(done.model, x), Structure(convert(model, x).model, x)
    worth = []
    for set_name, size in structure.widths.items():
        if size > 1:
            less = copy.deepcopy(done.model)
            Structure(less, x).apply(Plan({set_name: tuple(range(size - 1))}))
            worth.append(done.parameters - count(less))
    assert abs(done.parameters - done.parameters_before) <= max(worth) / 2 + 1
    for set_name, size in structure.widths.items():  # one factor, rounded down or up
        share = done.factor * wide.widths[set_name]
        assert size in {max(1, int(share)), max(1, int(share)) + 1}
    assert done.model(x).isfinite().all()
    answer = done.model(x)
    (answer * torch.randn_like(answer)).sum().backward()


@settings(max_examples=20, deadline=None)
@given(st.data())
def test_a_count_without_a_cut_is_that_of_the_cut(data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(["cnn", "lenet", "mobilenet_v1", "wideresnet28_10"]))
    model, x = small(name, activation="maxmin")
    structure = Structure(model, x)
    sizes = {each: data.draw(st.integers(1, width), label=each) for each, width in structure.widths.items()}
    told = Count(structure)(sizes)
    structure.apply(Plan({each: tuple(range(size)) for each, size in sizes.items()}))
    assert told == count(model)


def test_only_filters_vary_where_the_hidden_layers_are_held() -> None:
    model, x = small("cnn")
    hidden = next(name for name, layer in model.named_modules() if isinstance(layer, nn.Linear) and name != "head")
    done = convert(model, x, keep="parameters", hold=(hidden,))
    assert done.model.get_submodule(hidden).out_features == 17
    filters = [each.out_channels for each in done.model.modules() if isinstance(each, nn.Conv2d)]
    assert all(less < more for less, more in zip(filters, [9, 10, 12], strict=True))
    assert abs(done.parameters - count(model)) < 0.05 * count(model)


def test_a_unit_that_goes_takes_both_of_its_parts_along() -> None:
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.ReLU(), nn.BatchNorm2d(4), nn.Conv2d(4, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 5)
    ).double()
    x = torch.randn(2, 2, 6, 6).double()
    new = convert(model, x).model
    for parameter in new.parameters():
        nn.init.normal_(parameter)
    before = copy.deepcopy(new)
    structure = Structure(new, x)
    assert structure.widths == {"0": 4, "3": 3}
    structure.apply(Plan({"0": (0, 2, 3), "3": (2, 0)}))
    kept = [0, 2, 3, 4, 6, 7]  # without 1 and 1 + 4
    assert torch.equal(new[3].weight, before[3].weight[[2, 0]][:, kept])
    assert torch.equal(new[2].weight, before[2].weight[kept])
    places = torch.arange(24).view(6, 4)[[2, 0, 5, 3]].flatten()  # 2, 0 and 2 + 3, 0 + 3, with all of their places
    assert torch.equal(new[6].weight, before[6].weight[:, places])


def test_drawn_layers_keep_the_second_moment() -> None:
    model = build("mlp", (800,), 5, widths=[800, 900, 1000])
    new = convert(model, torch.randn(2, 800), keep="parameters").model
    x, seen = torch.randn(64, 800), []
    linear = [each for each in new.features if isinstance(each, nn.Linear)]
    for layer in linear:
        layer.register_forward_hook(lambda _, __, y: seen.append(y.detach().square().mean().item()))
    new(x)
    assert seen[0] == pytest.approx(2, rel=0.1)  # the input is not activated
    assert all(after / before == pytest.approx(1, rel=0.1) for before, after in pairwise(seen))
    assert not any(layer.bias.any() for layer in linear)


def test_any_target_can_be_met_on_the_way_from_smallest_to_largest() -> None:
    model, x = small("cnn", activation="maxmin")
    structure = Structure(model, x)
    counted = Count(structure)
    least, most = counted(dict.fromkeys(structure.widths, 1)), counted(structure.widths)
    one = counted({**structure.widths, "features.10": 16})
    dearest = max(most - counted({**structure.widths, name: size - 1}) for name, size in structure.widths.items())
    assert 0 < most - one <= dearest
    for target in range(least, most, (most - least) // 37):
        plan, factor = matched(structure, target, ())
        sizes = {name: len(plan.keep.get(name, range(size))) for name, size in structure.widths.items()}
        assert abs(counted(sizes) - target) <= dearest / 2 + 1
        assert 0 <= factor <= 1
    assert matched(structure, most, ()) == (Plan(), 1.0)


def test_a_network_without_room_is_told_so() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 400), nn.ReLU(), nn.Linear(400, 2))
    with pytest.raises(
        ValueError, match=r"cannot have 2411 parameters: with one unit .* besides 2, which are held, it h"
    ):
        convert(model, torch.randn(4, 2), keep="parameters", hold=("2",))
    with pytest.raises(ValueError, match=r"hold: no hidden layer '4' has units that could be cut; use some of: 0, 2"):
        convert(model, torch.randn(4, 2), keep="parameters", hold=("4",))


def test_converted_networks_train() -> None:
    model = build("mlp", (2,), 2, widths=[16, 16])
    x = torch.randn(256, 2)
    y = (x.prod(1) > 0).long()  # a problem that no line solves
    net = convert(model, x, keep="parameters").model
    assert any(isinstance(each, MaxMin) for each in net.modules())
    optimizer = torch.optim.Adam(net.parameters(), lr=0.02)
    for _ in range(150):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        optimizer.step()
    assert (net(x).argmax(1) == y).float().mean() > 0.95
