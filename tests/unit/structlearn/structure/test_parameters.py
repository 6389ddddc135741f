"""Parameters that are no layer's: learned states are cut with their cells; what is a part of a tensor ties down."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from structlearn.structure import Plan, Structure, verify

support = runpy.run_path(str(Path(__file__).parents[3] / "support" / "surgery.py"))
assert_equal, cut_and_compare = support["assert_equal"], support["cut_and_compare"]


class Learned(nn.Module):
    """A recurrent layer that begins in a learned state."""

    def __init__(self, kind: type[nn.RNNBase], layers: int, *, both: bool) -> None:
        super().__init__()
        self.cells = kind(6, 9, layers, bidirectional=both)
        first = torch.randn(2, layers * (1 + both), 1, 9)
        self.h0, self.c0 = nn.Parameter(first[0]), nn.Parameter(first[1])
        self.head = nn.Linear(9 * (1 + both), 4)

    def forward(self, x: Tensor) -> Tensor:
        h, c = (each.expand(-1, x.shape[1], -1).contiguous() for each in (self.h0, self.c0))
        y: Tensor = self.head(self.cells(x, (h, c) if isinstance(self.cells, nn.LSTM) else h)[0])
        return y


class ByHand(nn.Module):
    """A cell that is called step by step, from a learned state."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.head = nn.LSTMCell(6, 9), nn.Linear(9, 4)
        self.h0, self.c0 = nn.Parameter(torch.randn(9)), nn.Parameter(torch.randn(9))

    def forward(self, x: Tensor) -> Tensor:
        h, c = (each.expand(x.shape[1], -1) for each in (self.h0, self.c0))
        for step in x:
            h, c = self.cell(step, (h, c))
        y: Tensor = self.head(h)
        return y


@pytest.mark.parametrize("both", [False, True])
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_learned_states_are_cut_with_their_cells(kind: type[nn.RNNBase], layers: int, *, both: bool) -> None:
    torch.manual_seed(0)
    model, example = Learned(kind, layers, both=both).double(), torch.randn(5, 3, 6, dtype=torch.float64)
    assert Structure(model, example).widths == {"cells": 9}
    cut_and_compare(model, example, 10)
    before = model(example)
    Structure(model, example).apply(Plan({"cells": tuple(reversed(range(9)))}))
    assert_equal(model(example), before)


def test_a_cell_called_by_hand_is_cut_with_its_learned_state() -> None:
    torch.manual_seed(0)
    model, example = ByHand().double(), torch.randn(5, 3, 6, dtype=torch.float64)
    assert Structure(model, example).widths == {"cell": 9}
    cut_and_compare(model, example, 10)


class Part(nn.Module):
    """A hidden layer of seven units, and parameters that meet it in many ways."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.first, self.other, self.second = nn.Linear(6, 7), nn.Linear(6, 7), nn.Linear(7, 5)
        self.slim, self.maps, self.all = nn.Linear(9, 5), nn.Conv1d(7, 5, 1), nn.Linear(4 * 7, 2)
        self.flat, self.null = nn.Parameter(torch.randn(35 + 5)), nn.Parameter(torch.randn(7))
        self.few = nn.ParameterList([nn.Parameter(torch.randn(4)) for _ in range(7)])
        self.register_buffer("table", torch.randn(50, 32))
        self.register_buffer("places", torch.randn(4, 7))
        self.register_buffer("kernel", torch.rand(1, 1, 3))
        self.register_buffer("last", torch.zeros(4, 7))
        self.plain = torch.randn(7).double()

    def forward(self, x: Tensor) -> Tensor:  # noqa: C901, PLR0911, PLR0912  one way after the other
        h = F.relu(self.first(x))
        width = h.shape[-1]
        match self.how:
            case "null":
                return self.second(h) - self.second(self.null)
            case "slice":
                return F.linear(h, self.slim.weight[:, :width], self.slim.bias)
            case "table":
                h = h + self.table[: len(h), :width]
            case "places":  # what is tied down is no unit when it is merged with units
                return self.all((h + self.places[:4]).flatten()[None])
            case "view":
                return F.linear(h, self.flat[:35].view(5, 7), self.flat[35:])
            case "padded":
                h = h * F.pad(self.flat[:5], (1, 1))
            case "stack":
                h = h * torch.stack(list(self.few), 1)
            case "plain":
                h = h * self.plain
            case "constants":
                there = torch.arange(width, device=x.device) >= 0
                h = (h + torch.zeros(width, device=x.device)) * there.to(h) * torch.ones_like(h[:1])
            case "ones":
                return self.second(h) + h @ torch.ones(width, 1, dtype=x.dtype, device=x.device)
            case "blur":
                h = F.conv1d(h.T[None], self.kernel.expand(width, -1, -1), padding=1, groups=width)
                return self.maps(h)
            case "rows":
                h = h.clone()
                h[:2] = self.other(x)[:2]
            case "kept":
                self.last.copy_(h)
                h = self.last * 1
        y: Tensor = self.second(h)
        return y


@pytest.mark.parametrize("how", ["null", "places", "constants", "blur", "rows", "kept"])
def test_what_goes_with_units_is_cut_with_them(how: str) -> None:
    torch.manual_seed(0)
    model, example = Part(how).double(), torch.randn(4, 6, dtype=torch.float64)
    structure = Structure(model, example)
    assert structure.widths == {"first": 7}
    cut_and_compare(model, example, 10)


@pytest.mark.parametrize(
    ("how", "why"),
    [
        ("slice", "some of them are chosen by their numbers"),
        ("table", "some of them are chosen by their numbers"),
        ("view", "they are split into several axes"),
        ("padded", "aten.constant_pad_nd changes their number"),
        ("stack", "they are numbered"),
        ("plain", "they meet a tensor that is neither a parameter nor a buffer"),
        ("ones", "aten.mm multiplies them with constants"),
    ],
)
def test_units_that_meet_a_part_of_a_tensor_are_never_cut(how: str, why: str) -> None:
    torch.manual_seed(0)
    model, example = Part(how).double(), torch.randn(4, 6, dtype=torch.float64)
    structure = Structure(model, example)
    assert structure.widths == {}
    assert structure.fixed["first"] == why
    verify(model, example)


class Aside(nn.Module):
    """A learned state; and, in training, cells that look at the same units."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.null = nn.Linear(6, 7), nn.Linear(7, 5), nn.Parameter(torch.randn(7))
        self.cells, self.head = nn.LSTM(7, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Any:
        h = F.relu(self.first(x))
        y = self.second(h) - self.second(self.null)
        return (y, self.head(self.cells(h[None])[0])) if self.training else y


def test_what_training_alone_uses_is_found_beside_a_learned_state() -> None:
    torch.manual_seed(0)
    model, example = Aside().double(), torch.randn(3, 6, dtype=torch.float64)
    structure = Structure(model, example)
    assert structure.widths == {"first": 7, "cells": 4}
    assert {each.tensor for each in structure.sets["first"].places} >= {"null", "cells.weight_ih_l0"}
    structure.apply(Plan({name: tuple(map(int, np.arange(3))) for name in structure.widths}))
    assert model.train()(example)[1].shape == (1, 3, 2)


def test_a_learned_state_needs_no_pass_in_training() -> None:
    """In training, a normalisation refuses one sample."""

    class Normed(Aside):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm1d(6)
            del self.cells, self.head

        def forward(self, x: Tensor) -> Tensor:
            x = self.norm(x)
            y: Tensor = self.second(F.relu(self.first(x))) - self.second(self.null)
            return y

    assert Structure(Normed(), torch.randn(1, 6)).widths == {"first": 7}
