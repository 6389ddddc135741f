"""What a network is trained for: the loss of a batch, and how well a batch is answered."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch.nn.functional import cross_entropy, mse_loss

from hpc.errors import RunError
from hpc.regularizers import Regularizers, Task
from structlearn.alrao import Alrao

Model = Callable[[torch.Tensor], torch.Tensor]
"""A network, or its compiled form."""


@dataclass(frozen=True)
class Objective:
    """The loss of a task. Regularisers act here, so that the loop never asks.

    Penalties on weights do not: they add gradients to what backward has left (``hpc.penalties``).

    Attributes:
        task: classification (cross-entropy), sequence (the same, at each place of a sequence), or regression
            (mean squared error over samples and targets).
        device: where the batches are.
        precision: of the forward pass; bfloat16 runs it under autocast.
        outputs: the least width of an answer (classes, characters, targets).
        mixture: the network, where its loss in training is that of a mixture of heads.
        regularizers: what changes the targets of a step, and adds to its loss.
    """

    task: Task
    device: torch.device
    precision: torch.dtype
    outputs: int = 0
    mixture: Alrao | None = None
    regularizers: Regularizers = field(default_factory=Regularizers)

    def __call__(self, model: Model, inputs: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Of a batch to train on: (what is minimised, a scalar that gradients flow from; the task's part of it)."""
        targets = self.regularizers.targets(targets)
        loss = self.loss(self.answer(model, inputs), targets)
        return self.regularizers.added(loss, targets), loss.detach()

    def answer(self, model: Model, inputs: torch.Tensor) -> torch.Tensor:
        """The network's answer to a batch, in float32."""
        if self.precision == torch.float32:
            answer = model(inputs)
        else:
            with torch.autocast(self.device.type, dtype=self.precision):
                answer = model(inputs).float()
        if answer.dim() < 2 or answer.shape[-1] < self.outputs:
            raise RunError(
                f"model: it answers with the shape {tuple(answer.shape)}, but the last dimension must hold "
                f"{self.outputs} output(s) for each sample; mend the network"
            )
        return answer

    def loss(self, answer: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """The mean loss: answers [B, K] (sequence: [B, T, K]; regression: [B, D]) against targets."""
        if self.mixture is not None and self.mixture.training:
            return self.mixture.loss(answer, targets)
        match self.task:
            case "classification":
                return cross_entropy(answer, targets)
            case "sequence":
                return cross_entropy(answer.flatten(0, 1), targets.flatten())
            case "regression":
                return mse_loss(answer, targets)

    def score(self, answer: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Sums that ranks can add: [sum of losses, right answers, number of answers], float64.

        Nothing here waits for a device: numbers of the host are filled in by a kernel, for a copy would wait.
        """
        if self.task == "regression":
            right = answer.new_full((), math.nan, dtype=torch.float64)
        else:
            answer, targets = answer.flatten(0, -2), targets.flatten()
            right = (answer.argmax(-1) == targets).sum().double()
        answers = right.new_full((), targets.numel())
        return torch.stack([self.loss_sum(answer, targets), right, answers])

    def loss_sum(self, answer: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """The sum of losses of flat answers, in float64."""
        if self.task == "regression":
            return (answer - targets).double().square().sum()
        return cross_entropy(answer, targets, reduction="none").double().sum()
