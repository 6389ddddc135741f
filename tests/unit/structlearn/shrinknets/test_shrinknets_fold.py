"""Switches folded into linear maps: the same function, and none left; never across a non-linearity."""

import copy
import runpy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from structlearn.models import build
from structlearn.shrinknets import Switch, adopt, fold

stir = runpy.run_path(str(Path(__file__).parents[3] / "support" / "surgery.py"))["stir"]

IMAGES = (3, 32, 32)
NETWORKS = {
    "mlp": (build, ("mlp", (1, 8, 8), 10), {"widths": [30, 20]}),
    "mlp with BatchNorm": (build, ("mlp", (1, 8, 8), 10), {"widths": [30, 20], "batch_norm": True}),
    "lenet": (build, ("lenet", (1, 28, 28), 10), {}),
    "vgg11": (build, ("vgg11", IMAGES, 10), {"width": 0.2}),
    "resnet18": (build, ("resnet18", IMAGES, 10), {"width": 0.2}),
    "mobilenet_v1": (build, ("mobilenet_v1", IMAGES, 10), {"width": 0.2}),
    "mobilenet_v2": (build, ("mobilenet_v2", IMAGES, 10), {"width": 0.2, "activation": "relu6"}),
    "densenet121": (build, ("densenet121", IMAGES, 10), {"width": 0.2}),
    "googlenet": (build, ("googlenet", IMAGES, 10), {"width": 0.1}),
}


def plain(net: nn.Module) -> bool:
    return not any(isinstance(module, Switch) for module in net.modules()) and not any(
        module._forward_hooks for module in net.modules()
    )


def assert_equal(one: Tensor, other: Tensor) -> None:
    """To 1e-6 of the largest output: in double precision, where rounding is far below."""
    assert (one - other).abs().max() <= 1e-6 * other.abs().max()


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("init", ["positive", "normal"])
@pytest.mark.parametrize("mode", ["eval", "train"])
def test_the_function_stays(name, init, mode) -> None:
    torch.manual_seed(0)
    make, arguments, options = NETWORKS[name]
    net = stir(make(*arguments, **options)).double()
    before = set(net.state_dict())
    x = torch.randn(4, *arguments[1], dtype=torch.float64)
    adopt(net, x, init=init)
    for module in net.modules():
        if isinstance(module, Switch):
            module.alive[::3] = 0
    net.train(mode == "train")
    expected = copy.deepcopy(net)(x)
    assert expected.abs().max() > 0
    folded = fold(net)
    assert folded is net
    assert plain(net)
    assert set(net.state_dict()) == before
    assert_equal(net(x), expected)


STANDING = {
    "behind a linear layer": nn.Sequential(nn.Linear(4, 6), Switch(6, axis=-1), nn.ReLU(), nn.Linear(6, 3)),
    "behind a BatchNorm": nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), Switch(6), nn.ReLU(), nn.Linear(6, 3)),
    "on the input": nn.Sequential(Switch(4, axis=-1), nn.Linear(4, 3)),
    "behind an activation": nn.Sequential(
        nn.Linear(4, 6), nn.Tanh(), Switch(6, axis=-1), nn.Dropout(0.0), nn.Linear(6, 3)
    ),
    "before a convolution": nn.Sequential(
        nn.Unflatten(1, (4, 1, 1)), Switch(4), nn.Conv2d(4, 3, 3, padding=1), nn.Flatten()
    ),
    "before a grouped convolution": nn.Sequential(
        nn.Unflatten(1, (4, 1, 1)), nn.Sigmoid(), Switch(4), nn.Conv2d(4, 6, 3, padding=1, groups=2), nn.Flatten()
    ),
    "before a depthwise convolution": nn.Sequential(
        nn.Unflatten(1, (4, 1, 1)), nn.Sigmoid(), Switch(4), nn.Conv2d(4, 8, 1, groups=4), nn.Flatten()
    ),
    "through a flattened map": nn.Sequential(
        nn.Unflatten(1, (1, 2, 2)), nn.Conv2d(1, 5, 1), nn.ReLU(), Switch(5), nn.AvgPool2d(1), nn.Flatten(),
        nn.Linear(20, 3),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", STANDING)
def test_a_switch_by_itself_goes_to_its_neighbour(name) -> None:
    torch.manual_seed(0)
    net = stir(copy.deepcopy(STANDING[name])).double()
    (switch,) = [module for module in net if isinstance(module, Switch)]
    switch.theta.data.normal_()
    switch.alive[1] = 0
    x = torch.randn(5, 4, dtype=torch.float64)
    expected = net(x)
    fold(net)
    assert plain(net)
    assert_equal(net(x), expected)


class Fork(nn.Module):
    """One switch, two layers behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.switch, self.one, self.other = Switch(4, axis=-1), nn.Linear(4, 3), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.switch(x.tanh())
        return self.one(x).relu() + self.other(x)


def test_a_switch_goes_into_all_layers_behind_it() -> None:
    net, x = Fork().double(), torch.randn(5, 4, dtype=torch.float64)
    expected = net(x)
    assert_equal(fold(net)(x), expected)
    assert plain(net)


def test_a_layer_that_others_use_too_is_left_alone() -> None:
    """The linear layer's answer goes past the switch, as well: so it goes forward."""

    class Past(Fork):
        def forward(self, x: Tensor) -> Tensor:
            x = self.first(x)
            return self.one(self.switch(x)) + x[:, :3]

    net, x = Past().double(), torch.randn(5, 4, dtype=torch.float64)
    net.first = nn.Linear(4, 4).double()
    weight, expected = net.first.weight.clone(), net(x)
    assert_equal(fold(net)(x), expected)
    assert torch.equal(net.first.weight, weight)


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.switch, self.layer = Switch(4, axis=-1), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(self.switch(self.layer(x)))


class Branching(Twice):
    def forward(self, x: Tensor) -> Tensor:
        return self.layer(self.switch(x)) if x.sum() > 0 else x


def tied() -> nn.Module:
    net = nn.Sequential(nn.Linear(4, 4), Switch(4, axis=-1), nn.ReLU(), nn.Linear(4, 4))
    net[3].weight = net[0].weight
    return net


@pytest.mark.parametrize(
    ("net", "words"),
    [
        (nn.Sequential(nn.Linear(4, 6), Switch(6), nn.ReLU()), "give it axis=-1"),
        (nn.Sequential(nn.BatchNorm1d(6), Switch(6, axis=-1), nn.ReLU()), "give it axis=1"),
        (nn.Sequential(nn.ReLU(), Switch(6), nn.Linear(6, 3)), "followed by _2"),
        (nn.Sequential(nn.Linear(4, 6), nn.ReLU(), Switch(6), nn.ReLU(), nn.Linear(6, 3)), "cannot cross a non-lin"),
        (nn.Sequential(nn.ReLU(), Switch(6), nn.MaxPool1d(2), nn.Conv1d(6, 3, 1)), "MaxPool1d"),
        (nn.Sequential(nn.ReLU(), Switch(4)), "followed by output"),
        (nn.Sequential(nn.BatchNorm1d(4, affine=False), Switch(4), nn.Linear(4, 3)), "affine=False"),
        (Twice(), "more than once"),
        (Branching(), "has no graph"),
        (tied(), "serve another layer"),
    ],
)
def test_what_cannot_be_folded_is_told_and_left_as_it_was(net, words) -> None:
    before = {name: value.clone() for name, value in net.state_dict().items()}
    with pytest.raises(ValueError, match=words):
        fold(net)
    assert not plain(net)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_a_positive_switch_before_relu_and_pool_goes_back_not_forward() -> None:
    """It would be exact to cross; S says never, so the weights behind the ReLU stay as they are."""
    net = nn.Sequential(nn.Linear(4, 6), Switch(6, axis=-1), nn.ReLU(), nn.Linear(6, 3))
    behind = net[3].weight.clone()
    fold(net)
    assert torch.equal(net[3].weight, behind)


def test_nothing_to_fold_changes_nothing() -> None:
    net = nn.Linear(3, 2)
    weight = net.weight.clone()
    assert fold(net) is net
    assert torch.equal(net.weight, weight)
