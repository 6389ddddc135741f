"""Evaluation against one direct computation over all samples."""

import math

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy, mse_loss

from hpc.alone import Alone
from hpc.evaluate import evaluate
from hpc.objective import Objective

CPU = torch.device("cpu")


def data(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(count, 4, generator=generator), torch.randint(0, 3, (count,), generator=generator)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return nn.Linear(4, 3).eval()


def batches(size: int, inputs: torch.Tensor, targets: torch.Tensor):
    return zip(inputs.split(size), targets.split(size), strict=True)


@pytest.mark.parametrize("size", [1, 7, 50, 1000])
def test_batches_of_any_size_give_the_direct_result(model, size):
    inputs, targets = data(50)
    objective = Objective("classification", CPU, torch.float32)
    score = evaluate(model, batches(size, inputs, targets), objective, Alone(), "x")
    answer = model(inputs)
    assert score.loss == pytest.approx(cross_entropy(answer.double(), targets).item(), rel=1e-6)
    assert score.accuracy == (answer.argmax(1) == targets).double().mean().item()


def test_a_regression_has_a_loss_and_no_accuracy(model):
    inputs, _ = data(50)
    targets = torch.randn(50, 3, generator=torch.Generator().manual_seed(2))
    score = evaluate(model, batches(7, inputs, targets), Objective("regression", CPU, torch.float32), Alone(), "x")
    assert score.loss == pytest.approx(mse_loss(model(inputs), targets).item(), rel=1e-6)
    assert math.isnan(score.accuracy)


@pytest.mark.parametrize("task", ["classification", "regression", "sequence"])
def test_no_samples_are_not_a_number(model, task):
    score = evaluate(model, [], Objective(task, CPU, torch.float32), Alone(), "x")
    assert math.isnan(score.loss)
    assert math.isnan(score.accuracy)


class Others(Alone):
    """A rank beside others, who have scored the rest."""

    def __init__(self, sums: torch.Tensor) -> None:
        self.sums, self.waits = sums, []

    def sum_(self, values, what):
        values += self.sums
        self.waits.append(what)


@pytest.mark.parametrize("mine", [0, 1, 17, 50])
def test_ranks_together_give_what_one_alone_gives(model, mine):
    """However many samples each has: a mean of means would be wrong."""
    inputs, targets = data(50)
    objective = Objective("classification", CPU, torch.float32)
    alone = evaluate(model, [(inputs, targets)], objective, Alone(), "x")
    others = Others(objective.score(model(inputs[mine:]), targets[mine:]).detach())
    together = evaluate(model, [(inputs[:mine], targets[:mine])] if mine else [], objective, others, "valid")
    assert together == pytest.approx(alone, rel=1e-12)
    assert others.waits == ["evaluate on valid"]


def test_no_graph_is_built(model):
    inputs, targets = data(5)
    seen = []

    def watched(values):
        answer = model(values)
        seen.append(answer.requires_grad)
        return answer

    evaluate(watched, [(inputs, targets)], Objective("classification", CPU, torch.float32), Alone(), "x")
    assert seen == [False]
