"""A user's own model that makes trouble on demand: on one rank, at one forward pass.

TROUBLE="kill 1 20": rank 1 is killed in its 20th training step. Others: raise, sleep, freeze.
"""

import os
import signal
import time

import torch
from torch import nn


class Troubled(nn.Module):
    """A small network with dropout and batch normalisation, so that a resumed run needs all of its state."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Flatten(), nn.Linear(inputs, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Dropout(0.3), nn.Linear(32, outputs)
        )
        self.steps = 0

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if self.training and "TROUBLE" in os.environ:
            self.steps += 1
            kind, rank, step = os.environ["TROUBLE"].split()
            if int(os.environ.get("PMI_RANK", os.environ.get("OMPI_COMM_WORLD_RANK", "0"))) == int(rank):
                self.trouble(kind, int(step))
        return self.layers(images)

    def trouble(self, kind: str, step: int) -> None:
        if self.steps != step:
            return
        if kind == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        elif kind == "term":
            os.kill(os.getpid(), signal.SIGTERM)
        elif kind == "freeze":
            os.kill(os.getpid(), signal.SIGSTOP)
        elif kind == "sleep":
            time.sleep(60)
        elif kind == "raise":
            raise ValueError("the model has had enough")


def build(input_shape: tuple[int, ...], outputs: int) -> nn.Module:
    return Troubled(torch.Size(input_shape).numel(), outputs)
