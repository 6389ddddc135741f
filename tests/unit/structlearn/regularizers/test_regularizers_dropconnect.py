"""DropConnect: its expectation over all masks, its gradient, one mask a batch, and every kind of layer."""

from __future__ import annotations

import copy
import pickle
from itertools import product

import pytest
import torch
from torch import Tensor, nn

from structlearn import alrao, scala
from structlearn.regularizers import DropConnect, WeightNoise
from structlearn.structure import Plan, Structure


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()


def test_the_expectation_over_all_masks_is_evaluations() -> None:
    model, rate = nn.Sequential(nn.Linear(3, 2)).double(), 0.3
    layer, x = model[0], torch.randn(5, 3, dtype=torch.float64)
    answers, chances = {}, {}
    for mask in product((0, 1), repeat=6):
        kept = torch.tensor(mask, dtype=torch.float64).view(2, 3)
        answers[mask] = nn.functional.linear(x, layer.weight * kept / (1 - rate), layer.bias)
        chances[mask] = (1 - rate) ** sum(mask) * rate ** (6 - sum(mask))
    plain = model(x)
    torch.testing.assert_close(sum(chances[mask] * answers[mask] for mask in answers), plain)
    DropConnect(model, rate)
    table, seen = torch.stack(list(answers.values())), torch.zeros(64)
    for _ in range(4000):
        near = (table - model(x)).abs().amax((1, 2))
        assert near.min() < 1e-12  # all examples of a batch have one mask
        seen[near.argmin()] += 1
    wanted = torch.tensor(list(chances.values()))
    assert ((seen / 4000 - wanted).abs() < 5 * (wanted / 4000).sqrt()).all()
    model.eval()
    assert torch.equal(model(x), plain)


def test_the_gradient_reaches_the_weight_through_the_mask() -> None:
    model, x = network(), torch.randn(6, 3, dtype=torch.float64)
    DropConnect(model, 0.5, layers=["0"])
    layer, seen = model[0], list[Tensor]()
    layer.register_forward_hook(lambda each, *_: seen.append(each.weight))
    model(x).square().sum().backward()
    (masked,) = seen
    mask = (masked != 0).double() * 2
    torch.testing.assert_close(masked, layer.weight * mask)
    own = (layer.weight.detach() * mask).requires_grad_()
    answer = model[1:](nn.functional.linear(x, own, layer.bias))
    (slope,) = torch.autograd.grad(answer.square().sum(), own)
    torch.testing.assert_close(layer.weight.grad, slope * mask)
    assert 0 < (mask == 0).sum() < mask.numel()


def test_weights_are_as_they_were_after_a_pass_and_after_one_that_failed() -> None:
    model = network()
    names, parameter = list(model.state_dict()), model[0].weight
    DropConnect(model, 0.5)
    model(torch.randn(2, 3, dtype=torch.float64))
    assert model[0].weight is parameter
    with pytest.raises(RuntimeError):
        model(torch.randn(2, 9, dtype=torch.float64))
    assert model[0].weight is parameter
    assert list(model.state_dict()) == names
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = parameter.detach().clone()
    model(torch.randn(2, 3, dtype=torch.float64)).sum().backward()
    optimizer.step()
    assert not torch.equal(model[0].weight, before)


class Shared(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.tied = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)
        self.tied.weight = self.layer.weight

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.layer(x), self.layer(x), self.tied(x)


def test_a_weight_has_one_mask_a_batch_wherever_it_is_used() -> None:
    model, x = Shared(), torch.eye(4)
    DropConnect(model, 0.5)
    first, second, tied = model(x)
    assert torch.equal(first, second)
    assert torch.equal(first, tied)
    assert not torch.equal(first, model(x)[0])


def test_copies_have_their_own_weights() -> None:
    model, x = network(), torch.randn(2, 3, dtype=torch.float64)
    DropConnect(model, 0.5)
    for each in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        with torch.no_grad():
            for parameter in each.parameters():
                parameter.zero_()
        assert torch.equal(each(x), torch.zeros(2, 2, dtype=torch.float64))
        torch.manual_seed(1)
        answer = model(x)
        torch.manual_seed(1)
        assert torch.equal(model(x), answer)
        assert answer.abs().sum() > 0


def test_scaled_layers_convolutions_and_alraos_heads() -> None:
    x = torch.randn(5, 3, dtype=torch.float64)
    scaled = scala.adopt(network())
    heads = alrao.Alrao(network(), heads=3)
    maps = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Conv2d(3, 2, 1)).double()
    images = torch.randn(2, 2, 6, 6, dtype=torch.float64)
    for model, given, layers in ((scaled, x, None), (heads, x, None), (maps, images, ["0", "1"])):
        drop = DropConnect(model, 0.5, layers=layers)
        assert not torch.equal(model(given), model(given))
        answer = model(given)
        answer.square().sum().backward()
        for name in drop.layers:
            slope = model.get_submodule(name).weight.grad
            assert isinstance(slope, Tensor)
            assert slope.abs().max() > 0
        model.eval()
        assert torch.equal(model(given), model(given))
        model.train()
        drop.remove()
        assert torch.equal(model(given), model(given))
    assert DropConnect(heads, 0.5).layers == ["model.0", "model.2"]


class Looking(nn.Module):
    """Looks at numbers, so that its structure is followed with numbers, and has a part that evaluation leaves out."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last, self.extra = nn.Linear(3, 8), nn.Linear(8, 2), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        assert x.sum().item() < 1e9
        y = self.first(x).relu()
        answer: Tensor = self.last(y)
        return answer + self.extra(y) if self.training else answer


@pytest.mark.parametrize("method", [DropConnect, WeightNoise])
def test_units_can_be_cut(method: type[DropConnect | WeightNoise]) -> None:
    x = torch.randn(6, 3)
    for model in (network().float(), Looking()):
        name = "0" if isinstance(model, nn.Sequential) else "first"
        wanted = Structure(copy.deepcopy(model), x)
        method(model, 0.5)
        structure = Structure(model, x)
        assert structure.fixed == wanted.fixed
        structure.apply(Plan({name: (1, 3)}))
        wanted.apply(Plan({name: (1, 3)}))
        assert model(x).shape == (6, 2)
        torch.testing.assert_close(model.eval()(x), wanted.model.eval()(x))


def test_several_that_change_one_weight_add_up() -> None:
    model, x = nn.Sequential(nn.Linear(20, 20)).double(), torch.eye(20, dtype=torch.float64)
    noise, drop = WeightNoise(model, 0.1, relative=False), DropConnect(model, 0.5)
    seen = (model(x) - model[0].bias).mT
    gone = seen.abs() < 1e-12
    assert 0.3 < gone.double().mean() < 0.7
    left = (seen / 2 - model[0].weight)[~gone]
    assert left.std().item() == pytest.approx(0.1, rel=0.3)
    noise.remove()
    drop.remove()
    torch.testing.assert_close(model(x), model[0](x), rtol=0, atol=0)
    assert "weight" not in vars(model[0])


def test_what_cannot_be_masked_is_refused() -> None:
    recurrent = nn.Sequential(nn.LSTM(3, 4))
    with pytest.raises(ValueError, match="is a LSTM"):
        DropConnect(recurrent, 0.5, layers=["0"])
    with pytest.raises(ValueError, match="none; name other"):
        DropConnect(recurrent, 0.5)
    with pytest.raises(ValueError, match="not in this network"):
        DropConnect(network(), 0.5, layers=["7"])
    with pytest.raises(ValueError, match="empty"):
        DropConnect(network(), 0.5, layers=[])
    with pytest.raises(ValueError, match="rate"):
        DropConnect(network(), 1.0)
    model = network()
    DropConnect(model, 0.5)
    with pytest.raises(ValueError, match="already"):
        DropConnect(model, 0.5)
