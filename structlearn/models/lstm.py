"""Recurrent networks for text."""

from __future__ import annotations

from torch import Tensor, nn

from structlearn.checks import check_choice, check_count
from structlearn.models.base import Net, scaled
from structlearn.models.checks import check_shape


class Recurrent(nn.Module):
    """One LSTM layer: (batch, T, inputs) to (batch, T, cells); starts from zero at each call.

    One module a layer, not one `nn.LSTM` for all: so pruning can give each layer its own number of cells.
    """

    def __init__(self, inputs: int, cells: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(inputs, cells, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        """The hidden state after each token."""
        y: Tensor = self.lstm(x)[0]
        return y


def lstm(
    input_shape: tuple[int, ...],
    outputs: int,
    *,
    width: float = 1.0,
    activation: str = "tanh",
    dropout: float = 0.2,
    hidden: int = 100,
    embedding: int = 100,
    layers: int = 2,
) -> Net:
    """A language model (W 2.5.2): int64 tokens (batch, T) to scores of the next token (batch, T, outputs).

    The output at t depends on the tokens up to t only. The defaults are W's network for characters; with
    its 50 symbols 171,650 parameters (W table 2.2: 0.172M). All parameters start as torch draws them:
    embedding N(0, 1), the rest uniform +-1/sqrt(cells).

    Args:
        input_shape: (T,), the length of a sequence; any length can be given later.
        outputs: Size of the vocabulary.
        width: Factor on `hidden` and `embedding`.
        activation: "tanh" only: the cell is torch's.
        dropout: Rate of the dropout before the output layer; there is none between layers.
        hidden: Cells of each layer.
        embedding: Size of the vector that stands for a token.
        layers: Number of LSTM layers.
    """
    check_shape("lstm", input_shape, ("time",))
    check_choice("activation of the lstm's cells", activation, ("tanh",))
    cells, inputs = scaled(hidden, width), scaled(embedding, width)
    chain: list[nn.Module] = [nn.Embedding(check_count("outputs", outputs), inputs)]
    for _ in range(check_count("layers", layers)):
        chain.append(Recurrent(inputs, cells))
        inputs = cells
    return Net(nn.Sequential(*chain), cells, outputs, dropout=dropout)
