"""Losses and scores against formulas written in numpy."""

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from hpc.objective import Objective

CPU = torch.device("cpu")


def objective(task: str, precision: torch.dtype = torch.float32) -> Objective:
    return Objective(task, CPU, precision)


def cross_entropies(answer: torch.Tensor, targets: torch.Tensor) -> np.ndarray:
    """Minus the logarithm of the softmax at the target, one by one, in float64."""
    logits = answer.double().numpy().reshape(-1, answer.shape[-1])
    return np.array([
        np.log(np.exp(row - row.max()).sum()) + row.max() - row[target]
        for row, target in zip(logits, targets.numpy().ravel(), strict=True)
    ])  # fmt: skip


def right_answers(answer: torch.Tensor, targets: torch.Tensor) -> int:
    best = answer.numpy().reshape(-1, answer.shape[-1]).argmax(-1)
    return int((best == targets.numpy().ravel()).sum())


def batch(task: str, count: int = 12) -> tuple[torch.Tensor, torch.Tensor]:
    """Answers and targets of a task."""
    generator = torch.Generator().manual_seed(3)
    match task:
        case "classification":
            shape, targets = (count, 5), torch.randint(0, 5, (count,), generator=generator)
        case "sequence":
            shape, targets = (count, 7, 5), torch.randint(0, 5, (count, 7), generator=generator)
        case _:
            shape, targets = (count, 3), torch.randn(count, 3, generator=generator)
    return 3 * torch.randn(shape, generator=generator), targets


def expected(task: str, answer: torch.Tensor, targets: torch.Tensor) -> np.ndarray:
    """Every single loss."""
    if task == "regression":
        return ((answer.double().numpy() - targets.double().numpy()) ** 2).ravel()
    return cross_entropies(answer, targets)


TASKS = ["classification", "sequence", "regression"]


@pytest.mark.parametrize("task", TASKS)
def test_the_loss_is_the_mean_over_all_answers(task):
    answer, targets = batch(task)
    loss = objective(task).loss(answer, targets)
    assert loss.shape == ()
    assert loss.item() == pytest.approx(expected(task, answer, targets).mean(), rel=1e-6)


@pytest.mark.parametrize("task", TASKS)
def test_the_score_is_sums_in_float64(task):
    answer, targets = batch(task)
    score = objective(task).score(answer, targets)
    losses = expected(task, answer, targets)
    assert score.dtype == torch.float64
    assert score[0].item() == pytest.approx(losses.sum(), rel=1e-6)
    assert score[2].item() == losses.size
    if task == "regression":
        assert math.isnan(score[1])
    else:
        assert score[1].item() == right_answers(answer, targets)
        assert 0 < score[1] < losses.size


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("cuts", [[1], [5], [3, 4, 11], list(range(1, 12))], ids=str)
def test_scores_of_any_split_of_a_batch_add_up(task, cuts):
    answer, targets = batch(task)
    whole = objective(task).score(answer, targets)
    answers, rest = answer.tensor_split(cuts), targets.tensor_split(cuts)
    parts = [objective(task).score(*part) for part in zip(answers, rest, strict=True)]
    torch.testing.assert_close(sum(parts), whole, rtol=1e-12, atol=0, equal_nan=True)


@pytest.mark.parametrize("task", TASKS)
def test_loss_and_score_agree(task):
    answer, targets = batch(task)
    score = objective(task).score(answer, targets)
    assert (score[0] / score[2]).item() == pytest.approx(objective(task).loss(answer, targets).item(), rel=1e-6)


class Devices(TorchDispatchMode):
    """The devices of all tensors that kernels are given."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.seen |= {value.device.type for value in args if isinstance(value, torch.Tensor)}
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("task", TASKS)
def test_a_score_needs_no_copy_from_the_host(task):
    """A copy waits for the device. Fake tensors take the same way through torch without a device."""
    with FakeTensorMode() as fake, Devices() as devices:
        answer, targets = (torch.empty_like(fake.from_tensor(value), device="cuda") for value in batch(task))
        devices.seen.clear()
        objective(task).score(answer, targets)
        assert devices.seen == {"cuda"}
        torch.tensor(3, device="cuda")  # what it would look like
        assert devices.seen == {"cuda", "cpu"}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
@pytest.mark.parametrize("task", TASKS)
def test_a_score_does_not_wait_for_the_device(task):
    cuda = torch.device("cuda")
    answer, targets = (value.to(cuda) for value in batch(task))
    torch.cuda.set_sync_debug_mode("error")
    try:
        score = Objective(task, cuda, torch.float32).score(answer, targets)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.testing.assert_close(score.cpu(), objective(task).score(*batch(task)), equal_nan=True, rtol=1e-6, atol=0)


def test_an_empty_batch_scores_nothing():
    score = objective("classification").score(torch.zeros(0, 5), torch.zeros(0, dtype=torch.int64))
    assert score.tolist() == [0, 0, 0]


@pytest.mark.parametrize("task", TASKS)
def test_gradients_flow_from_the_loss_of_a_model(task):
    answer, targets = batch(task)
    model = nn.Linear(answer.shape[-1], answer.shape[-1])
    minimised, loss = objective(task)(model, answer, targets)
    minimised.backward()
    assert not loss.requires_grad
    assert loss.item() == pytest.approx(expected(task, model(answer).detach(), targets).mean(), rel=1e-5)
    assert all(parameter.grad.abs().sum() > 0 for parameter in model.parameters())


class Spy(nn.Module):
    """A linear layer that remembers in which precision it computed."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(5, 5)
        self.seen = None

    def forward(self, inputs):
        answer = self.linear(inputs)
        self.seen = answer.dtype
        return answer


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16], ids=str)
def test_the_answer_is_float32_in_whatever_precision_it_was_computed(precision):
    answer, targets = batch("classification")
    model = Spy()
    loss, _ = objective("classification", precision)(model, answer, targets)
    loss.backward()
    assert model.seen == precision
    assert loss.dtype == model.linear.weight.grad.dtype == model.linear.weight.dtype == torch.float32
    assert objective("classification", precision).answer(model, answer).dtype == torch.float32


def test_bfloat16_is_close_to_float32():
    answer, targets = batch("classification")
    torch.manual_seed(0)
    model = Spy()
    exact, rough = (objective("classification", p)(model, answer, targets)[1] for p in (torch.float32, torch.bfloat16))
    assert exact.item() == pytest.approx(rough.item(), rel=0.02)
    assert exact.item() != rough.item()


def test_autocast_ends_with_the_answer():
    objective("classification", torch.bfloat16).answer(Spy(), batch("classification")[0])
    assert not torch.is_autocast_enabled("cpu")
