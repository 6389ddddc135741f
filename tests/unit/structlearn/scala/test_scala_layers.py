"""Scaled layers: their function, their steps, other factors under way."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn.functional import conv1d, conv2d, conv3d, linear

from structlearn import alrao
from structlearn.scala import SCALED, Scaled, ScaledConv1d, ScaledConv2d, ScaledConv3d, ScaledLinear, fold, rescale

# Layers, a small and a large input for each: for the one the input is scaled, for the other the weight.
CASES = {
    "linear": (lambda **o: ScaledLinear(6, 5, **o), (1, 6), (40, 6)),
    "linear on sequences": (lambda **o: ScaledLinear(6, 5, bias=False, **o), (1, 2, 6), (7, 9, 6)),
    "conv1d": (lambda **o: ScaledConv1d(4, 5, 3, padding=1, **o), (1, 4, 5), (3, 4, 9)),
    "conv2d": (lambda **o: ScaledConv2d(4, 6, 3, stride=2, dilation=2, **o), (1, 4, 5, 6), (5, 4, 9, 8)),
    "frame": (lambda **o: ScaledConv2d(4, 6, 3, padding=1, padding_mode="circular", **o), (1, 4, 3, 3), (5, 4, 8, 8)),
    "conv2d, groups": (lambda **o: ScaledConv2d(6, 4, 3, groups=2, **o), (1, 6, 3, 3), (3, 6, 5, 5)),
    "depthwise": (lambda **o: ScaledConv2d(4, 8, 3, groups=4, **o), (1, 4, 3, 3), (3, 4, 5, 5)),
    "conv3d": (lambda **o: ScaledConv3d(2, 3, 2, **o), (1, 2, 2, 2, 2), (3, 2, 4, 4, 4)),
}  # fmt: skip
SEQUENCE = pytest.mark.parametrize("scaling", ["uniform", "sqrt_log", "inverse"])


def made(name, **options):
    """A layer in float64, its factors made uneven where the rule makes them even."""
    torch.manual_seed(0)
    layer = CASES[name][0](**options, dtype=torch.float64)
    layer.scale.mul_(torch.linspace(1, 2, len(layer.scale)))
    return layer


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("size", [1, 2])
def test_a_scaled_layer_is_the_plain_layer_on_scaled_inputs(name, size):
    layer = made(name)
    x = torch.randn(CASES[name][size], dtype=torch.float64)
    assert (layer.weight.numel() <= x.numel()) == (size == 2)
    plain = layer.plain.forward(layer, x * layer.scale.view(-1, *[1] * (layer.weight.dim() - 2)))
    torch.testing.assert_close(layer(x), plain)
    folded = fold(copy.deepcopy(layer))
    assert type(folded) is layer.plain
    torch.testing.assert_close(folded(x), plain)
    if layer.weight.dim() > 2:
        torch.testing.assert_close(layer(x[0]), plain[0])  # without a batch


def test_the_scaled_layers_against_torch_s_functions():
    x = torch.randn(7, 4)
    layer = ScaledLinear(4, 3)
    torch.testing.assert_close(layer(x), linear(x, layer.weight * layer.scale, layer.bias))
    for dims, convolve in ((1, conv1d), (2, conv2d), (3, conv3d)):
        layer = SCALED[(nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1]](4, 3, 2)
        x = torch.randn(2, 4, *[3] * dims)
        scale = layer.scale.view(1, 4, *[1] * dims)
        torch.testing.assert_close(layer(x), convolve(x, layer.weight * scale, layer.bias))


@SEQUENCE
@pytest.mark.parametrize("options", [{}, {"s2": 1.0}, {"s2": 3.0, "tau_b2": 1.0}])
def test_pre_activations_of_normalised_inputs_start_with_the_variance_wanted(scaling, options):
    torch.manual_seed(0)
    x = 50**0.5 * torch.eye(50)  # the batch's covariance is exactly 1
    y = ScaledLinear(50, 4000, scaling=scaling, **options)(x)
    assert y.square().mean().item() == pytest.approx(options.get("s2", 2.0), rel=0.05)
    layer = ScaledConv2d(6, 1200, 3, groups=2, scaling=scaling, **options)
    y = layer(torch.randn(4000, 6, 3, 3))
    assert y.square().mean().item() == pytest.approx(options.get("s2", 2.0), rel=0.05)


def test_weights_start_normal_and_biases_at_zero_or_with_their_variance():
    layer = ScaledLinear(300, 400)
    assert layer.weight.mean().item() == pytest.approx(0, abs=0.02)
    assert layer.weight.std().item() == pytest.approx(1, abs=0.01)
    assert not layer.bias.any()
    assert ScaledLinear(2, 20000, tau_b2=0.25).bias.var().item() == pytest.approx(0.25, rel=0.05)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("size", [1, 2])
def test_a_step_on_the_scaled_weights_is_a_step_on_the_weights_with_rates_sigma_squared(name, size):
    """W 3.3.2: w moves by eta sigma_k^2 times the gradient with respect to w."""
    layer = made(name, scaling="inverse")
    plain = fold(copy.deepcopy(layer))
    x = torch.randn(CASES[name][size], dtype=torch.float64)
    for each in (layer, plain):
        each(x).square().sum().backward()
    before, eta = layer.effective().detach(), 0.1
    with torch.no_grad():
        layer.weight -= eta * layer.weight.grad
    moved = layer.effective() - before
    torch.testing.assert_close(moved, -eta * layer.spread(layer.scale**2) * plain.weight.grad)


def test_one_step_moves_a_wide_layer_s_answer_as_far_as_a_narrow_one_s():
    """W proposition 1, and remark 1: without scaling the first step grows with the width."""

    def moved(layer, width, rate):
        x = torch.randn(1, width)
        layer(x).sum().backward()
        before = layer(x)
        with torch.no_grad():
            layer.weight -= rate * layer.weight.grad
        return (layer(x) - before).abs().mean().item()

    torch.manual_seed(0)
    for scaling in ("uniform", "sqrt_log", "inverse"):
        wide, narrow = (moved(ScaledLinear(n, 5, scaling=scaling, s2=1.0), n, 1.0) for n in (20000, 2000))
        # E is eta (sum of sigma^2 x^2) = 1; how far one draw of x is from it depends on how few inputs count.
        assert wide / narrow == pytest.approx(1, abs=0.1 if scaling == "uniform" else 0.9)
    wide, narrow = (moved(nn.Linear(n, 5), n, 1.0) for n in (20000, 2000))
    assert wide / narrow == pytest.approx(10, rel=0.1)


@pytest.mark.parametrize("name", CASES)
def test_other_factors_keep_the_function(name):
    layer = made(name, scaling="inverse")
    x = torch.randn(CASES[name][2], dtype=torch.float64)
    before, weight = layer(x), layer.weight
    new = torch.rand(len(layer.scale), dtype=torch.float64) + 0.5
    rescale(layer, new)
    assert torch.equal(layer.scale, new)
    assert layer.weight is weight
    torch.testing.assert_close(layer(x), before)


OPTIMIZERS = {
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.05),
    "momentum": lambda parameters: torch.optim.SGD(parameters, lr=0.05, momentum=0.9, nesterov=True),
    "adam": lambda parameters: torch.optim.Adam(parameters, lr=0.05, eps=0.0, amsgrad=True),
    "adagrad": lambda parameters: torch.optim.Adagrad(parameters, lr=0.05, eps=0.0),
    "rmsprop": lambda parameters: torch.optim.RMSprop(parameters, lr=0.05, eps=0.0, momentum=0.9, centered=True),
    "adamax": lambda parameters: torch.optim.Adamax(parameters, lr=0.05, eps=0.0),
    "adadelta": lambda parameters: torch.optim.Adadelta(parameters, eps=1e-9),
    "rprop": lambda parameters: torch.optim.Rprop(parameters, lr=0.05),
    "nadam": lambda parameters: torch.optim.NAdam(parameters, lr=0.05, eps=0.0),
    "radam": lambda parameters: torch.optim.RAdam(parameters, lr=0.05, eps=0.0),
}


def mapped(optimizer, layer):
    """What the optimiser holds of the layer's weight, each made of the gradients with respect to w itself."""
    scale = layer.spread(layer.scale)
    powers = {"momentum_buffer": 1, "exp_avg": 1, "grad_avg": 1}
    powers |= {"exp_avg_sq": 2, "max_exp_avg_sq": 2, "sum": 2, "square_avg": 2, "exp_inf": 1, "prev": 1}
    powers |= {"acc_delta": 0, "step_size": 0}
    state = optimizer.state[layer.weight]
    if "square_avg" in state:
        powers["momentum_buffer"] = 0
    return {name: value / scale ** powers[name] for name, value in state.items() if name in powers}


@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("name", ["linear", "conv2d, groups"])
def test_gradients_and_the_optimiser_s_state_follow_other_factors(kind, name):
    """As if all gradients so far had been taken under the new factors, at the weights that they were taken at."""
    layer = made(name, scaling="inverse")
    new = torch.rand(len(layer.scale), dtype=torch.float64) + 0.5
    other = copy.deepcopy(layer)
    rescale(other, new)
    optimizer, theirs = (OPTIMIZERS[kind](each.parameters()) for each in (layer, other))
    for _ in range(4):
        x = torch.randn(CASES[name][2], dtype=torch.float64)
        optimizer.zero_grad()
        layer(x).square().sum().backward()
        # The other layer stands where this one stands, and sees the same gradient.
        with torch.no_grad():
            other.weight.copy_(layer.effective() / other.spread(new))
        theirs.zero_grad()
        other(x).square().sum().backward()
        optimizer.step()
        theirs.step()
    before = mapped(optimizer, layer)
    rescale(layer, new, optimizer)
    torch.testing.assert_close(layer.weight.grad, other.weight.grad)
    after, wanted = optimizer.state.get(layer.weight, {}), theirs.state.get(other.weight, {})
    assert set(after) == set(wanted)
    assert (len(before) > 0) == (kind != "sgd")
    for key, value in after.items():
        # Adadelta cannot begin without its eps, which is added to the squares of gradients, too.
        torch.testing.assert_close(value, wanted[key], rtol=1e-5 if kind == "adadelta" else 1e-7, atol=0)
    torch.testing.assert_close(mapped(optimizer, layer), before)
    at = layer.effective().detach()
    for each, its in ((layer, optimizer), (other, theirs)):  # the next step is that of the new factors
        with torch.no_grad():
            each.weight.copy_(at / each.spread(new))
        its.step()
    torch.testing.assert_close(layer.weight, other.weight, rtol=1e-5, atol=0)


def test_the_average_of_asgd_follows_other_factors():
    layer = ScaledLinear(4, 3)
    optimizer = torch.optim.ASGD(layer.parameters(), lr=0.01, t0=0)
    for _ in range(4):
        optimizer.zero_grad()
        layer(torch.randn(5, 4)).square().sum().backward()
        optimizer.step()
    averaged = copy.deepcopy(layer)

    def answer(x):
        averaged.load_state_dict(layer.state_dict() | {"weight": optimizer.state[layer.weight]["ax"]})
        return averaged(x)

    x = torch.randn(5, 4)
    before = answer(x)
    rescale(layer, torch.rand(4) + 0.5, optimizer)
    torch.testing.assert_close(answer(x), before)
    assert not torch.allclose(answer(x), layer(x))


class Unknown(torch.optim.SGD):
    """Keeps something for each weight."""

    def step(self):
        super().step()
        for group in self.param_groups:
            for parameter in group["params"]:
                self.state[parameter]["sharpness"] = torch.ones_like(parameter)


def test_a_state_of_unknown_kind_is_refused():
    torch.manual_seed(0)
    layer = ScaledLinear(4, 3)
    optimizer = Unknown(layer.parameters(), lr=0.1, momentum=0.9)
    layer(torch.randn(5, 4)).sum().backward()
    optimizer.step()
    before, momentum = layer.weight.clone(), optimizer.state[layer.weight]["momentum_buffer"].clone()
    with pytest.raises(ValueError, match="Unknown keeps 'sharpness'"):
        rescale(layer, torch.rand(4) + 0.5, optimizer)
    assert torch.equal(layer.weight, before)
    assert torch.equal(optimizer.state[layer.weight]["momentum_buffer"], momentum)


@pytest.mark.parametrize("kind", ["sgd", "adam"])
def test_alrao_s_state_follows_other_factors(kind):
    options = {"momentum": 0.9} if kind == "sgd" else {}
    layer = ScaledLinear(3, 2)
    optimizer = alrao.OPTIMIZERS[kind](nn.Sequential(layer), **options)
    layer(torch.randn(4, 3)).square().sum().backward()
    optimizer.step()
    before = {key: each.clone() for key, each in optimizer.state[layer.weight].items()}
    rescale(layer, 2 * layer.scale, optimizer)
    factors = {"momentum_buffer": 2, "exp_avg": 2, "exp_avg_sq": 4, "step": 1}
    assert len(before) == {"sgd": 1, "adam": 3}[kind]
    for key, value in optimizer.state[layer.weight].items():
        torch.testing.assert_close(value, factors[key] * before[key])


@pytest.mark.parametrize("sigma", [torch.ones(3), torch.zeros(4), torch.tensor([1.0, 1.0, -1.0, 1.0])])
def test_other_factors_must_be_above_zero_and_as_many(sigma):
    layer = ScaledLinear(4, 2)
    before = layer.weight.clone()
    with pytest.raises(ValueError, match="one factor above 0 for each of 4 inputs"):
        rescale(layer, sigma)
    assert torch.equal(layer.weight, before)


def test_a_layer_s_own_rule_at_its_present_width():
    layer = ScaledConv2d(8, 4, 3, scaling="inverse", s2=1.0)
    torch.testing.assert_close(layer.sigma().float(), layer.scale)
    layer.weight = nn.Parameter(layer.weight[:, :5])  # as a cut leaves it
    assert layer.sigma().shape == (5,)
    assert 9 * layer.sigma().square().sum().item() == pytest.approx(1)
    ranks = torch.tensor([0, 0, 1, 1, 2])
    assert layer.sigma(ranks)[0] == layer.sigma(ranks)[1] == 2 * layer.sigma(ranks)[2]


def test_a_scaled_layer_is_torch_s_and_says_what_it_is():
    layer = ScaledConv2d(3, 4, 5)
    assert isinstance(layer, nn.Conv2d)
    assert isinstance(layer, Scaled)
    assert "3, 4, kernel_size=(5, 5)" in repr(layer)
    assert "scaling=sqrt_log, s2=2" in repr(layer)
    assert set(layer.state_dict()) == {"weight", "bias", "scale"}
    assert {name for name, _ in layer.named_parameters()} == {"weight", "bias"}
