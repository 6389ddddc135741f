"""Where switches go in the networks of the zoo and in others, and where not."""

import copy

import pytest
import torch
from torch import Tensor, nn

from structlearn.models import build
from structlearn.shrinknets import Switch, adopt
from structlearn.shrinknets.place import places
from structlearn.structure import Structure

IMAGES = (3, 32, 32)


def behind(model: nn.Module) -> list[str]:
    """The layers that have a switch behind them."""
    return [name.removesuffix(".switch") for name, module in model.named_modules() if isinstance(module, Switch)]


def test_mlp_behind_each_hidden_layer_not_behind_the_scores() -> None:
    net = adopt(build("mlp", (1, 8, 8), 10, widths=[9, 7]), torch.randn(2, 1, 8, 8))
    assert behind(net) == ["features.1", "features.3"]
    assert net.features[1].switch.axis == -1


def test_a_batch_norm_comes_before_the_switch() -> None:
    net = adopt(build("mlp", (6,), 10, widths=[9, 7], batch_norm=True), torch.randn(2, 6))
    assert behind(net) == ["features.2", "features.5"]
    net = adopt(build("vgg11", IMAGES, 10, width=0.1), torch.randn(2, *IMAGES))
    assert len(behind(net)) == 8
    for name in behind(net):
        assert isinstance(net.get_submodule(name), nn.BatchNorm2d)


def test_residual_sums_have_none() -> None:
    net = adopt(build("resnet18", IMAGES, 10, width=0.1), torch.randn(2, *IMAGES))
    assert behind(net) == [f"features.{block}.branch.0.1" for block in range(1, 9)]
    net = adopt(build("wideresnet28_10", IMAGES, 10, width=0.025), torch.randn(2, *IMAGES))
    structure = Structure(net, torch.randn(2, *IMAGES))
    for coupled in structure.sets.values():
        makers = {place.tensor for place in coupled.places if place.role == "out"}
        switches = [place.tensor for place in coupled.places if place.tensor.endswith(".theta")]
        assert (len(makers) > 1) <= (not switches)
    assert len(behind(net)) >= 12


def test_behind_a_depthwise_convolution_and_not_before_it() -> None:
    """The BatchNorm behind it would cancel the scale of a switch before it."""
    net = adopt(build("mobilenet_v1", IMAGES, 10, width=0.1), torch.randn(2, *IMAGES))
    for name in behind(net)[:-1]:
        convolution = net.get_submodule(name.rpartition(".")[0])[0]
        assert convolution.groups == convolution.in_channels > 1
    assert len(behind(net)) == 14
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 3, groups=4), nn.ReLU(), nn.Conv2d(4, 5, 1))
    assert behind(adopt(net, torch.randn(1, *IMAGES))) == ["0"]


def test_dense_layers_have_theirs_behind_the_norm_they_begin_with() -> None:
    net = adopt(build("densenet121", IMAGES, 10, width=0.1), torch.randn(2, *IMAGES))
    structure = Structure(net, torch.randn(2, *IMAGES))
    assert not [
        name for name, module in net.named_modules() if isinstance(module, nn.Conv2d) and hasattr(module, "switch")
    ]
    assert all(any(place.tensor.endswith(".theta") for place in each.places) for each in structure.sets.values())
    first = structure.sets["features.0"]
    assert sum(place.tensor.endswith(".theta") for place in first.places) == 7  # six layers and what follows them


class Detour(nn.Module):
    """Units that reach one layer by a BatchNorm and another without."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Linear(4, 6), nn.BatchNorm1d(6)
        self.one, self.other, self.head = nn.Linear(6, 5), nn.Linear(6, 5), nn.Linear(10, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.head(torch.cat([self.one(self.norm(x).relu_()), self.other(x.relu())], 1).relu())


def test_every_way_has_its_switch() -> None:
    assert behind(adopt(Detour(), torch.randn(3, 4))) == ["first", "norm", "one", "other"]


def test_a_unit_of_which_one_way_has_no_room_has_none() -> None:
    """The sum's channels are fixed together with the other term, so the way into the sum cannot have one."""

    class Half(Detour):
        def forward(self, x: Tensor) -> Tensor:
            wide = torch.cat([self.norm(self.first(x)), self.first(x)], 1)
            return self.head(self.mixed(torch.cat([wide, x], 1)).relu())

    net = Half()
    net.mixed, net.head = nn.BatchNorm1d(16), nn.Linear(16, 3)
    with pytest.raises(ValueError, match="no place for a switch"):
        adopt(net, torch.randn(3, 4))


def test_names_and_example_stay_as_they_were() -> None:
    net = build("lenet", (1, 28, 28), 10)
    before, training = set(net.state_dict()), net.training
    x = torch.randn(2, 1, 28, 28)
    same = x.clone()
    adopt(net, x)
    assert before < set(net.state_dict())
    assert {name for name in net.state_dict() if name not in before} == {
        f"{name}.switch.{part}" for name in behind(net) for part in ("theta", "alive", "mean", "variance", "held")
    }
    assert net.training == training
    assert torch.equal(x, same)


def test_statistics_stay_as_they_were() -> None:
    net = build("vgg11", IMAGES, 10, width=0.1)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    adopt(net, torch.randn(2, *IMAGES))
    for name, value in before.items():
        assert torch.equal(net.state_dict()[name], value)
    assert net.training
    assert not any(module._forward_pre_hooks for module in net.modules())


def test_in_place_activations_are_no_obstacle() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True), nn.Conv2d(4, 5, 3), nn.ReLU(inplace=True))
    net = nn.Sequential(net, nn.Flatten(), nn.Linear(5 * 28 * 28, 3))
    assert behind(adopt(net, torch.randn(2, *IMAGES))) == ["0.0", "0.2"]


@pytest.mark.parametrize(
    ("net", "example", "words"),
    [
        (lambda: nn.Linear(4, 3), torch.randn(2, 4), "no place for a switch"),
        (lambda: build("lstm", (5,), 10, hidden=4), torch.zeros(2, 5, dtype=torch.int64), "no place for a switch"),
        (lambda: adopt(build("mlp", (4,), 3), torch.randn(2, 4)), torch.randn(2, 4), "has switches already"),
    ],
)
def test_a_mistake_is_told(net, example, words) -> None:
    with pytest.raises(ValueError, match=words):
        adopt(net(), example)


def test_cut_switches_are_whole() -> None:
    """Its state goes with each channel, as a mask of its numbers shows."""
    net = adopt(build("vgg11", IMAGES, 10, width=0.2), torch.randn(2, *IMAGES), init="normal")
    structure = Structure(net, torch.randn(2, *IMAGES))
    switches = {name: module for name, module in net.named_modules() if isinstance(module, Switch)}
    for switch in switches.values():
        for buffer in (switch.alive, switch.mean, switch.variance):
            buffer.copy_(torch.rand(len(buffer)))
    before = {name: value.clone() for name, value in net.state_dict().items() if ".switch." in name}
    from structlearn.structure import Plan

    keep = {name: tuple(range(size - 1, 0, -2)) for name, size in structure.widths.items()}
    structure.apply(Plan(keep))
    (name,) = [name for name in keep if name.startswith("features.2")]
    for part in ("theta", "alive", "mean", "variance"):
        key = f"features.2.1.switch.{part}"
        assert torch.equal(net.state_dict()[key], before[key][list(keep[name])])
    net.eval()(torch.randn(2, *IMAGES))


@pytest.mark.parametrize(
    ("layers", "shape"),
    [
        ((nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3)), (8,)),
        ((nn.Conv1d(3, 6, 3), nn.ReLU(), nn.Conv1d(6, 3, 3)), (3, 9)),
        ((nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 3, 3)), (3, 9, 9)),
        ((nn.Conv3d(3, 6, 3), nn.ReLU(), nn.Conv3d(6, 3, 3)), (3, 9, 9, 9)),
        ((nn.Conv2d(3, 6, 3), nn.InstanceNorm2d(6, affine=True), nn.ReLU(), nn.Conv2d(6, 3, 3)), (3, 9, 9)),
    ],
)
def test_a_network_with_switches_takes_one_sample_without_a_batch(layers, shape) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, *shape)
    model = adopt(nn.Sequential(*copy.deepcopy(layers)), x)
    assert [name for name, module in model.named_modules() if isinstance(module, Switch)]
    torch.testing.assert_close(model(x[0]), model(x)[0])


def test_layers_that_are_called_by_name_are_seen() -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two, self.head = nn.Linear(8, 6), nn.Linear(6, 5), nn.Linear(5, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(input=self.two(input=self.one(input=x).relu()).relu())

    assert places(Named(), torch.randn(2, 8)) == ["one", "two"]
