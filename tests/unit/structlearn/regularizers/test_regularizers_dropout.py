"""Dropout before layers: its expectation over all masks, where it acts, and that evaluation goes without."""

from __future__ import annotations

import copy
import pickle
from itertools import product

import pytest
import torch
from torch import Tensor, nn

from structlearn import alrao
from structlearn.models import build
from structlearn.regularizers import Dropout
from structlearn.structure import Plan, Structure


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def network() -> nn.Sequential:
    return nn.Sequential(nn.Flatten(), nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()


def test_the_expectation_over_all_masks_is_evaluations() -> None:
    model = network()
    last, x, rate = model[3], torch.randn(1, 3, dtype=torch.float64), 0.3
    hidden = model[:3](x)
    answers, chances = {}, {}
    for mask in product((0, 1), repeat=4):
        kept = torch.tensor(mask, dtype=torch.float64)
        answers[mask] = last(hidden * kept / (1 - rate))
        chances[mask] = (1 - rate) ** sum(mask) * rate ** (4 - sum(mask))
    plain = model(x)
    torch.testing.assert_close(sum(chances[mask] * answers[mask] for mask in answers), plain)
    Dropout(model, rate)
    seen = dict.fromkeys(answers, 0)
    for _ in range(3000):
        found = model(x)
        (mask,) = (mask for mask, answer in answers.items() if torch.allclose(answer, found))
        seen[mask] += 1
    for mask, count in seen.items():
        assert count / 3000 == pytest.approx(chances[mask], abs=4 * (chances[mask] / 3000) ** 0.5)
    model.eval()
    assert torch.equal(model(x), plain)


def test_masks_are_drawn_for_each_example() -> None:
    model = network()
    Dropout(model, 0.5)
    assert len(model(torch.ones(64, 3, dtype=torch.float64)).unique(dim=0)) > 4


@pytest.mark.parametrize(
    ("model", "wanted"),
    [
        (network(), ["3"]),
        (nn.Sequential(nn.Conv1d(3, 4, 1), nn.Flatten(), nn.Linear(8, 2)), ["2"]),
        (nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 2)), ["1", "2"]),
        (nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 2)), ["1"]),
    ],
)
def test_it_acts_on_what_layers_have_made(model: nn.Module, wanted: list[str]) -> None:
    assert Dropout(model, 0.5).layers == wanted


def test_it_finds_its_layers_in_the_networks_here_and_in_alrao() -> None:
    assert Dropout(build("mlp", (1, 4, 4), 3), 0.5).layers[-1] == "head"
    assert Dropout(build("alexnet", (3, 16, 16), 3, width=0.1), 0.5).layers == ["features.10", "head"]
    assert Dropout(build("lstm", (6,), 5, width=0.1), 0.5).layers == ["head"]
    model = alrao.Alrao(network(), heads=3)
    dropout = Dropout(model, 0.5)
    assert dropout.layers == ["model.3"]
    x = torch.randn(5, 3, dtype=torch.float64)
    assert not torch.equal(model(x), model(x))
    dropout.remove()
    assert torch.equal(model(x), model(x))


def test_a_network_without_a_graph_goes_by_its_layers_in_order() -> None:
    class Free(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(3, 4), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.second(self.first(x).relu() if x.sum() < 1e9 else x)
            return y

    assert Dropout(Free(), 0.5).layers == ["second"]


def test_named_layers_rate_zero_copies_and_cuts() -> None:
    model, x = network(), torch.randn(6, 3, dtype=torch.float64)
    plain = model(x)
    none = Dropout(model, 0.0, layers=["1", "3"])
    assert torch.equal(model(x), plain)
    none.remove()
    Dropout(model, 0.9, layers=["1"])
    for each in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        torch.manual_seed(1)
        answer = each(x)
        torch.manual_seed(1)
        assert torch.equal(model(x), answer)
        assert not torch.equal(answer, plain)
    Structure(model, x).apply(Plan({"1": (0, 2)}))
    assert model(x).shape == (6, 2)
    assert model[1].weight.shape == (2, 3)


@pytest.mark.parametrize("rate", [-0.1, 1.0, float("nan")])
def test_a_rate_is_a_share(rate: float) -> None:
    with pytest.raises(ValueError, match="rate"):
        Dropout(network(), rate)


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match="no such layer"):
        Dropout(network(), 0.5, layers=["nowhere"])
    with pytest.raises(ValueError, match="another layer feeds"):
        Dropout(nn.Sequential(nn.Linear(3, 2)), 0.5)
    model = network()
    Dropout(model, 0.5)
    with pytest.raises(ValueError, match="already"):
        Dropout(model, 0.5)
    symbols = nn.Sequential(nn.Embedding(5, 3), nn.Linear(3, 2))
    Dropout(symbols, 0.5, layers=["0"])
    with pytest.raises(ValueError, match=r"Embedding got torch\.int64"):
        symbols(torch.randint(5, (2, 4)))
