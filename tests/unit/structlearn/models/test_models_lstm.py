"""The language model: causal, stateless between calls, and the same as torch's stacked LSTM."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from structlearn.models import build

if TYPE_CHECKING:
    from structlearn.models import Net


def recurrent(model: Net) -> list[nn.LSTM]:
    return [layer for layer in model.modules() if isinstance(layer, nn.LSTM)]


def test_lstm_output_depends_on_earlier_tokens_only() -> None:
    model = build("lstm", (12,), 20).eval()
    tokens = torch.randint(0, 20, (2, 12))
    changed = tokens.clone()
    changed[:, 7] = (tokens[:, 7] + 1) % 20
    before, after = model(tokens), model(changed)
    assert torch.equal(before[:, :7], after[:, :7])
    moved = (before - after).abs().amax(dim=(0, 2))
    assert (moved[7:] > 0).all()


def test_lstm_starts_from_zero_at_each_call_and_takes_any_length() -> None:
    model = build("lstm", (12,), 20, layers=3, hidden=7, embedding=9).eval()
    tokens = torch.randint(0, 20, (2, 12))
    first = model(tokens)
    assert torch.equal(model(tokens), first)
    torch.testing.assert_close(model(tokens[:, :5]), first[:, :5])
    assert [m.hidden_size for m in recurrent(model)] == [7, 7, 7]
    assert model.features[0].weight.shape == (20, 9)


def test_lstm_computes_what_one_stacked_torch_lstm_does() -> None:
    model = build("lstm", (12,), 20, hidden=7, embedding=9).eval()
    stacked = nn.LSTM(9, 7, num_layers=2, batch_first=True)
    state = {
        f"{key[:-1]}{number}": value
        for number, layer in enumerate(recurrent(model))
        for key, value in layer.state_dict().items()
    }
    stacked.load_state_dict(state)
    tokens = torch.randint(0, 20, (2, 12))
    expected = model.head(stacked(model.features[0](tokens))[0])
    torch.testing.assert_close(model(tokens), expected)
