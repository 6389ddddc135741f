"""How good the ranks' network is: every rank scores its share of the samples, and the sums are added."""

import math
from collections.abc import Iterable
from typing import NamedTuple

import torch

from hpc.communicator import Communicator
from hpc.objective import Model, Objective


class Score(NamedTuple):
    """Mean loss and share of right answers (nan where there is none: regression, or no samples)."""

    loss: float
    accuracy: float


def evaluate(
    model: Model,
    batches: Iterable[tuple[torch.Tensor, torch.Tensor]],
    objective: Objective,
    comm: Communicator,
    what: str,
) -> Score:
    """Score a network on samples that are spread over the ranks. Collective.

    Args:
        model: the same network on every rank, in evaluation mode.
        batches: this rank's share of the samples.
        objective: the task.
        comm: the ranks.
        what: which samples, for the error of a rank that waits.
    """
    sums = torch.zeros(3, dtype=torch.float64, device=objective.device)
    with torch.no_grad():
        for inputs, targets in batches:
            sums += objective.score(objective.answer(model, inputs), targets)
    total = sums.cpu()
    comm.sum_(total, f"evaluate on {what}")
    loss, right, answers = total.tolist()
    return Score(loss / answers, right / answers) if answers else Score(math.nan, math.nan)
