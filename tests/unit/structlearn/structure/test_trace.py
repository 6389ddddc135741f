"""Networks that are looked at in ways of their own: squeezed, packed, not copied, with numbers drawn at random."""

from __future__ import annotations

import runpy
import threading
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from structlearn.structure import Structure, verify

support = runpy.run_path(str(Path(__file__).parents[3] / "support" / "surgery.py"))
cut_and_compare = support["cut_and_compare"]


class Squeezed(nn.Module):
    """Maps of one pixel, without it; `how` says in which words."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 4, 3), nn.Linear(4, 3)
        self.how = how

    def forward(self, x: Tensor) -> Tensor:
        x = F.adaptive_avg_pool2d(self.second(F.relu(self.first(x))), 1)
        match self.how:
            case "squeeze":
                x = x.squeeze()
            case "dims":
                x = x.squeeze(3).squeeze(2)
            case "hidden":
                x = x.view([size for size in x.shape if size > 1])
        y: Tensor = self.head(x)
        return y


def test_an_axis_that_a_squeeze_would_drop_is_never_cut() -> None:
    model, example = Squeezed("squeeze").double(), torch.randn(2, 3, 6, 6, dtype=torch.float64)
    structure = Structure(model, example)
    assert structure.widths == {"first": 6}
    assert structure.fixed["second"] == "aten.squeeze drops them when one is left"
    cut_and_compare(model, example, 20)
    assert Structure(Squeezed("dims"), example.float()).widths == {"first": 6, "second": 4}


def test_a_trial_leaves_one_unit_of_each_set() -> None:
    example = torch.randn(2, 3, 6, 6)
    verify(Squeezed("dims"), example)
    for seed in range(3):
        with pytest.raises(ValueError, match="it fails when its layers are smaller"):
            verify(Squeezed("hidden"), example, seed)


class Packed(nn.Module):
    """Sequences of several lengths."""

    def __init__(self, *, ordered: bool, learned: bool) -> None:
        super().__init__()
        self.ordered, self.learned = ordered, learned
        self.table, self.cells = nn.Embedding(20, 6), nn.LSTM(6, 9, 2, batch_first=True, bidirectional=True)
        self.states = nn.Parameter(torch.randn(2, 4, 1, 9))
        self.head, self.last = nn.Linear(18, 4), nn.Linear(9, 4)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        packed = pack_padded_sequence(self.table(x), lengths.cpu(), batch_first=True, enforce_sorted=self.ordered)
        h, c = (self.states * self.learned).expand(-1, -1, len(x), -1).contiguous()
        packed, (h, _) = self.cells(packed, (h, c) if self.learned else None)
        padded, _ = pad_packed_sequence(packed, batch_first=True, padding_value=0.5)
        y: Tensor = self.head(padded) + self.last(h[-1])[:, None]
        return y


@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize("ordered", [False, True])
def test_packed_sequences_are_cut(*, ordered: bool, learned: bool) -> None:
    torch.manual_seed(0)
    model = Packed(ordered=ordered, learned=learned).double()
    example = torch.randint(20, (3, 5)), torch.tensor([5, 4, 2] if ordered else [4, 2, 5])
    assert Structure(model, example).widths == {"cells": 9, "table": 6}
    cut_and_compare(model, example, 10)


def test_what_is_tied_through_others_has_their_reason() -> None:
    class Both(nn.Module):
        """The cells of both directions are chosen by number after their sum, and tied to a layer beside them."""

        def __init__(self) -> None:
            super().__init__()
            self.cells, self.other, self.head = nn.GRU(7, 8, bidirectional=True), nn.Linear(7, 8), nn.Linear(8, 4)

        def forward(self, x: Tensor) -> Tensor:
            y, _ = self.cells(x)
            y = y[..., :8] + y[..., 8:]
            return self.head(y.softmax(-1)) + self.head(self.other(x) + y)

    assert Structure(Both(), torch.randn(5, 3, 7)).fixed == {
        "cells": "some of them are chosen by their numbers",
        "other": "it meets an axis of the input",
        "head": "they are the network's answer",
    }
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, norm_first=True)
    assert Structure(layer, torch.randn(2, 5, 8)).fixed["linear2"] == "it meets an axis of the input"
    deep = nn.Sequential(nn.Linear(3, 8), nn.LayerNorm(8), nn.Linear(8, 8), nn.ReLU(), Sum(nn.Linear(8, 8)), Sum())
    assert Structure(deep, torch.randn(2, 3)).fixed["4.inner"] == "aten.mean is over them"


class Sum(nn.Module):
    """A residual branch; without one, all units less their mean."""

    def __init__(self, inner: nn.Module | None = None) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = x + self.inner(x) if self.inner is not None else x - x.mean(1, keepdim=True)
        return y


@pytest.mark.parametrize("held", [threading.Lock(), (number for number in range(3))])
def test_a_network_that_cannot_be_copied_is_told_so(held: object) -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    model.held = held
    for look in (Structure, verify):
        with pytest.raises(
            ValueError, match=r"cannot be copied.*cannot pickle.*in the forward pass, or keep it outside"
        ):
            look(model, torch.randn(2, 3))


def test_the_largest_of_all_places_are_taken_of_each_channel_by_itself() -> None:
    class Largest(nn.Module):
        def __init__(self, axis: int) -> None:
            super().__init__()
            self.axis, self.maps, self.head = axis, nn.Conv1d(3, 6, 3), nn.Linear(6, 4)

        def forward(self, x: Tensor) -> Tensor:
            values, places = self.maps(x).topk(2, dim=self.axis)
            return self.head(values.mean(2)) if self.axis == 2 else values.sum(2) + places.sum(2)

    cut_and_compare(Largest(2).double(), torch.randn(2, 3, 9).double(), plans=5)
    assert Structure(Largest(2), torch.randn(2, 3, 9)).widths == {"maps": 6}
    over_channels = Structure(Largest(1), torch.randn(2, 3, 9))
    assert over_channels.widths == {}
    assert over_channels.fixed["maps"] == "aten.topk is over them"


def test_random_numbers_go_on_as_they_were() -> None:
    class Noisy(nn.Module):
        """Looks at numbers; and in training, has an output more, behind a dropout."""

        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.aside = nn.Linear(6, 8), nn.Linear(8, 3), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> object:
            h = F.relu(self.first(x)) * (1 if float(x.abs().sum()) > 0 else -1)
            return (self.second(h), self.aside(F.dropout(h))) if self.training else self.second(h)

    example = torch.randn(4, 6)
    before = torch.get_rng_state()
    structure = Structure(Noisy(), example)
    after = torch.get_rng_state()
    torch.set_rng_state(before)
    Noisy()  # its weights are drawn, too
    assert torch.equal(after, torch.get_rng_state())
    assert "aside.weight" in {place.tensor for place in structure.sets["first"].places}
