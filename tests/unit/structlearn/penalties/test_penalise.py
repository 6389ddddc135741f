"""A penalty on any network's layers: against sums written out in numpy, layer by layer, from W 4.5.2 and table 4.1."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate
from torch import nn

from structlearn.alrao import Alrao
from structlearn.penalties import penalise
from structlearn.penalties.factors import of_magnitudes, of_norms, of_squares
from structlearn.penalties.network import NAMES
from structlearn.scala import adopt
from structlearn.structure import Plan, Structure

LINEAR = ("l2", "l1", "group_lasso", "reversed_group_lasso", "sparse_group_lasso")
ROOT_TWO = math.sqrt(2)


def rows(weight):
    """Of a weight [outputs, inputs, ...] in numpy: each unit's incoming weights, each input's outgoing ones."""
    return [row.ravel() for row in weight], [column.ravel() for column in np.moveaxis(weight, 1, 0)]


def array(tensor):
    return tensor.detach().double().numpy()


def linear():
    net = nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3))
    return net, {"0": [(*rows(array(net[0].weight)), 5)], "2": [(*rows(array(net[2].weight)), 4)]}


def convolution():
    net = nn.Sequential(nn.Conv2d(3, 4, 5), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 3))
    return net, {"0": [(*rows(array(net[0].weight)), 75)], "2": [(*rows(array(net[2].weight)), 36)]}


def grouped():
    net = nn.Sequential(nn.Conv1d(6, 4, 3, groups=2), nn.Conv3d(4, 4, 2, groups=4), nn.Conv1d(4, 6, 1))
    weight = array(net[0].weight)
    return net, {
        "0": [(*rows(weight[:2]), 9), (*rows(weight[2:]), 9)],  # the second is depthwise
        "2": [(*rows(array(net[2].weight)), 4)],
    }


def transposed():
    net = nn.Sequential(nn.ConvTranspose2d(3, 5, 2), nn.ConvTranspose1d(4, 6, 3, groups=2))
    one, two = array(net[0].weight).swapaxes(0, 1), array(net[1].weight)
    first, second = two[:2].swapaxes(0, 1), two[2:].swapaxes(0, 1)
    return net, {"0": [(*rows(one), 12)], "1": [(*rows(first), 6), (*rows(second), 6)]}


def recurrent():
    net = nn.LSTM(3, 2, num_layers=2)
    tensors = [net.weight_ih_l0, net.weight_hh_l0, net.weight_ih_l1, net.weight_hh_l1]
    return net, {"": [(*rows(array(tensor)), tensor.shape[1]) for tensor in tensors]}


def embedding():
    net = nn.Sequential(nn.Embedding(7, 3), nn.Linear(3, 2))
    return net, {"0": [(*rows(array(net[0].weight).T), 1)], "1": [(*rows(array(net[1].weight)), 3)]}


def scaled():
    net = adopt(nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3)))
    names = [key for key, module in net.named_modules() if isinstance(module, nn.Linear)]
    return net, {key: [(*rows(array(net.get_submodule(key).weight)), 1)] for key in names}


def heads():
    net = Alrao(nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3)), heads=3)
    heads = array(net.heads.weight)
    return net, {"model.0": [(*rows(array(net.model[0].weight)), 5)], "model.2": [(*rows(each), 4) for each in heads]}


KINDS = {
    each.__name__: each for each in (linear, convolution, grouped, transposed, recurrent, embedding, scaled, heads)
}


def maps(kind):
    """(network, by layer name a list of (incoming, outgoing, P) of the maps in it), written down for each kind."""
    torch.manual_seed(3)
    return KINDS[kind]()


def by_hand(maps, name, factors, mix=0.5):
    """The sum over layers of W 4.6, with lambda_l of W table 4.1."""
    total = 0.0
    for layer, inside in maps.items():
        if not isinstance(factors, str) and layer not in factors:
            continue
        for incoming, outgoing, inputs in inside:
            flat = np.concatenate(incoming)

            def norms(groups, inputs=inputs, layer=layer):
                size = len(groups[0])
                known = {"bayesian": math.sqrt(inputs * (size + 1)), "usual": math.sqrt(size)}
                factor = known[factors] if isinstance(factors, str) else factors[layer]
                return factor * sum(math.sqrt((group**2).sum()) for group in groups)

            def entries(values, bayesian, layer=layer):
                factor = {"bayesian": bayesian, "usual": 1.0}[factors] if isinstance(factors, str) else factors[layer]
                return factor * values.sum()

            l1 = entries(np.abs(flat), math.sqrt(2 * inputs))
            total += {
                "l2": lambda flat=flat, inputs=inputs: entries(flat**2, inputs / 2),
                "l1": lambda l1=l1: l1,
                "group_lasso": lambda incoming=incoming: norms(incoming),
                "reversed_group_lasso": lambda outgoing=outgoing: norms(outgoing),
                "sparse_group_lasso": lambda l1=l1, incoming=incoming: mix * l1 + (1 - mix) * norms(incoming),
            }[name]()
    return total


# --- factors -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("inputs", [1, 2, 25, 800])
def test_bayesian_factors_are_those_of_table_4_1(inputs):
    outputs = 7
    p, n = torch.tensor([float(inputs)]).double(), torch.tensor([float(outputs)]).double()
    assert of_squares("bayesian", inputs) == inputs / 2
    assert of_magnitudes("bayesian", inputs) == math.sqrt(2 * inputs)
    assert of_norms("bayesian", p, p).item() == pytest.approx(math.sqrt(inputs * (inputs + 1)), rel=1e-15)
    assert of_norms("bayesian", p, n).item() == pytest.approx(math.sqrt(inputs * (outputs + 1)), rel=1e-15)
    assert (of_squares("usual", inputs), of_magnitudes("usual", inputs)) == (1, 1)
    assert of_norms("usual", p, p).item() == pytest.approx(math.sqrt(inputs), rel=1e-15)
    assert of_norms("usual", p, n).item() == pytest.approx(math.sqrt(outputs), rel=1e-15)


@pytest.mark.parametrize(("inputs", "size"), [(1, 1), (5, 1), (5, 5), (5, 3), (12, 40)])
def test_the_prior_of_a_bayesian_factor_has_the_second_moment_of_glorots_condition(inputs, size):
    """Of exp(-f ||w||) in as many dimensions as a group has weights, by quadrature along the radius."""
    factor = of_norms("bayesian", torch.tensor([inputs]).double(), torch.tensor([size]).double()).item()

    def moment(power):
        peak = (size - 1 + power) / factor
        found, _ = integrate.quad(
            lambda r: math.exp((size - 1 + power) * math.log(r) - factor * r) if r else 0.0**power * (size == 1),
            0, peak + 60 * (1 + math.sqrt(size)) / factor, points=[peak], limit=500, epsabs=0, epsrel=1e-12,
        )  # fmt: skip
        return found

    assert moment(2) / moment(0) == pytest.approx(size / inputs, rel=1e-8)
    if size == 1:
        assert factor == pytest.approx(of_magnitudes("bayesian", inputs), rel=1e-15)


@pytest.mark.parametrize("inputs", [1, 3, 50])
def test_the_gaussian_prior_of_a_bayesian_l2_has_that_moment_too(inputs):
    factor = of_squares("bayesian", inputs)
    density = [integrate.quad(lambda w, k=k: w**k * math.exp(-factor * w * w), -20, 20, points=[0])[0] for k in (0, 2)]
    assert density[1] / density[0] == pytest.approx(1 / inputs, rel=1e-8)


# --- values and gradients ----------------------------------------------------------------------------------


@pytest.mark.parametrize("factors", ["bayesian", "usual"])
@pytest.mark.parametrize("name", LINEAR)
@pytest.mark.parametrize("kind", KINDS)
def test_the_value_is_the_sum_of_the_source_over_layers(kind, name, factors):
    net, layers = maps(kind)
    found = penalise(net.double(), name, factors=factors, strength=0.25)
    assert found.value().item() == pytest.approx(0.25 * by_hand(layers, name, factors), rel=1e-12)
    assert found.layers == list(layers)


@pytest.mark.parametrize("name", LINEAR)
def test_given_factors_are_of_the_layers_that_are_named(name):
    net, layers = maps("convolution")
    found = penalise(net.double(), name, factors={"2": 3}, strength=2.0)
    assert found.layers == ["2"]
    assert found.value().item() == pytest.approx(2 * by_hand(layers, name, {"2": 3.0}), rel=1e-12)
    found.regularise()
    assert all(parameter.grad is None for parameter in net.parameters())


@given(
    st.lists(st.integers(1, 6), min_size=2, max_size=4),
    st.sampled_from(LINEAR),
    st.sampled_from(["bayesian", "usual"]),
    st.floats(0, 1),
    st.randoms(use_true_random=False),
)
@settings(max_examples=60, deadline=None)
def test_values_and_gradients_of_linear_layers_of_any_width(widths, name, factors, mix, chance):
    """The gradient against central differences of the value in numpy."""
    torch.manual_seed(chance.randrange(2**31))
    net = nn.Sequential(*(nn.Linear(a, b) for a, b in pairwise(widths))).double()
    options = {"mix": mix} if name == "sparse_group_lasso" else {}
    penalty = penalise(net, name, factors=factors, strength=0.5, **options)

    def value(weights):
        layers = {str(i): [(*rows(weight), weight.shape[1])] for i, weight in enumerate(weights)}
        return 0.5 * by_hand(layers, name, factors, mix)

    weights = [layer.weight.detach().numpy().copy() for layer in net]
    assert penalty.value().item() == pytest.approx(value(weights), rel=1e-10)
    for parameter in net.parameters():
        parameter.grad = torch.zeros_like(parameter)
    penalty.regularise()
    number = chance.randrange(len(weights))
    place = tuple(chance.randrange(size) for size in weights[number].shape)
    if abs(weights[number][place]) > 1e-3:
        ends = []
        for step in (1e-6, -1e-6):
            moved = [weight.copy() for weight in weights]
            moved[number][place] += step
            ends.append(value(moved))
        assert net[number].weight.grad[place].item() == pytest.approx((ends[0] - ends[1]) / 2e-6, rel=1e-4, abs=1e-5)
    assert all((layer.bias.grad == 0).all() for layer in net)


@pytest.mark.parametrize(
    ("kind", "name"), [*((kind, name) for kind in KINDS for name in LINEAR), ("convolution", "bn_lasso")]
)
def test_the_closed_gradient_is_that_of_the_value(kind, name):
    net, _ = maps(kind)
    penalty = penalise(net.double(), name, strength=0.3)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.view(-1)[::3] = 0.0  # whole groups of some
            parameter[0] = 0.0
    parameters = list(net.parameters())
    wanted = torch.autograd.grad(penalty.value(), parameters, allow_unused=True)
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    penalty.regularise()
    for parameter, own in zip(parameters, wanted, strict=True):
        expected = torch.ones_like(parameter) + (0 if own is None else own)
        torch.testing.assert_close(parameter.grad, expected, rtol=0, atol=1e-12)


def test_bn_lasso_is_on_the_scales_of_batch_norms_alone():
    net = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2), nn.BatchNorm1d(2)
    ).double()
    with torch.no_grad():
        for norm in (net[1], net[4]):
            norm.weight.normal_()
    total = sum(abs(gamma) for norm in (net[1], net[4]) for gamma in norm.weight.tolist())
    assert penalise(net, "bn_lasso", strength=0.5, factors="usual").value().item() == pytest.approx(0.5 * total)
    assert penalise(net, "bn_lasso", strength=0.5).value().item() == pytest.approx(0.5 * ROOT_TWO * total)
    assert penalise(net, "bn_lasso", strength=1, factors={"4": 2}).value().item() == pytest.approx(
        2 * net[4].weight.detach().abs().sum().item()
    )


# --- proximal steps ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("factors", ["bayesian", "usual"])
@pytest.mark.parametrize("name", ["l1", "group_lasso", "reversed_group_lasso", "sparse_group_lasso"])
@pytest.mark.parametrize("kind", ["linear", "grouped", "transposed", "heads", "embedding"])
def test_the_proximal_step_is_the_least_of_its_objective(kind, name, factors):
    """||u - w||^2 / 2 + amount penalty(u) is strictly convex: nothing around its minimum is less."""
    net, _ = maps(kind)
    net.double()
    torch.manual_seed(4)
    penalty = penalise(net, name, factors=factors, strength=0.15, proximal=True)
    parameters = [parameter for parameter in net.parameters() if parameter.dim() > 1]
    start = [parameter.detach().clone() for parameter in parameters]
    optimizer = torch.optim.SGD(parameters, lr=2.0, momentum=0.5, dampening=0.0)
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
    penalty.regularise()
    assert all((parameter.grad == 0).all() for parameter in parameters)
    penalty.after_step(optimizer)  # of length 2 / (1 - 0.5)
    assert any(((p == 0) & (w != 0)).any() for p, w in zip(parameters, start, strict=True))

    @torch.no_grad()
    def objective():
        near = sum((p - w).square().sum() for p, w in zip(parameters, start, strict=True)) / 2
        return float(near + 4.0 * penalty.value())

    least = objective()
    own = [parameter.detach().clone() for parameter in parameters]
    for trial in range(200):
        with torch.no_grad():
            for parameter, best, before in zip(parameters, own, start, strict=True):
                size = 10 ** float(-6 * torch.rand(()))
                direction = torch.randn_like(best) if trial % 2 else before - best
                parameter.copy_(best + size * direction)
        assert objective() >= least - 1e-12


# --- in a loop ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_a_step_of_sgd_is_that_of_the_penalised_loss(name):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 3)).double()
    x, y = torch.randn(8, 6).double(), torch.randint(3, (8,))
    ends = []
    for closed in (True, False):
        torch.manual_seed(1)
        for module in net:
            if hasattr(module, "reset_parameters"):
                module.reset_parameters()
        with torch.no_grad():
            net[1].weight.normal_()
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
        penalty = penalise(net, name, strength=1 / 8)
        for _ in range(5):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(net(x), y)
            if closed:
                loss.backward()
                penalty.regularise()
            else:
                (loss + penalty.value()).backward()
            optimizer.step()
            penalty.after_step(optimizer)  # nothing: it has gone into the gradient
        ends.append([parameter.detach().clone() for parameter in net.parameters()])
    for one, other in zip(*ends, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


@pytest.mark.parametrize("factors", ["bayesian", "usual", "given"])
@pytest.mark.parametrize("name", LINEAR)
def test_after_a_cut_it_is_that_of_the_network_as_it_is_now(name, factors):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 6), nn.ReLU(), nn.Linear(6, 3))
    structure = Structure(net, torch.zeros(2, 1, 4, 4))
    factors = {"3": 2.0, "5": 0.5} if factors == "given" else factors
    penalty = penalise(net, name, factors=factors, strength=0.1)
    before = penalty.value().item()
    structure.apply(Plan({"0": (0, 3), "3": (1, 2, 5)}))
    fresh = penalise(net, name, factors=factors, strength=0.1)
    assert penalty.value().item() == fresh.value().item() < before
    gradients = []
    for each in (penalty, fresh):
        for parameter in net.parameters():
            parameter.grad = torch.zeros_like(parameter)
        each.regularise()
        gradients.append([parameter.grad for parameter in net.parameters()])
    assert all(map(torch.equal, *gradients))
    conv, hidden, last = (array(net[number].weight) for number in (0, 3, 5))
    layers = {"0": [(*rows(conv), 9)], "3": [(*rows(hidden), 8)], "5": [(*rows(last), 3)]}
    assert penalty.value().item() == pytest.approx(0.1 * by_hand(layers, name, factors), rel=1e-5)


def test_it_follows_a_network_into_another_type():
    net, layers = maps("convolution")
    penalty = penalise(net, "group_lasso", strength=1.0)
    assert penalty.value().dtype == torch.float32
    net.double()
    assert penalty.value().item() == pytest.approx(by_hand(layers, "group_lasso", "bayesian"), rel=1e-12)


def test_frozen_and_shared_weights():
    net = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 3)).double()
    net[1].weight = net[0].weight
    net[2].weight.requires_grad_(False)
    penalty = penalise(net, "l2", strength=1.0, factors="usual")
    assert penalty.layers == ["0"]
    assert penalty.value().item() == pytest.approx(net[0].weight.detach().square().sum().item())


def test_a_weight_without_gradient_is_left_alone():
    net = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2))
    net[1].weight.grad = torch.zeros_like(net[1].weight)
    penalise(net, "group_lasso", strength=1.0).regularise()
    assert net[0].weight.grad is None
    assert (net[1].weight.grad != 0).all()


# --- mistakes ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("net", "arguments", "says"),
    [
        (nn.Linear(2, 2), {"name": "l3"}, "unknown penalty 'l3'; use one of: l2, l1, .*sparse_group_lasso"),
        (nn.Linear(2, 2), {"name": "l1", "strength": -1}, "strength must be at least 0"),
        (nn.Linear(2, 2), {"name": "l1", "strength": math.nan}, "strength must be at least 0"),
        (nn.Linear(2, 2), {"name": "l1", "factors": "baysian"}, "unknown rule for factors 'baysian'.*'bayesian'"),
        (nn.Linear(2, 2), {"name": "l1", "factors": {}}, "names no layer"),
        (nn.Sequential(nn.Linear(2, 2)), {"name": "l1", "factors": {"1": 1.0}}, "the layer '1'.*it has: 0"),
        (nn.Sequential(nn.Linear(2, 2)), {"name": "l1", "factors": {"0": -1.0}}, "the factor of '0' must be at least"),
        (nn.Linear(2, 2), {"name": "l1", "mix": 0.5}, "mix is of the penalty sparse_group_lasso"),
        (nn.Linear(2, 2), {"name": "sparse_group_lasso", "mix": 1.5}, "mix is the share"),
        (nn.Linear(2, 2), {"name": "l2", "proximal": True}, "exact zeros"),
        (nn.Linear(2, 2), {"name": "bn_lasso"}, "BatchNorm layers.*this network has none"),
        (nn.BatchNorm1d(2, affine=False), {"name": "bn_lasso"}, "this network has none"),
        (nn.BatchNorm1d(2), {"name": "l1"}, "nothing to penalise"),
    ],
)
def test_mistakes_are_told(net, arguments, says):
    with pytest.raises(ValueError, match=says):
        penalise(net, **{"strength": 1.0, **arguments})


def test_proximal_steps_are_for_sgd():
    net = nn.Linear(2, 2)
    penalty = penalise(net, "l1", strength=1.0, proximal=True)
    with pytest.raises(ValueError, match=r"use torch\.optim\.SGD"):
        penalty.after_step(torch.optim.Adam(net.parameters()))


def test_a_layer_that_is_replaced_loaded_or_thawed_is_penalised_from_then_on():
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 3))
    net[0].requires_grad_(requires_grad=False)
    penalty = penalise(net, "l2", strength=1.0, factors="usual")
    net[0].requires_grad_(requires_grad=True)
    net[1] = nn.Linear(4, 7)
    expected = sum(each.weight.square().sum() for each in net)
    torch.testing.assert_close(penalty.value(), expected)
    net.load_state_dict({name: 0 * value for name, value in net.state_dict().items()}, assign=True)
    assert penalty.value() == 0
    net.requires_grad_(requires_grad=True)
    net(torch.randn(2, 4)).sum().backward()
    before = net[0].weight.grad.clone()
    penalty.regularise()
    assert torch.equal(net[0].weight.grad, before)
