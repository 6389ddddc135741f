"""What an output layer sees of its input: the orthogonal complement of its weight's kernel (B 5.2.1 and 5.3)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from structlearn.checks import check_count


def row_space(weight: Tensor) -> Tensor:
    """V of the compact SVD of W = U S V^T, [D, min(C, D)]; W V V^T = W.

    Columns of singular values that are zero to rounding (at most eps * max(C, D) times the largest, as in
    torch.linalg.matrix_rank) are set to zero, and so is what is not finite in W: the shape never depends on values. On
    CUDA torch's SVD makes the host wait for it, once a refresh.

    Args:
        weight: W, [C, D].
    """
    _, singular, rows = torch.linalg.svd(weight.detach().nan_to_num(0.0, 0.0, 0.0), full_matrices=False)
    least = torch.finfo(weight.dtype).eps * max(weight.shape) * singular[:1]
    basis: Tensor = (rows * (singular > least)[:, None]).mT.contiguous()
    return basis  # one layout, so that products have the same bits


class Projection(nn.Module):
    """V of an output layer, worked out anew every so many batches.

    It is state: a run that goes on from a checkpoint goes on with the same V. It is no buffer, since a mean of two
    bases is none, and ranks that mix their networks mix buffers; nor is it cut, but forgotten when the network is.

    Args:
        refresh: After so many batches; 1: in each.
    """

    def __init__(self, refresh: int) -> None:
        super().__init__()
        self.refresh = check_count("refresh", refresh)
        self.basis: Tensor | None = None
        self.age = 0
        """Batches that the basis has served."""

    def forward(self, weight: Tensor) -> Tensor:
        """V for one more batch.

        Args:
            weight: W as it is now, [C, D].
        """
        basis, shape = self.basis, (weight.shape[1], min(weight.shape))
        if basis is None or self.age >= self.refresh or basis.shape != shape:
            basis, self.age = row_space(weight), 0
        self.basis = basis.to(weight)  # elsewhere only after a checkpoint, or a move of the network
        self.age += 1
        return self.basis

    def forget(self) -> None:
        """Work out V at the next batch."""
        self.basis, self.age = None, 0

    def get_extra_state(self) -> Tensor:
        """[2 + D r], float64: age, r, and the basis."""
        basis = self.basis
        if basis is None:
            return torch.zeros(2, dtype=torch.float64)
        head = torch.tensor([self.age, basis.shape[1]], dtype=torch.float64).to(basis.device)
        return torch.cat([head, basis.double().flatten()])

    def set_extra_state(self, state: Tensor) -> None:
        """Take back what :meth:`get_extra_state` gave, of whatever size."""
        age, columns = (int(each) for each in state[:2].tolist())
        self.age, self.basis = age, None
        if columns:
            self.basis = state[2:].view(-1, columns).clone()

    def extra_repr(self) -> str:
        """How often."""
        return f"refresh={self.refresh}"
