"""What constant units said goes into the next biases: after the cut the network computes what it did."""

import pytest
import torch
from torch import Tensor, nn

from structlearn.models import build
from structlearn.scala import ScaledLinear
from structlearn.structure import Plan, Structure
from structlearn.structure.absorb import absorb


def silenced(structure: Structure, name: str, *units: int) -> Plan:
    """A plan for units whose incoming weights are zero: only a constant is left of them."""
    with torch.no_grad():
        named = structure.tensors()
        for place in structure.sets[name].places:
            if place.role == "out" and named[place.tensor].dim() > 1:
                named[place.tensor][torch.isin(place.units, torch.tensor(units))] = 0
    return Plan({name: tuple(unit for unit in range(structure.sets[name].size) if unit not in units)})


def outputs(model: nn.Module, x: Tensor, structure: Structure, plan: Plan) -> tuple[Tensor, Tensor, Tensor, object]:
    """Before, after a plain cut of a copy, after absorbing and cutting; and what was absorbed."""
    import copy

    before = model(x)
    plainly = copy.deepcopy(model)
    Structure(plainly, x).apply(plan)
    done = absorb(structure, plan, x)
    structure.apply(plan)
    return before, plainly(x), model(x), done


@pytest.mark.parametrize("activation", ["sigmoid", "relu", "tanh"])
@pytest.mark.parametrize("batch_norm", [False, True])
def test_linear_layers_exactly(activation, batch_norm) -> None:
    torch.manual_seed(0)
    model = build("mlp", (5,), 3, widths=[8, 7], activation=activation, batch_norm=batch_norm).double()
    x = torch.randn(20, 5, dtype=torch.float64)
    for _ in range(3):
        model(x)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            parameter.data.uniform_(0.5, 1.5)
    model.eval()
    structure = Structure(model, x)
    (name, _) = structure.sets
    plan = silenced(structure, name, 0, 3)
    before, plainly, after, done = outputs(model, x, structure, plan)
    torch.testing.assert_close(after, before, rtol=1e-10, atol=1e-12)
    assert (plainly - before).abs().max() > 1e-3
    assert done.into == {f"features.{4 if batch_norm else 3}.bias": 2}
    assert done.lost == {}
    assert model.features[1].out_features == 6


def convnet(*, bias: bool, padding: int | str, flatten: bool = False, **options: object) -> nn.Module:
    torch.manual_seed(0)
    layers = [
        nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Sigmoid(),
        nn.Conv2d(4, 6, 3, padding=padding, bias=bias, **options), nn.BatchNorm2d(6), nn.ReLU(),
    ]  # fmt: skip
    tail = [nn.Flatten(), nn.Linear(6 * 36, 3)] if flatten else [nn.Conv2d(6, 3, 1)]
    model = nn.Sequential(*layers, *tail).double()
    for module in model:
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 1.5)
    return model.eval()


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    "options",
    [
        {"padding": 0},
        {"padding": 0, "stride": 2},
        {"padding": 0, "dilation": 2},
        {"padding": "valid"},
        {"padding": 1, "padding_mode": "reflect"},
        {"padding": 2, "padding_mode": "replicate"},
        {"padding": 0, "groups": 2},
    ],
)
def test_convolutions_without_zero_padding_exactly(bias, options) -> None:
    model = convnet(bias=bias, **options)
    x = torch.randn(5, 2, 8, 8, dtype=torch.float64)
    structure = Structure(model, x)
    gone = (1, 3) if "groups" not in options else (1,)
    plan = silenced(structure, "0", *gone)
    before, plainly, after, done = outputs(model, x, structure, plan)
    torch.testing.assert_close(after, before, rtol=1e-9, atol=1e-11)
    assert (plainly - before).abs().max() > 1e-3
    assert done.into == {"3.bias" if bias else "4.running_mean": 2}


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("padding", [1, 2, "same"])
def test_padded_convolutions_exactly_away_from_borders(bias, padding) -> None:
    model = convnet(bias=bias, padding=padding)
    x = torch.randn(5, 2, 8, 8, dtype=torch.float64)
    structure = Structure(model, x)
    before, _, after, done = outputs(model, x, structure, silenced(structure, "0", 0, 2))
    edge = 2 if padding == 2 else 1
    inside = (..., slice(edge, -edge), slice(edge, -edge))
    torch.testing.assert_close(after[inside], before[inside], rtol=1e-9, atol=1e-11)
    assert (after - before).abs().max() > 1e-3
    assert sum(done.into.values()) == 2


def test_flattened_channels() -> None:
    model = convnet(bias=True, padding=0, flatten=True)
    x = torch.randn(5, 2, 8, 8, dtype=torch.float64)
    model[4].bias.data.uniform_(0.5, 1.0)
    structure = Structure(model, x)
    before, plainly, after, done = outputs(model, x, structure, silenced(structure, "3", 5))
    torch.testing.assert_close(after, before, rtol=1e-9, atol=1e-11)
    assert (plainly - before).abs().max() > 1e-3
    assert done.into == {"7.bias": 36}


def test_cells_of_a_recurrent_layer() -> None:
    torch.manual_seed(0)

    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.lstm, self.head = nn.Linear(3, 5), nn.LSTM(5, 4, batch_first=True), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.lstm(self.first(x).sigmoid())[0])

    model, x = Recurrent().double(), torch.randn(4, 6, 3, dtype=torch.float64)
    structure = Structure(model, x)
    before, plainly, after, done = outputs(model, x, structure, silenced(structure, "first", 1, 4))
    torch.testing.assert_close(after, before, rtol=1e-10, atol=1e-12)
    assert (plainly - before).abs().max() > 1e-3
    assert done.into == {"lstm.bias_ih_l0": 2}


def test_a_scaling_in_the_layer_counts() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 5), nn.Sigmoid(), ScaledLinear(5, 2)).double()
    model[2].scale.uniform_(0.1, 0.9)
    x = torch.randn(6, 3, dtype=torch.float64)
    structure = Structure(model, x)
    before, plainly, after, _ = outputs(model, x, structure, silenced(structure, "0", 2))
    torch.testing.assert_close(after, before, rtol=1e-10, atol=1e-12)
    assert (plainly - before).abs().max() > 1e-3


def test_what_is_not_constant_or_has_no_bias_is_reported_and_left() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 5), nn.Sigmoid(), nn.Linear(5, 2, bias=False)).double()
    x = torch.randn(6, 3, dtype=torch.float64)
    structure = Structure(model, x)
    done = absorb(structure, silenced(structure, "0", 2), x)
    assert (done.into, done.lost) == ({}, {"2.weight": 1})
    model[2].bias = nn.Parameter(torch.zeros(2, dtype=torch.float64))
    structure = Structure(model, x)
    done = absorb(structure, Plan({"0": (0, 1, 3)}), x)
    assert (done.into, done.lost) == ({"2.bias": 1}, {"2.weight": 1})


def test_zero_inputs_change_nothing() -> None:
    model = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2))
    model[0].bias.data.fill_(-1.0)
    x, bias = torch.randn(6, 3), model[2].bias.clone()
    structure = Structure(model, x)
    done = absorb(structure, silenced(structure, "0", 0, 1), x)
    assert (done.into, done.lost) == ({}, {})
    assert torch.equal(model[2].bias, bias)


def test_the_network_is_left_as_it_was_but_for_the_biases() -> None:
    model = build("vgg11", (3, 32, 32), 4, width=0.1).train()
    x = torch.randn(2, 3, 32, 32)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    structure = Structure(model, x)
    done = absorb(structure, silenced(structure, "features.0.0", 0), x)
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed - set(done.into) <= {"features.0.0.weight"}
    assert all(module.training for module in model.modules())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_a_plan_of_another_network_is_refused() -> None:
    model = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2))
    x = torch.randn(6, 3)
    with pytest.raises(ValueError, match="unknown set of units"):
        absorb(Structure(model, x), Plan({"1": (0,)}), x)


def test_layers_that_are_called_by_name() -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 5, 3, bias=False)
            self.norm, self.head = nn.BatchNorm2d(5), nn.Linear(5, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = self.norm(input=self.two(input=self.one(input=x).sigmoid()))
            return self.head(input=x.sigmoid().mean((-2, -1)))

    torch.manual_seed(0)
    model, x = Named().eval(), torch.randn(4, 3, 9, 9)
    structure = Structure(model, x)
    plan = silenced(structure, "one", 1, 4)
    before, plainly, after, done = outputs(model, x, structure, plan)
    assert done.into == {"norm.running_mean": 2}
    assert not torch.allclose(plainly, before)
    torch.testing.assert_close(after, before)


def test_one_sample_without_a_batch() -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Conv2d(3, 6, 3), nn.Sigmoid(), nn.Conv2d(6, 5, 3)), torch.randn(2, 3, 9, 9)
    structure = Structure(model, x)
    plan = silenced(structure, "0", 1, 4)
    before = model(x)
    assert absorb(structure, plan, x[0]).into == {"2.bias": 2}
    structure.apply(plan)
    torch.testing.assert_close(model(x), before)
