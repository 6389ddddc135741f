"""Noise on inputs, weights and labels: its size, its gradient, its chances; none in evaluation."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from structlearn import alrao
from structlearn.regularizers import InputNoise, LabelNoise, WeightNoise


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(40, 30), nn.Tanh(), nn.Linear(30, 4)).double()


def test_inputs_are_moved_by_normal_numbers_of_the_deviation() -> None:
    model, x = nn.Sequential(nn.Identity()), torch.randn(200, 100)
    noise = InputNoise(model, 0.3)
    moved = model(x) - x
    assert moved.std().item() == pytest.approx(0.3, rel=0.03)
    assert moved.mean().item() == pytest.approx(0.0, abs=0.01)
    assert (moved.abs() < 0.3).double().mean().item() == pytest.approx(0.6827, abs=0.02)
    torch.manual_seed(3)
    first = model(x)
    torch.manual_seed(3)
    assert torch.equal(first, torch.randn_like(x).mul_(0.3) + x)
    assert torch.equal(model.eval()(x), x)
    model.train()
    noise.remove()
    assert torch.equal(model(x), x)


def test_gradients_go_through_noise_on_inputs() -> None:
    model, x = nn.Sequential(nn.Identity()), torch.randn(3, 4, requires_grad=True)
    InputNoise(model, 1.0)
    model(x).sum().backward()
    assert torch.equal(x.grad if x.grad is not None else x, torch.ones(3, 4))


def test_inputs_of_whole_numbers_are_refused() -> None:
    model = nn.Sequential(nn.Embedding(5, 3))
    InputNoise(model, 0.1)
    with pytest.raises(ValueError, match=r"torch\.int64"):
        model(torch.randint(5, (2, 4)))
    model.eval()
    model(torch.randint(5, (2, 4)))


@pytest.mark.parametrize("relative", [True, False])
def test_weights_are_moved_by_the_deviation(relative: bool) -> None:
    model = nn.Sequential(nn.Linear(100, 200, bias=False)).double()
    layer, x = model[0], torch.eye(100, dtype=torch.float64)
    WeightNoise(model, 0.2, relative=relative)
    moved = model(x).mT - layer.weight
    size = layer.weight.square().mean().sqrt().item() if relative else 1.0
    assert moved.std().item() == pytest.approx(0.2 * size, rel=0.03)
    assert not torch.equal(model(x), model(x))
    plain = nn.functional.linear(x, layer.weight)
    assert torch.equal(model.eval()(x), plain)


def test_the_gradient_is_that_at_the_noisy_weight() -> None:
    model, x = network(), torch.randn(6, 40, dtype=torch.float64)
    WeightNoise(model, 0.5)
    layer, seen = model[0], list[Tensor]()
    layer.register_forward_hook(lambda each, *_: seen.append(each.weight.detach().clone()))
    model[2].register_forward_hook(lambda each, *_: seen.append(each.weight.detach().clone()))
    model(x).square().sum().backward()
    first, last = (each.requires_grad_() for each in seen)
    hidden = nn.functional.linear(x, first, layer.bias).tanh()
    slopes = torch.autograd.grad(nn.functional.linear(hidden, last, model[2].bias).square().sum(), (first, last))
    torch.testing.assert_close(layer.weight.grad, slopes[0])
    torch.testing.assert_close(model[2].weight.grad, slopes[1])


def test_layers_for_noise_on_weights() -> None:
    model = nn.Sequential(nn.Conv2d(2, 3, 1), nn.Flatten(), nn.Linear(12, 2))
    assert WeightNoise(model, 0.1).layers == ["0", "2"]
    heads = alrao.Alrao(network(), heads=2)
    assert WeightNoise(heads, 0.1, layers="model.2").layers == ["model.2"]
    assert not torch.equal(heads(torch.ones(1, 40).double()), heads(torch.ones(1, 40).double()))


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.7, 1.0])
def test_labels_become_each_other_class_alike(rate: float) -> None:
    noise, labels = LabelNoise(network(), rate), torch.randint(4, (200, 300))
    noisy = noise.targets(labels)
    shift = (noisy - labels) % 4
    assert noisy.dtype == torch.int64
    assert noisy.min() >= 0
    assert noisy.max() < 4
    assert (shift == 0).double().mean().item() == pytest.approx(1 - rate, abs=0.01)
    for other in (1, 2, 3):
        assert (shift == other).double().mean().item() == pytest.approx(rate / 3, abs=0.01)


def test_labels_that_losses_ignore_stay_and_evaluation_has_the_right_ones() -> None:
    model = network()
    noise, labels = LabelNoise(model, 1.0), torch.tensor([-100, 0, 3, -100])
    noisy = noise.targets(labels)
    assert noisy[[0, 3]].tolist() == [-100, -100]
    assert (noisy[[1, 2]] != labels[[1, 2]]).all()
    assert noise.loss(labels) is None
    model.eval()
    assert noise.targets(labels) is labels
    model.train()
    noise.remove()
    assert torch.equal(noise.targets(labels), labels)


def test_the_number_of_classes_is_the_output_layers() -> None:
    assert LabelNoise(network(), 0.1).classes == 4
    assert LabelNoise(alrao.Alrao(network(), heads=3), 0.1).classes == 4
    assert LabelNoise(nn.Sequential(nn.Flatten()), 0.1, classes=7).classes == 7


def test_targets_of_a_regression_are_moved_by_the_deviation() -> None:
    noise, targets = LabelNoise(network(), deviation=0.5), torch.randn(100, 200)
    moved = noise.targets(targets) - targets
    assert moved.std().item() == pytest.approx(0.5, rel=0.03)
    with pytest.raises(ValueError, match="rate"):
        noise.targets(torch.randint(4, (3,)))
    with pytest.raises(ValueError, match="deviation"):
        LabelNoise(network(), 0.1).targets(targets)


@pytest.mark.parametrize(
    ("method", "options", "match"),
    [
        (InputNoise, {"deviation": -1.0}, "deviation"),
        (WeightNoise, {"deviation": float("nan")}, "deviation"),
        (WeightNoise, {"deviation": 0.1, "layers": ["1"]}, "is a Tanh"),
        (LabelNoise, {}, "either"),
        (LabelNoise, {"rate": 0.1, "deviation": 0.1}, "either"),
        (LabelNoise, {"rate": 1.1}, "from 0 to 1"),
        (LabelNoise, {"rate": 0.1, "classes": 1}, "at least 2"),
        (LabelNoise, {"deviation": -0.1}, "deviation"),
    ],
)
def test_what_is_out_of_range_is_refused(method: Any, options: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        method(network(), **options)


def test_it_is_attached_once_and_copied() -> None:
    model, x = network(), torch.randn(3, 40, dtype=torch.float64)
    InputNoise(model, 0.1)
    WeightNoise(model, 0.1)
    for method in (InputNoise, WeightNoise):
        with pytest.raises(ValueError, match="already"):
            method(model, 0.1)
    for each in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        torch.manual_seed(1)
        answer = each(x)
        torch.manual_seed(1)
        assert torch.equal(model(x), answer)
        assert not torch.equal(each(x), answer)


def test_a_lost_head_of_alrao_does_not_spoil_the_noise_of_the_others():
    net = alrao.Alrao(nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)), heads=4)
    with torch.no_grad():
        net.heads.weight[3] = torch.nan
        net.heads.weight[2] *= 1e6
    before = net.heads.weight.detach().clone()
    WeightNoise(net, 0.01)
    seen = []
    net.heads.register_forward_pre_hook(lambda layer, _: seen.append(layer.weight.detach().clone()))
    net(torch.randn(5, 4))
    apart = (seen[0][:2] - before[:2]).square().mean((1, 2)).sqrt() / before[:2].square().mean((1, 2)).sqrt()
    assert ((apart > 0.003) & (apart < 0.03)).all()
