"""What cannot be converted is named, with what to do; and nothing has changed."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from structlearn.maxmin import convert
from structlearn.models import build
from structlearn.regularizers import Dropout, Shade
from structlearn.scala import adopt


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


class Block(nn.Module):
    """A residual block, whose shortcut is what came in."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.inner, self.two = nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1)
        self.act = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.act(x + self.two(self.inner(self.one(x))))
        return y


class Functions(nn.Module):
    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.one, self.act, self.two = how, nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.one(x))
        match self.how:
            case "F":
                return self.two(F.relu(x))
            case "torch":
                return self.two(torch.relu(x))
            case "method":
                return self.two(x.relu())
            case _:
                return self.two(x.clone().relu_())


class Part(nn.Module):
    def __init__(self, way: str) -> None:
        super().__init__()
        self.way, self.one, self.act, self.two = way, nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 5)
        self.scale = nn.Parameter(torch.ones(5))
        self.end = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.act(self.one(x))
        match self.way:
            case "twice":
                return self.end(self.two(self.two(y)))
            case "scale":
                return self.end(y * self.scale)
            case "written down":
                return self.end(y.view(-1, 5))
            case "last ones":
                return self.end(y[:, -5:])
            case "answer":
                return y


def images() -> Tensor:
    return torch.randn(2, 3, 8, 8)


REFUSED = [
    (
        lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), Block(), nn.Flatten(), nn.LazyLinear(3)),
        images(),
        {},
        r"^2 \(Block\) cannot take the channels that MaxMin adds \(.*size.*\); give it what .* skip=\('1',\)$",
    ),
    (
        lambda: build("resnet18", (3, 8, 8), 5, width=0.1),
        images(),
        {},
        r"features\.1 \(Residual\) cannot take .* skip=\('features\.0\.2',\)",
    ),
    (
        lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3, groups=2), nn.Flatten()),
        images(),
        {},
        r"^2 \(Conv2d\) cannot take .*skip=\('1',\)$",
    ),
    (
        lambda: nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.LayerNorm(5), nn.Linear(5, 3)),
        torch.randn(2, 6),
        {},
        r"^2 \(LayerNorm\) cannot take .*skip=\('1',\)$",
    ),
    (
        lambda: nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.GRU(5, 3)),
        torch.randn(2, 6),
        {},
        r"^2 \(GRU\) cannot take .*skip=\('1',\)$",
    ),
    (
        lambda: adopt(build("mlp", (6,), 3, widths=[5])),
        torch.randn(2, 6),
        {},
        r"^head \(ScaledLinear\) cannot take",
    ),
    (lambda: Functions("F"), torch.randn(2, 6), {}, r"^the network itself \(Functions\) calls relu as a function"),
    (lambda: Functions("torch"), torch.randn(2, 6), {}, r"calls relu as a function, which cannot be exchanged"),
    (lambda: Functions("method"), torch.randn(2, 6), {}, r"self\.act = nn\.ReLU\(\), say\), or .*skip=\('',\)"),
    (lambda: Functions("in place"), torch.randn(2, 6), {}, r"calls relu as a function"),
    (
        lambda: nn.Sequential(nn.Linear(6, 6), nn.ReLU(), Functions("F")),
        torch.randn(2, 6),
        {},
        r"^2 \(Functions\) calls relu as a function.*skip=\('2',\)",
    ),
    (
        lambda: Part("twice"),
        torch.randn(2, 6),
        {},
        r"^the layer two is called several times, for inputs .*each a layer",
    ),
    (lambda: Part("scale"), torch.randn(2, 6), {}, r"^the network itself \(Part\) cannot take .*skip=\('act',\)"),
    (lambda: Part("written down"), torch.randn(2, 6), {}, r"answer, of shape \(2, 3\), has the shape \(4, 3\)"),
    (
        lambda: Part("last ones"),
        torch.randn(2, 6),
        {},
        r"network's answer changes: its forward pass counts on its chan",
    ),
    (
        lambda: Part("answer"),
        torch.randn(2, 6),
        {},
        r"shape \(2, 5\), has the shape \(2, 10\) with MaxMin: it comes fr",
    ),
    (
        lambda: nn.Sequential(nn.Linear(6, 5), nn.GELU(), nn.Linear(5, 3)),
        torch.randn(2, 6),
        {},
        r"no module in it is one of nn\.ReLU; name those that it has: activations=",
    ),
    (
        lambda: nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)),
        torch.randn(2, 7),
        {},
        r"cannot be run with the example: .*; give a batch as it takes it",
    ),
    (
        lambda: nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)),
        torch.randn(2, 6),
        {"keep": "parameter"},
        r"unknown keep 'parameter' \(did you mean 'parameters'\?\)",
    ),
    (
        lambda: nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)),
        torch.randn(2, 6),
        {"hold": ("0",)},
        r"hold=\('0',\) is for keep='parameters'",
    ),
    (
        lambda: nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)),
        torch.randn(2, 6),
        {"keep": "parameters", "draw": False},
        r"draw=False keeps the network's function, but with other widths it cannot stay",
    ),
    (
        lambda: nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)),
        torch.randn(2, 6),
        {"skip": ("7",)},
        r"unknown module to skip '7'",
    ),
]


@pytest.mark.parametrize("case", REFUSED, ids=lambda case: case[3][:40])
def test_it_is_refused_with_the_remedy(case) -> None:
    make, x, options, message = case
    model = make()
    if any(isinstance(each, nn.LazyLinear) for each in model.modules()):
        model(x)
    before = copy.deepcopy(model.state_dict())
    text = str(model)
    with pytest.raises(ValueError, match=message):
        convert(model, x, **options)
    assert str(model) == text
    assert all(torch.equal(each, before[key]) for key, each in model.state_dict().items())


def test_shared_weights_are_refused() -> None:
    model = nn.Sequential(nn.Linear(5, 5), nn.ReLU(), nn.Linear(5, 5))
    model[2].weight = model[0].weight
    with pytest.raises(ValueError, match=r"the layer 2 shares its weights with 0, but is to be widened alone"):
        convert(model, torch.randn(2, 5))


def test_what_a_message_says_to_skip_helps() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), Block(), Block(), nn.Flatten(), nn.Linear(144, 3))
    x = torch.randn(2, 3, 8, 8)
    done = convert(model, x, skip=("1", "2.act"))
    assert done.activations == ("2.inner", "3.inner", "3.act")
    torch.testing.assert_close(done.model(x), model(x))
    functions = Functions("F")
    done = convert(nn.Sequential(functions, nn.ReLU(), nn.Linear(4, 3)), torch.randn(2, 6), skip=("0",))
    assert done.activations == ("1",)


@pytest.mark.parametrize(
    "attach", [lambda net: Shade(net, torch.zeros(2, 4), strength=0.1), lambda net: Dropout(net, 0.5)]
)
def test_a_network_with_regularisers_is_converted_before_they_are_attached(attach):
    net = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
    regularizer = attach(net)
    with pytest.raises(ValueError, match="convert it first"):
        convert(net, torch.zeros(2, 4))
    regularizer.remove()
    attach(convert(net, torch.zeros(2, 4)).model)
