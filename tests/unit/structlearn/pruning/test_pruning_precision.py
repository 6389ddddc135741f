"""Networks in half precision, and in several types at once: norms and penalties are those of float64."""

import pytest
import torch
from torch import nn

from structlearn.pruning import BnLasso, Norm, ScaLP
from structlearn.scala import adopt
from structlearn.structure import Structure

HALF = (torch.bfloat16, torch.float16)


def convolution(kind, size=0.0015):
    """Each of its 8 channels has 64 * 64 outgoing weights, of about `size`."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 64, 64), nn.ReLU())
    model.append(nn.Linear(64, 3))
    with torch.no_grad():
        model[3].weight.normal_(0, size)
    model = model.to(kind)
    return model, torch.zeros(2, 1, 8, 8, dtype=kind)


class Mixed(nn.Module):
    """Layers of three types; the first is the narrowest."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.c = nn.Linear(8, 6), nn.Linear(6, 5), nn.Linear(5, 3)
        self.norm_a, self.norm_b = nn.BatchNorm1d(6), nn.BatchNorm1d(5)
        for layer in (self.a, self.norm_a):
            layer.bfloat16()
        for layer in (self.b, self.norm_b):
            layer.double()

    def forward(self, x):
        return self.c(self.norm_b(self.b(self.norm_a(self.a(x.bfloat16())).double())).relu().float())


def close(found, wanted):
    torch.testing.assert_close(found.double(), wanted.double(), rtol=1e-5, atol=0)


@pytest.mark.parametrize("kind", HALF)
def test_norms_of_many_weights_in_half_precision(kind):
    model, batch = convolution(kind)
    pruner = Norm(Structure(model, batch), strength=1, penalty="reversed_group_lasso")
    norms = model[3].weight.detach().double().view(64, 8, 64).square().sum((0, 2)).sqrt()
    close(pruner._verdicts()["0"].score, norms)


@pytest.mark.parametrize("kind", HALF)
def test_averages_of_many_weights_in_half_precision(kind):
    model, batch = convolution(kind)
    structure = Structure(adopt(model, keep_function=True), batch)
    means = model[3].effective().detach().double().view(64, 8, 64).square().mean((0, 2)).sqrt()
    threshold = float(means.sort().values[3:5].mean())
    assert torch.equal(ScaLP(structure, strength=1, threshold=threshold)._verdicts()["0"].goes, means < threshold)


@pytest.mark.parametrize("kind", HALF)
@pytest.mark.parametrize("penalty", ["l2", "l1", "group_lasso", "sparse_group_lasso", "reversed_group_lasso"])
def test_penalties_and_their_gradients_in_half_precision(kind, penalty):
    (half, batch), (exact, _) = convolution(kind), convolution(kind)
    exact = exact.double()
    values = []
    for model, example in ((half, batch), (exact, batch.double())):
        pruner = Norm(Structure(model, example), strength=0.5, penalty=penalty)
        values.append(pruner.penalty())
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        pruner.regularise()
    close(*values)
    for parameter, other in zip(half.parameters(), exact.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad.double(), other.grad, rtol=0.01, atol=1e-5)


def test_a_group_with_one_tiny_weight_has_a_finite_gradient_in_half_precision():
    model, batch = convolution(torch.float16)
    with torch.no_grad():
        model[0].weight[2] = 0.0
        model[0].weight[2, 0, 1, 1] = 6e-6  # 1 / its norm is above what float16 can hold
    model[0].weight.grad = torch.zeros_like(model[0].weight)
    Norm(Structure(model, batch), strength=0.5).regularise()
    wanted = torch.zeros(3, 3, dtype=torch.float16)
    wanted[1, 1] = 0.5 * 9**0.5
    torch.testing.assert_close(model[0].weight.grad[2, 0], wanted)


@pytest.mark.parametrize("method", [Norm, BnLasso, ScaLP])
@pytest.mark.parametrize("proximal", [False, True])
def test_a_network_of_several_types(method, proximal):
    model, batch = Mixed(), torch.randn(4, 8)
    if method is ScaLP:
        adopt(model)
    pruner = method(Structure(model, batch), strength=0.1, threshold=0.3, proximal=proximal)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for _ in range(2):
        optimizer.zero_grad()
        model(batch).square().mean().backward()
        pruner.regularise()
        optimizer.step()
        pruner.after_step(optimizer)
    wanted = {name: parameter.dtype for name, parameter in model.named_parameters()}
    pruner.cut(pruner.plan(), optimizer)
    assert {name: parameter.dtype for name, parameter in model.named_parameters()} == wanted
    assert model(batch).isfinite().all()
    assert pruner.penalty().isfinite()


def test_the_norms_of_a_network_of_several_types():
    model, batch = Mixed(), torch.randn(4, 8)
    verdicts = Norm(Structure(model, batch), strength=1, penalty="reversed_group_lasso")._verdicts()
    close(verdicts["a"].score, model.b.weight.detach().norm(dim=0))
    close(verdicts["b"].score, model.c.weight.detach().norm(dim=0))
