"""K output layers in one: their answers, and gradients as of K separate layers."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from structlearn.alrao import Heads

EXACT = {"rtol": 1e-12, "atol": 1e-12}


def layer(kind: type, *, bias: bool = True) -> nn.Module:
    torch.manual_seed(0)
    return (nn.Linear(3, 4, bias=bias) if kind is nn.Linear else nn.Conv2d(3, 4, 1, bias=bias)).double()


def features(kind: type, *axes: int) -> Tensor:
    return torch.randn(2, *axes, 3, dtype=torch.float64) if kind is nn.Linear else torch.randn(2, 3, *axes).double()


CASES = [(nn.Linear, ()), (nn.Linear, (5,)), (nn.Linear, (5, 2)), (nn.Conv2d, (4, 5))]


@pytest.mark.parametrize(("kind", "axes"), CASES)
@pytest.mark.parametrize("bias", [True, False])
def test_answers_and_gradients_are_those_of_separate_layers(kind: type, axes: tuple[int, ...], bias: bool) -> None:
    heads = Heads(layer(kind, bias=bias), 3)
    z = features(kind, *axes).requires_grad_()
    plain = [heads.plain(copy) for copy in range(3)]
    mine, theirs = (z.detach().clone().requires_grad_() for _ in range(2))
    outputs = heads(mine)
    answers = outputs.unflatten(0, (2, 3, 2))
    expected = torch.stack([each(theirs) for each in plain])
    torch.testing.assert_close(answers, torch.stack([expected, expected]), **EXACT)

    first, second = torch.randn(2, *expected.shape, dtype=torch.float64)
    (answers[0] * first + answers[1] * second).sum().backward()
    (expected * first).sum().backward()  # to the features
    torch.testing.assert_close(mine.grad, theirs.grad, **EXACT)
    for each in plain:
        each.zero_grad()
    (torch.stack([each(z.detach()) for each in plain]) * second).sum().backward()  # to the weights
    weights = torch.stack([each.weight.grad.flatten(1) for each in plain])
    torch.testing.assert_close(heads.weight.grad, weights, **EXACT)
    if bias:
        torch.testing.assert_close(heads.bias.grad, torch.stack([each.bias.grad for each in plain]), **EXACT)
    assert (heads.bias is not None) == bias


@pytest.mark.parametrize(("kind", "axes"), CASES)
def test_in_evaluation_and_without_gradients_each_answer_is_there_once(kind: type, axes: tuple[int, ...]) -> None:
    heads = Heads(layer(kind), 3)
    z = features(kind, *axes)
    twice = heads(z)
    with torch.no_grad():
        assert torch.equal(heads(z), twice[: len(twice) // 2])
    assert torch.equal(heads.eval()(z), twice[: len(twice) // 2])


def test_gradients_in_evaluation_are_those_of_the_answers() -> None:
    heads = Heads(layer(nn.Linear), 3).eval()
    z = features(nn.Linear).requires_grad_()
    assert torch.autograd.gradcheck(lambda z, *_: heads(z), (z, *heads.parameters()))


def test_features_or_weights_may_need_no_gradient() -> None:
    heads = Heads(layer(nn.Linear), 3)
    heads(features(nn.Linear)).sum().backward()
    assert heads.weight.grad is not None
    heads.requires_grad_(False)
    z = features(nn.Linear).requires_grad_()
    heads(z).sum().backward()
    assert z.grad is not None


def test_copy_0_starts_as_the_layer_and_the_others_are_drawn_again_unless_the_same_is_asked_for() -> None:
    given = layer(nn.Linear)
    before = {key: value.clone() for key, value in given.state_dict().items()}
    heads = Heads(given, 3)
    assert all(torch.equal(value, before[key]) for key, value in given.state_dict().items())
    assert torch.equal(heads.weight[0], given.weight)
    assert len({tuple(each.flatten().tolist()) for each in heads.weight}) == 3
    same = Heads(given, 3, same=True)
    assert torch.equal(same.weight, given.weight.expand(3, -1, -1))
    assert torch.equal(same.bias, given.bias.expand(3, -1))
    assert "copies=3" in repr(same)


@pytest.mark.parametrize("kind", [nn.Linear, nn.Conv2d])
def test_low_precision_features_are_taken_and_have_gradients_of_their_own_kind(kind: type) -> None:
    heads = Heads(layer(kind).float(), 3)
    z = features(kind, *((4, 5) if kind is nn.Conv2d else ())).float()
    low = z.bfloat16().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        outputs = heads(low)
        assert outputs.dtype == torch.float32
        outputs.sum().backward()
    assert low.grad.dtype == torch.bfloat16
    torch.testing.assert_close(outputs, heads(z), rtol=0.02, atol=0.02)
