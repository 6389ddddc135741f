"""Units that do nothing are cut, and nothing changes (any network, random plans)."""

from __future__ import annotations

import copy
import runpy
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from torch.nn.utils import prune

from structlearn import scala, shrinknets
from structlearn.models import build
from structlearn.structure import Plan, Structure, verify
from structlearn.structure.verify import outgoing, random_plan, silence

support = runpy.run_path(str(Path(__file__).parents[3] / "support" / "surgery.py"))
stir, assert_equal, cut_and_compare = (support[name] for name in ("stir", "assert_equal", "cut_and_compare"))

PLANS = 100
NETS = {
    "mlp": ((1, 6, 6), {"widths": (9, 7)}),
    "lenet": ((1, 12, 12), {}),
    "vgg19": ((3, 32, 32), {"width": 0.06}),
    "googlenet": ((3, 16, 16), {"width": 0.06}),
    "resnet18": ((3, 8, 8), {"width": 0.06}),
    "resnet50": ((3, 8, 8), {"width": 0.06}),
    "mobilenet_v2": ((3, 16, 16), {"width": 0.15}),
    "densenet121": ((3, 8, 8), {"width": 0.15}),
    "lstm": ((5,), {"hidden": 6, "embedding": 5}),
}


def network(name: str, **options: object) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    shape, small = NETS[name]
    model = stir(build(name, shape, 4, **small, **options)).double()
    example = torch.randint(4, (2, *shape)) if name == "lstm" else torch.randn(2, *shape, dtype=torch.float64)
    return model, example


def switched(module: nn.Module, _: object, y: Tensor) -> Tensor:
    """A cell's output, (batch, T, cells), behind its switch."""
    answer: Tensor = module.switch(y)
    return answer


@pytest.mark.parametrize("variant", ["plain", "scala", "switches", "maxmin"])
@pytest.mark.parametrize("name", NETS)
def test_cutting_silent_units_changes_nothing(name: str, variant: str) -> None:
    """100 random plans each."""
    if name == "lstm" and variant == "maxmin":
        pytest.skip("its activation is the cell's")
    model, example = network(name, **({"activation": "maxmin"} if variant == "maxmin" else {}))
    if variant == "scala":
        scala.adopt(model, keep_function=True)
    elif variant == "switches" and name == "lstm":
        for recurrent in (model.features[1], model.features[2]):
            recurrent.switch = shrinknets.Switch(recurrent.lstm.hidden_size, axis=-1).double()
            recurrent.register_forward_hook(switched)  # by hand: a cell's output also goes back into it
    elif variant == "switches":
        shrinknets.adopt(model, example)
    cut_and_compare(model, example, PLANS)


@pytest.mark.parametrize("name", NETS)
def test_all_cuts_are_one_plan_from_the_start(name: str) -> None:
    """A checkpoint holds the plan: a network made anew takes the shape, the order of units, and then the weights."""
    model, example = network(name)
    fresh = copy.deepcopy(model)
    structure, chance = Structure(model, example), np.random.default_rng(1)
    for _ in range(4):
        structure.apply(random_plan(structure, chance))
    again = Structure(fresh, example)
    again.apply(Plan.from_dict(structure.plan.as_dict()))
    assert again.plan == structure.plan
    assert again.widths == structure.widths
    for (name_, one), other in zip(model.state_dict().items(), fresh.state_dict().values(), strict=True):
        assert torch.equal(one, other), name_
    assert_equal(fresh(example), model(example))


def test_layers_say_how_large_they_are() -> None:
    model, example = network("mobilenet_v2")
    structure = Structure(model, example)
    structure.apply(random_plan(structure, np.random.default_rng(2), every=1.0))
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            again = nn.Conv2d(module.in_channels, module.out_channels, module.kernel_size, groups=module.groups)
            assert again.weight.shape == module.weight.shape
        elif isinstance(module, nn.BatchNorm2d):
            assert module.num_features == len(module.weight)
        elif isinstance(module, nn.Linear):
            assert module.weight.shape == (module.out_features, module.in_features)


class Grouped(nn.Module):
    """Grouped and depthwise with a multiplier, transposed, grouped again; GroupNorm of single channels; PReLU."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv1d(2, 12, 3, padding=1)
        self.norm = nn.GroupNorm(12, 12)
        self.slope = nn.PReLU(12)
        self.grouped = nn.Conv1d(12, 18, 3, padding=1, groups=3)
        self.depthwise = nn.Conv1d(18, 36, 3, padding=1, groups=18)
        self.up = nn.ConvTranspose1d(36, 8, 3, stride=2)
        self.regrouped = nn.ConvTranspose1d(8, 6, 3, groups=2)
        self.last = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.slope(self.norm(self.first(x)))
        x = torch.tanh(self.depthwise(torch.sigmoid(self.grouped(x))))
        x = F.gelu(self.regrouped(F.silu(self.up(x))))
        return self.last(x.mean(2))


def test_groups_of_one_input_keep_their_number() -> None:
    """What has shrunk to one input a group looks like a depthwise convolution, and is none."""
    model, example = Grouped().double(), torch.randn(2, 2, 9, dtype=torch.float64)
    structure = Structure(model, example)
    structure.apply(Plan({"first": (2,)}))
    assert (model.grouped.groups, model.grouped.in_channels) == (3, 3)
    structure.apply(Plan({"grouped": (5, 0, 3)}))
    assert (model.grouped.groups, model.grouped.out_channels) == (3, 9)
    assert model(example).shape == (2, 3)


class Mobile(nn.Module):
    """Squeeze and excitation, shuffled channels, instance normalisation, activations that torch does not tag."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 12, 3)
        self.norm = nn.InstanceNorm2d(12, affine=True)
        self.squeeze, self.excite = nn.Linear(12, 4), nn.Linear(4, 12)
        self.grouped = nn.Conv2d(12, 8, 3, groups=2)
        self.shuffle = nn.ChannelShuffle(2)
        self.last = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.hardswish(self.norm(self.first(x)))
        gate = torch.sigmoid(self.excite(F.hardswish(self.squeeze(x.mean((2, 3))))))
        x = self.grouped(self.shuffle(x * gate[:, :, None, None]))
        y: Tensor = self.last(F.logsigmoid(x).amax((2, 3)))
        return y


class Raw(nn.Module):
    """Parameters without layers, a gate, an einsum, a tied weight, and a shape that is looked up."""

    def __init__(self) -> None:
        super().__init__()
        self.into = nn.Parameter(torch.randn(7, 5))
        self.gate = nn.Linear(5, 14)
        self.scale = nn.Parameter(torch.randn(7))
        self.table = nn.Parameter(torch.randn(4, 7))
        self.wide = nn.Linear(7, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.einsum("bi,oi->bo", x, self.into) * self.scale + F.glu(self.gate(x))
        x = x + self.wide(x).relu() @ self.wide.weight
        return x.view(x.shape[0], x.shape[1], 1).flatten(1) @ self.table.t()


class Cells(nn.Module):
    """Recurrent layers of several kinds: two layers, both directions, a projection, a cell."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(9, 6)
        self.lstm = nn.LSTM(6, 5, 2, batch_first=True, bidirectional=True)
        self.small = nn.LSTM(10, 8, proj_size=3, batch_first=True)
        self.gru = nn.GRU(3, 4, batch_first=True)
        self.rnn = nn.RNN(4, 5, batch_first=True)
        self.head = nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.small(self.lstm(self.table(x))[0])[0]
        return self.head(self.rnn(self.gru(x)[0])[0])


class ByStep(nn.Module):
    """Cells that are called by hand, once each, from a state of zeros."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.gru, self.head = nn.LSTMCell(3, 5), nn.GRUCell(5, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.gru(self.lstm(x)[0]))


@pytest.mark.parametrize(
    ("kind", "example", "widths"),
    [
        (Grouped, torch.randn(2, 2, 9, dtype=torch.float64), {"first": 4, "grouped": 6, "up": 4, "regrouped": 3}),
        (Mobile, torch.randn(2, 3, 6, 6, dtype=torch.float64), {"first": 3, "squeeze": 4, "grouped": 4}),
        (Raw, torch.randn(3, 5, dtype=torch.float64), {"into": 7, "wide": 6}),
        (Cells, torch.arange(8).view(2, 4), {"table": 6, "lstm": 5, "small": 3, "gru": 4, "rnn": 5}),
        (ByStep, torch.randn(2, 3, dtype=torch.float64), {"lstm": 5, "gru": 4}),
    ],
)
def test_layers_that_no_model_here_has(kind: type[nn.Module], example: Tensor, widths: dict[str, int]) -> None:
    torch.manual_seed(0)
    model = stir(kind()).double()
    assert Structure(model, example).widths == widths
    cut_and_compare(model, example, PLANS)


class Random(nn.Module):
    """A network of random layers and ways between them."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        chance = np.random.default_rng(seed)
        self.layers = nn.ModuleList()
        self.steps: list[tuple[str, int, int]] = []
        sizes = [4]
        for _ in range(int(chance.integers(3, 12))):
            kind = str(chance.choice(["linear", "linear", "norm", "cat", "sum", "maxmin", "conv", "repeat"]))
            one, other = (int(chance.integers(len(sizes))) for _ in range(2))
            match kind:
                case "linear":
                    self.layers.append(nn.Linear(sizes[one], int(chance.integers(1, 7))))
                    sizes.append(self.layers[-1].out_features)
                case "norm":
                    self.layers.append(nn.BatchNorm1d(sizes[one]))
                    sizes.append(sizes[one])
                case "conv":
                    self.layers.append(nn.Conv1d(sizes[one], 2 * sizes[one], 1, groups=sizes[one]))
                    sizes.append(2 * sizes[one])
                case "cat":
                    sizes.append(sizes[one] + sizes[other])
                case "sum":
                    same = [at for at, size in enumerate(sizes) if size == sizes[one]]
                    other = int(chance.choice(same))
                    sizes.append(sizes[one])
                case "maxmin" | "repeat":
                    sizes.append(2 * sizes[one])
            self.steps.append((kind, one, other))
        self.head = nn.Linear(sum(sizes), 2)

    def forward(self, x: Tensor) -> Tensor:
        seen, layers = [x], iter(self.layers)
        for kind, one, other in self.steps:
            x = seen[one]
            match kind:
                case "linear" | "norm":
                    x = next(layers)(x)
                case "conv":
                    x = next(layers)(x[..., None]).flatten(1)
                case "cat":
                    x = torch.cat([x, seen[other]], 1)
                case "sum":
                    x = (x + seen[other]).tanh()
                case "maxmin":
                    x = torch.cat([x.relu(), (-x).relu()], 1)
                case "repeat":
                    x = x[:, :, None].expand(-1, -1, 2).flatten(1)
            seen.append(x)
        answer: Tensor = self.head(torch.cat(seen, 1))
        return answer


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 2**31), st.integers(0, 2**31))
def test_random_networks(seed: int, draw: int) -> None:
    torch.manual_seed(seed)
    model = stir(Random(seed)).double()
    example = torch.randn(3, 4, dtype=torch.float64)
    structure = Structure(model, example)
    plan = random_plan(structure, np.random.default_rng(draw))
    silence(outgoing(structure, plan))
    before = model(example)
    structure.apply(plan)
    assert_equal(model(example), before)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**31), st.integers(0, 2**31))
def test_an_order_is_no_change_of_the_function(seed: int, draw: int) -> None:
    """All units stay, in another order; and back."""
    torch.manual_seed(seed)
    model = stir(Random(seed)).double()
    example = torch.randn(3, 4, dtype=torch.float64)
    structure, before = Structure(model, example), model(example)
    weights = copy.deepcopy(model.state_dict())
    chance = np.random.default_rng(draw)
    order = {name: tuple(map(int, chance.permutation(size))) for name, size in structure.widths.items()}
    structure.apply(Plan(order))
    assert_equal(model(example), before)
    structure.apply(Plan({name: tuple(map(int, np.argsort(units))) for name, units in order.items()}))
    assert all(torch.equal(one, weights[name]) for name, one in model.state_dict().items())
    assert structure.plan == Plan({name: tuple(range(len(units))) for name, units in order.items()})


class Written(nn.Module):
    """A network that knows the size of a hidden layer."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.first, self.second, self.how = nn.Linear(3, 8), nn.Linear(8, 2), how

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        match self.how:
            case "view":
                x = x.view(-1, 8)
            case "mean":
                x = x - x.sum(1, keepdim=True) / 8
            case "number":
                x = x * (1 + len(self.first.weight))
        y: Tensor = self.second(x)
        return y


def test_a_network_that_cannot_be_cut_is_found_out() -> None:
    example = torch.randn(2, 3)
    verify(Written("not at all"), example)
    verify(Written("mean"), example)  # tied down: nothing of it is cut
    with pytest.raises(ValueError, match=r"it fails when its layers are smaller .* take sizes from tensors"):
        verify(Written("view"), example)
    with pytest.raises(ValueError, match="its answer changes when units are cut that do nothing"):
        verify(Written("number"), example)


def test_what_is_never_cut_is_said() -> None:
    assert Structure(Written("mean"), torch.randn(2, 3)).fixed == {
        "first": "aten.sum is over them",
        "second": "they are the network's answer",
    }
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    structure = Structure(layer, torch.randn(2, 5, 8))
    assert structure.widths == {"linear1": 16}
    assert set(structure.fixed) >= {"linear2", "self_attn.out_proj"}
    verify(layer, torch.randn(2, 5, 8))


def test_a_network_that_looks_at_numbers_is_run_as_it_is() -> None:
    class Looking(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(3, 8), nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            sign = 1 if float(x.abs().max()) > 0 else -1
            y: Tensor = self.second(sign * self.first(x))
            return y

    assert Structure(Looking(), torch.randn(2, 3)).widths == {"first": 8}


def test_an_example_that_does_not_fit_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"cannot be run with the example.*give a batch as it takes it"):
        Structure(nn.Linear(3, 2), torch.randn(2, 4))


@dataclass
class Answer:
    """What a network may answer with."""

    scores: Tensor
    beside: dict[str, Tensor]


class Made(nn.Module):
    """A hidden layer, and something done with it."""

    def __init__(self, what: str) -> None:
        super().__init__()
        self.what, self.first, self.second = what, nn.Linear(3, 8), nn.Linear(8, 4)
        self.wide, self.aside = nn.Conv1d(1, 1, 3, padding=1), nn.Linear(8, 2)
        self.register_buffer("centre", torch.zeros(8))
        self.shared = nn.ModuleDict({"one": Held(self.centre), "two": Held(self.centre)})

    def forward(self, x: Tensor) -> object:
        h = self.first(x)
        match self.what:
            case "answer":
                return Answer(self.second(h), {"more": self.aside(h)})
            case "nothing":
                return None
            case "cumsum":
                h = h.cumsum(1)
            case "pool":
                h = F.max_pool1d(h[:, None], 3, 1, 1)[:, 0]
            case "pad":
                h = F.pad(h, (1, 0))[:, 1:]
            case "space":
                h = self.wide(h[:, None]).mean(1)
            case "shared":
                h = self.shared["two"](self.shared["one"](h))
            case "in training":
                if self.training:
                    self.centre.mul_(0.9).add_(0.1 * h.mean(0))
                    return self.second(h), self.aside(h)
        return self.second(h)


class Held(nn.Module):
    """Adds a buffer that others hold, too."""

    def __init__(self, values: Tensor) -> None:
        super().__init__()
        self.register_buffer("values", values)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.values


def test_an_answer_of_any_kind_is_never_cut() -> None:
    structure = Structure(Made("answer"), torch.randn(2, 3))
    assert structure.widths == {"first": 8}
    assert set(structure.fixed) == {"second", "aside"}
    with pytest.raises(ValueError, match="no tensor in its answer"):
        Structure(Made("nothing"), torch.randn(2, 3))


@pytest.mark.parametrize("what", ["cumsum", "pool", "pad", "space"])
def test_units_whose_neighbours_matter_are_never_cut(what: str) -> None:
    structure = Structure(Made(what), torch.randn(2, 3))
    assert structure.widths == {}
    assert "first" in structure.fixed


def test_a_buffer_of_several_modules_is_cut_in_all_of_them() -> None:
    model = Made("shared").double()
    model.shared["one"].values = model.shared["two"].values = model.centre  # double() has made three of it
    example = torch.randn(2, 3, dtype=torch.float64)
    assert Structure(model, example).widths == {"first": 8}
    cut_and_compare(model, example, 10)
    Structure(model, example).apply(Plan({"first": (3, 1)}))
    assert model.shared["one"].values is model.shared["two"].values is model.centre


def test_what_is_used_in_training_only_is_cut_too() -> None:
    model = Made("in training").double()
    example = torch.randn(4, 3, dtype=torch.float64)
    structure = Structure(model, example)
    assert {place.tensor for place in structure.sets["first"].places} >= {"aside.weight", "centre"}
    plan = Plan({"first": (6, 0, 2)})
    model.train()
    silence(outgoing(structure, plan))
    before = model(example)
    structure.apply(plan)
    for one, other in zip(model(example), before, strict=True):
        assert_equal(one, other)


def test_masks_of_torch_are_cut() -> None:
    model = Made("plain").double()
    prune.random_unstructured(model.first, "weight", 0.5)
    prune.l1_unstructured(model.second, "weight", 0.3)
    example = torch.randn(2, 3, dtype=torch.float64)
    model(example)  # its weights are products now, which autograd has a history of
    verify(model, example)
    structure = Structure(model, example)
    masks = {name: buffer.clone() for name, buffer in model.named_buffers() if name.endswith("mask")}
    cut = structure.apply(Plan({"first": (5, 1)}))
    for name, mask in masks.items():
        assert torch.equal(model.get_buffer(name), cut.select(name, mask))
    assert (model.first.out_features, model.second.in_features) == (2, 2)
    assert model(example).shape == (2, 4)


def test_the_memory_format_stays() -> None:
    flat = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3)).to(memory_format=torch.channels_last)
    deep = nn.Sequential(nn.Conv3d(3, 8, 3), nn.ReLU(), nn.Conv3d(8, 8, 3)).to(memory_format=torch.channels_last_3d)
    for model, example, kind in (
        (flat, torch.randn(1, 3, 6, 6), torch.channels_last),
        (deep, torch.randn(1, 3, 6, 6, 6), torch.channels_last_3d),
    ):
        Structure(model, example).apply(Plan({"0": (0, 3, 4)}))
        assert all(model[layer].weight.is_contiguous(memory_format=kind) for layer in (0, 2))


def test_a_trial_sees_through_zeros() -> None:
    model = Written("number")
    nn.init.zeros_(model.second.weight)
    with pytest.raises(ValueError, match="its answer changes"):
        verify(model, torch.randn(2, 3))
    verify(Written("not at all").bfloat16(), torch.randn(2, 3).bfloat16())


@pytest.mark.parametrize("units", ["12", b"12", (1.5, 2), (1.0, 2), ("1", "2"), (True, False), (1, None)])
def test_a_plan_has_whole_numbers(units: object) -> None:
    for make in (Plan, Plan.from_dict):
        with pytest.raises(ValueError, match=r"whole numbers, such as .* for first it got"):
            make({"first": units})


def test_a_plan_of_an_iterator_has_its_units() -> None:
    assert Plan({"first": (unit for unit in range(3))}) == Plan({"first": (0, 1, 2)})
    assert Plan.from_dict({"first": map(int, "02")}) == Plan({"first": (0, 2)})


def test_a_plan_of_numpy_s_numbers_is_plain() -> None:
    plan = Plan({"first": tuple(np.array([2, 0]))})
    assert plan == Plan({"first": (2, 0)})
    assert plan.digest == Plan({"first": (2, 0)}).digest
    assert Plan.from_dict(plan.as_dict()) == plan


def test_a_network_that_is_the_same_in_training_is_followed_once() -> None:
    """In training, a normalisation refuses one sample whose maps are single pixels."""
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.Conv2d(6, 2, 1))
    assert Structure(model, torch.randn(1, 3, 3, 3)).widths == {"0": 6}
