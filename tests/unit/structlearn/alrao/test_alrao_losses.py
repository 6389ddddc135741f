"""The mixture's loss, against the definition and against autograd."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import multivariate_normal
from torch import Tensor
from torch.nn.functional import cross_entropy

from structlearn.alrao.losses import mixture_loss

EXACT = {"rtol": 1e-12, "atol": 1e-12}


def example(task: str, heads: int = 3, examples: int = 5, outputs: int = 4, seed: int = 0) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    answers = 3 * torch.randn(heads, examples, outputs, dtype=torch.float64, generator=generator)
    posterior = torch.randn(heads, dtype=torch.float64, generator=generator).log_softmax(0)
    if task == "classification":
        return answers, torch.randint(outputs, (examples,), generator=generator), posterior
    return answers, torch.randn(examples, outputs, dtype=torch.float64, generator=generator), posterior


def by_definition(task: str, answers: Tensor, targets: Tensor) -> Tensor:
    """Log-likelihoods, [K, N]."""
    if task == "classification":
        return torch.stack([-cross_entropy(each, targets, reduction="none") for each in answers])
    return torch.stack(
        [torch.distributions.Normal(each, torch.ones_like(each)).log_prob(targets).sum(-1) for each in answers]
    )


@pytest.mark.parametrize("task", ["classification", "regression"])
@settings(max_examples=25, deadline=None)
@given(st.integers(1, 5), st.integers(1, 6), st.integers(1, 5), st.integers(0, 1000))
def test_loss_and_both_gradients_are_those_of_autograd(task: str, k: int, n: int, c: int, seed: int) -> None:
    answers, targets, posterior = example(task, k, n, c, seed)
    outputs = answers.repeat(2, 1, 1, 1).requires_grad_()
    loss, likelihoods = mixture_loss(task, outputs, targets, posterior)
    (7 * loss).backward()

    plain = answers.clone().requires_grad_()
    log_p = by_definition(task, plain, targets)
    expected = -(log_p + posterior[:, None]).logsumexp(0).mean()
    (mixture,) = torch.autograd.grad(expected, plain, retain_graph=True)
    (own,) = torch.autograd.grad(-log_p.mean(1).sum(), plain)
    torch.testing.assert_close(loss, expected, **EXACT)
    torch.testing.assert_close(likelihoods, log_p.mean(1), **EXACT)
    torch.testing.assert_close(outputs.grad[0], 7 * mixture, **EXACT)
    torch.testing.assert_close(outputs.grad[1], 7 * own, **EXACT)


def test_the_reported_loss_has_the_mixtures_slope() -> None:
    """By differences: the first half's gradient is the loss's own, so the reported number is what the trunk follows."""
    for task in ("classification", "regression"):
        answers, targets, posterior = example(task)
        outputs = answers.repeat(2, 1, 1, 1).requires_grad_()
        mixture_loss(task, outputs, targets, posterior)[0].backward()
        step = 1e-6 * torch.randn_like(answers)
        up, down = (mixture_loss(task, (answers + sign * step)[None], targets, posterior)[0] for sign in (1, -1))
        torch.testing.assert_close((outputs.grad[0] * step).sum(), (up - down) / 2, rtol=1e-6, atol=1e-14)


@pytest.mark.parametrize("outputs", [1, 3])
def test_the_density_of_a_regression_is_the_normal_one(outputs: int) -> None:
    answers, targets, _ = example("regression", heads=1, outputs=outputs)
    loss, likelihoods = mixture_loss("regression", answers[None], targets, torch.zeros(1, dtype=torch.float64))
    expected = [
        multivariate_normal.logpdf(y.numpy(), mean=mean.numpy()) for y, mean in zip(targets, answers[0], strict=True)
    ]
    assert float(likelihoods) == -float(loss) == pytest.approx(sum(expected) / len(expected), abs=1e-12)


@pytest.mark.parametrize("task", ["classification", "regression"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_head_that_is_not_finite_takes_no_part(task: str, value: float) -> None:
    answers, targets, posterior = example(task)
    spoilt = answers.clone()
    spoilt[1, 2] = value
    outputs = spoilt.repeat(2, 1, 1, 1).requires_grad_()
    loss, likelihoods = mixture_loss(task, outputs, targets, posterior)
    loss.backward()
    rest = answers[[0, 2]].repeat(2, 1, 1, 1).requires_grad_()
    expected, _ = mixture_loss(task, rest, targets, posterior[[0, 2]].log_softmax(0))
    expected.backward()
    assert likelihoods.isfinite().tolist() == [True, False, True]
    torch.testing.assert_close(loss, expected, **EXACT)
    torch.testing.assert_close(outputs.grad[:, [0, 2]], rest.grad, **EXACT)
    assert not outputs.grad[:, 1].any()


@pytest.mark.parametrize("task", ["classification", "regression"])
def test_a_head_that_is_lost_has_no_gradient_whatever_it_answers(task: str) -> None:
    answers, targets, posterior = example(task)
    answers[1] = math.nan
    posterior = posterior.index_fill(0, torch.tensor([1]), -math.inf).log_softmax(0)
    outputs = answers.repeat(2, 1, 1, 1).requires_grad_()
    loss, _ = mixture_loss(task, outputs, targets, posterior)
    loss.backward()
    assert loss.isfinite()
    assert outputs.grad.isfinite().all()
    assert not outputs.grad[:, 1].any()


def test_where_no_head_is_finite_the_loss_says_so() -> None:
    for task in ("classification", "regression"):
        answers, targets, posterior = example(task)
        assert not mixture_loss(task, answers[None] * math.nan, targets, posterior)[0].isfinite()


def test_second_derivatives_are_refused_not_wrong() -> None:
    answers, targets, posterior = example("classification")
    outputs = answers.repeat(2, 1, 1, 1).requires_grad_()
    loss, _ = mixture_loss("classification", outputs, targets, posterior)
    with pytest.raises(RuntimeError, match="first derivatives only"):
        torch.autograd.grad(loss, outputs, create_graph=True)
