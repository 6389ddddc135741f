"""Variational inference: divergences against quadrature, gradients, a posterior that is known, and predictions."""

import copy
import math
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, stats
from torch import nn

from structlearn import models, scala
from structlearn.alrao import SGD, Alrao
from structlearn.regularizers import DropConnect, Shade, Variational
from structlearn.structure import Plan, Structure


def one_weight(mean, sigma, prior, prior_deviation):
    """A network of a single weight, with that posterior."""
    net = nn.Linear(1, 1, bias=False).double()
    holder = nn.Sequential(net)
    variational = Variational(holder, strength=1.0, prior=prior, prior_deviation=prior_deviation)
    with torch.no_grad():
        net.weight.fill_(mean)
        net.log_deviation.fill_(math.log(sigma))
    return holder, variational


def by_quadrature(mean, sigma, prior):
    posterior = stats.norm(mean, sigma)

    def density(w):
        return posterior.pdf(w) * (posterior.logpdf(w) - prior.logpdf(w))

    edges = [mean - 12 * sigma, mean + 12 * sigma]
    kink = [0.0] if edges[0] < 0 < edges[1] else None
    return integrate.quad(density, *edges, points=kink, limit=500, epsabs=1e-12, epsrel=1e-12)[0]


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(["gaussian", "laplace"]), st.floats(-3, 3), st.floats(0.05, 3), st.floats(0.1, 3))
def test_the_divergence_is_that_of_quadrature(prior, mean, sigma, deviation):
    _, variational = one_weight(mean, sigma, prior, deviation)
    law = stats.norm(0, deviation) if prior == "gaussian" else stats.laplace(0, deviation / math.sqrt(2))
    expected = by_quadrature(mean, sigma, law)
    assert variational.divergence().item() == pytest.approx(expected, rel=1e-7, abs=1e-9)


def test_the_gaussian_divergence_is_the_penalty_of_corollary_7():
    mean, sigma, prior = 0.7, 0.3, 1.3
    _, variational = one_weight(mean, sigma, "gaussian", prior)
    penalty = 0.5 * ((sigma**2 + mean**2) / prior**2 + math.log(prior**2 / sigma**2) - 1)
    assert variational.divergence().item() == pytest.approx(penalty, rel=1e-12)


def test_any_prior_is_estimated_by_draws():
    """A function for the Gaussian prior has, on average, the closed form."""
    net, variational = one_weight(0.4, 0.5, lambda w: -0.5 * w.square() - 0.5 * math.log(2 * math.pi), 2.0)
    torch.manual_seed(0)
    found = [variational.divergence().item() for _ in range(4000)]
    expected = by_quadrature(0.4, 0.5, stats.norm(0, 2.0))
    assert np.mean(found) == pytest.approx(expected, abs=5 * np.std(found) / math.sqrt(len(found)))
    net.train()
    net(torch.ones(1, 1).double())
    variational.loss().backward()
    assert net[0].weight.grad.isfinite().all()
    assert net[0].log_deviation.grad.isfinite().all()


def test_gradients_are_those_of_the_reparametrisation():
    """W 1.3.2: d/d mu is the weight's gradient, d/d sigma that times xi; and the divergence's own."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 2)).double()
    variational = Variational(net, strength=0.25, prior_deviation=1.5)
    x, y = torch.randn(5, 3).double(), torch.randn(5, 2).double()
    torch.manual_seed(7)
    loss = (net(x) - y).square().sum() + variational.loss()
    loss.backward()
    torch.manual_seed(7)
    xi = torch.empty(2, 3).double().normal_()
    mu, sigma = net[0].weight.detach(), net[0].log_deviation.detach().exp()
    weight = (mu + sigma * xi).requires_grad_()
    (slope,) = torch.autograd.grad((x @ weight.T + net[0].bias.detach() - y).square().sum(), weight)
    torch.testing.assert_close(net[0].weight.grad, slope + 0.25 * mu / 1.5**2)
    to_sigma = slope * xi + 0.25 * (sigma / 1.5**2 - 1 / sigma)
    torch.testing.assert_close(net[0].log_deviation.grad, to_sigma * sigma)


def test_it_finds_the_posterior_of_a_linear_model():
    """W example 1.3.3: y = b x + s xi has the posterior precision 1 / s0^2 + sum x^2 / s^2, known in closed form."""
    rng = np.random.default_rng(0)
    x, noise, prior = rng.normal(size=40), 0.5, 2.0
    y = 1.3 * x + noise * rng.normal(size=40)
    precision = 1 / prior**2 + (x**2).sum() / noise**2
    mean = (x * y).sum() / noise**2 / precision
    net = nn.Sequential(nn.Linear(1, 1, bias=False)).double()
    variational = Variational(net, strength=1.0, prior_deviation=prior, task="regression")
    optimizer = torch.optim.Adam(net.parameters(), lr=0.02)
    inputs, targets = (torch.tensor(each).unsqueeze(1) for each in (x, y))
    torch.manual_seed(0)
    seen = []
    for step in range(6000):
        optimizer.param_groups[0]["lr"] = 0.02 * (1 - step / 6000)
        optimizer.zero_grad()
        ((net(inputs) - targets).square().sum() / (2 * noise**2) + variational.loss()).backward()
        optimizer.step()
        seen.append((net[0].weight.item(), net[0].log_deviation.exp().item()))
    found, sigma = np.mean(seen[-1000:], axis=0)
    assert found == pytest.approx(mean, abs=0.01)
    assert sigma == pytest.approx(precision**-0.5, rel=0.05)


def lenet():
    torch.manual_seed(0)
    return models.build("lenet", (1, 28, 28), 10, width=0.5)


X = torch.randn(6, 1, 28, 28, generator=torch.Generator().manual_seed(1))


def test_a_prediction_is_the_mean_of_probabilities_over_draws():
    net = lenet()
    Variational(net, strength=1.0, samples=5, deviation=0.5)
    net.eval()
    state = torch.get_rng_state()
    answer = net(X)
    assert torch.equal(torch.get_rng_state(), state)  # training's stream of numbers goes on as if nobody had asked
    assert torch.equal(net(X), answer)
    generator, plain, probabilities = torch.Generator().manual_seed(0), lenet().eval(), 0
    layers = [name for name, each in net.named_modules() if hasattr(each, "log_deviation")]
    for _ in range(5):
        for name in layers:
            layer = net.get_submodule(name)
            drawn = layer.weight + layer.log_deviation.exp() * torch.empty_like(layer.weight).normal_(
                generator=generator
            )
            with torch.no_grad():
                plain.get_submodule(name).weight.copy_(drawn)
        probabilities = probabilities + plain(X).softmax(1) / 5
    torch.testing.assert_close(answer.exp(), probabilities, rtol=1e-5, atol=1e-7)


def test_a_regression_is_the_mean_of_answers():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 2)).double()
    Variational(net, strength=1.0, samples=4000, deviation=0.5, task="regression")
    net.eval()
    x = torch.randn(5, 3).double()
    mean = x @ net[0].weight.T + net[0].bias
    torch.testing.assert_close(net(x), mean, rtol=0, atol=0.05)
    assert not torch.equal(net(x), mean)


def test_weights_are_drawn_anew_for_each_batch_and_put_back():
    net = lenet()
    variational = Variational(net, strength=1.0)
    net.train()
    first, second = net(X), net(X)
    assert not torch.equal(first, second)
    assert not any("weight" in each.__dict__ for each in net.modules())
    with pytest.raises(RuntimeError):
        net(X[:, :, :5])
    assert not any("weight" in each.__dict__ for each in net.modules())
    assert variational.loss() is not None
    assert variational.loss() is None
    net.eval()
    net(X)
    assert variational.loss() is None


def test_priors_are_glorots_unless_layers_are_scaled():
    net = lenet()
    variational = Variational(net, strength=1.0, deviation=0.2)
    for layer, scale in variational._draws.layers:
        assert scale == pytest.approx(layer.weight[0].numel() ** -0.5)
        torch.testing.assert_close(layer.log_deviation.exp(), torch.full_like(layer.weight, 0.2 * scale))
    scaled = Variational(scala.adopt(lenet()), strength=1.0)
    assert {scale for _, scale in scaled._draws.layers} == {1.0}


def test_deviations_are_cut_with_their_weights():
    net = lenet()
    Variational(net, strength=1.0)
    structure = Structure(net, X[:2])
    assert structure.widths == Structure(lenet(), X[:2]).widths
    optimizer = torch.optim.Adam(net.parameters())
    with torch.no_grad():
        for each in net.modules():
            if hasattr(each, "log_deviation"):
                each.log_deviation.copy_(each.weight)
    structure.apply(Plan({name: tuple(range(size))[::-2] for name, size in structure.widths.items()}), optimizer)
    for each in net.modules():
        if hasattr(each, "log_deviation"):
            assert torch.equal(each.log_deviation, each.weight)
    net(X).sum().backward()
    optimizer.step()


def test_with_alraos_heads_the_trunk_is_variational():
    net = Alrao(lenet(), heads=3)
    variational = Variational(net, strength=1e-4)
    optimizer = SGD(net, lr_max=0.1)
    for _ in range(3):
        (net.loss(net(X), torch.arange(6)) + variational.loss()).backward()
        optimizer.step()
        optimizer.zero_grad()
    net.eval()
    torch.testing.assert_close(net(X).exp().sum(1), torch.ones(6))


def test_several_at_once():
    net = lenet()
    parts = [Shade(net, X[:2], strength=1e-3), DropConnect(net, 0.5), Variational(net, strength=1e-4)]
    net(X)
    sum(term for each in parts if (term := each.loss(torch.arange(6))) is not None).backward()
    assert all(each.grad is not None for name, each in net.named_parameters() if "log_deviation" in name)


def test_copies_and_pickles_draw_for_themselves():
    net = lenet()
    variational = Variational(net, strength=1.0)
    net(X)  # what was drawn has a graph, which no copy takes
    for other in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        layer = next(each for each in other.modules() if hasattr(each, "log_deviation"))
        with torch.no_grad():
            layer.log_deviation.fill_(5.0)
        assert not torch.equal(other.eval()(X), net.eval()(X))
        net.train()
    variational.remove()
    assert [*net.state_dict()] == [*lenet().state_dict()]
    assert torch.equal(net.eval()(X), lenet().eval()(X))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"strength": -1.0}, "strength must be at least 0"),
        ({"prior": "cauchy"}, "prior"),
        ({"prior_deviation": 0.0}, "prior_deviation must be above 0"),
        ({"deviation": 0.0}, "deviation must be above 0"),
        ({"samples": 0}, "samples"),
        ({"layers": ["nobody"]}, "'nobody' is not in this network"),
    ],
)
def test_what_cannot_be_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Variational(lenet(), **{"strength": 1.0, **options})


def test_once_is_enough_and_there_must_be_a_layer():
    net = lenet()
    Variational(net, strength=1.0)
    with pytest.raises(ValueError, match="already"):
        Variational(net, strength=1.0)
    with pytest.raises(ValueError, match="has none"):
        Variational(nn.Sequential(nn.ReLU()), strength=1.0)


class Keyword(nn.Module):
    def __init__(self, answer=lambda y: y) -> None:
        super().__init__()
        self.layer, self.answer = nn.Linear(3, 2), answer

    def forward(self, x, scale=1.0):
        return self.answer(scale * self.layer(x))


def test_keywords_reach_every_draw():
    net = Keyword()
    Variational(net, strength=1.0, deviation=0.5, task="regression")
    x = torch.randn(4, 3)
    net.eval()
    torch.testing.assert_close(net(x, scale=3.0), 3 * net(x=x))


def test_an_answer_that_is_no_tensor_is_refused_in_evaluation():
    net = Keyword(lambda y: {"y": y})
    Variational(net, strength=1.0)
    assert net(torch.randn(4, 3))["y"].shape == (4, 2)
    with pytest.raises(ValueError, match="answers with a dict"):
        net.eval()(torch.randn(4, 3))


def test_maps_have_their_classes_on_the_second_axis():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 3, 1))
    Variational(net, strength=1.0, samples=3)
    answer = net.eval()(torch.randn(2, 1, 5, 4))
    torch.testing.assert_close(answer.exp().sum(1), torch.ones(2, 5, 4))


def test_what_has_no_weight_of_its_own_is_left_out_or_refused():
    tied = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    tied[1].weight = tied[0].weight
    with pytest.raises(ValueError, match="shares its weight"):
        Variational(tied, strength=1.0)
    computed = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(3, 3)), nn.Linear(3, 3))
    assert [layer for layer, _ in Variational(computed, strength=1.0)._draws.layers] == [computed[1]]
    for method in (Variational, DropConnect):
        options = {"strength": 1.0} if method is Variational else {"rate": 0.5}
        with pytest.raises(ValueError, match="is computed"):
            method(nn.Sequential(*computed), layers=["0"], **options)
        with pytest.raises(ValueError, match="twice"):
            method(lenet(), layers=["head", "head"], **options)
    with pytest.raises(ValueError, match="task"):
        Variational(lenet(), strength=1.0, task="regresion")
    alrao = Alrao(lenet(), heads=3)
    with pytest.raises(ValueError, match="is a Heads"):
        Variational(alrao, strength=1.0, layers=["model.head"])
