"""Scaled networks have the units of their plain ones, their factors go with them, and cuts and new factors mix."""

from __future__ import annotations

import copy
import runpy
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from structlearn.models import MODELS, build
from structlearn.scala import Scaled, adopt, rescale
from structlearn.structure import Structure
from structlearn.structure.verify import outgoing, random_plan, silence

support = runpy.run_path(str(Path(__file__).parents[3] / "support" / "surgery.py"))
stir = support["stir"]

SHAPES = {"mlp": (3, 4, 5), "lstm": (6,), "cvnn": (3, 16, 16), "lenet": (1, 12, 12)}
BOTH = pytest.mark.parametrize("examples", [2, 64])  # few: the inputs are multiplied; many: the weights


def network(name: str, examples: int) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    shape = SHAPES.get(name, (3, 32, 32) if name.startswith("vgg") else (3, 8, 8))
    model = stir(build(name, shape, 5, width=0.125)).double()
    return model, torch.randint(5, (examples, *shape)) if name == "lstm" else torch.randn(examples, *shape).double()


def scaled(model: nn.Module) -> dict[str, Scaled]:
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, Scaled)}


@BOTH
@pytest.mark.parametrize("name", MODELS)
def test_units_are_those_of_the_plain_network_and_factors_go_along(name: str, examples: int) -> None:
    model, example = network(name, examples)
    plain = Structure(model, example)
    adopt(model, keep_function=True)
    structure = Structure(model, example)
    assert structure.widths == plain.widths
    assert structure.fixed == plain.fixed
    places = {(each.tensor, each.axis): each for each_set in structure.sets.values() for each in each_set.places}
    found = 0
    for key, layer in scaled(model).items():
        used = places.get((f"{key}.weight", 1))
        if layer.weight.shape[1] == len(layer.scale) and used is not None:
            own = places[f"{key}.scale", 0]
            assert own.role == "along"
            assert torch.equal(own.units, used.units)
            found += 1
        sees_inputs = key == next(iter(scaled(model)))
        assert (f"{key}.scale", 0) in places or sees_inputs or len(layer.scale) == 1
    assert found or name == "lstm"


class Grouped(nn.Module):
    """A grouped convolution, and a depthwise one with two filters a channel."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv1d(2, 12, 3, padding=1)
        self.grouped = nn.Conv1d(12, 18, 3, padding=1, groups=3)
        self.depthwise = nn.Conv1d(18, 36, 3, padding=1, groups=18)
        self.last = nn.Linear(36, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.depthwise(self.grouped(self.first(x).relu()).relu()).relu().mean(2))


def case(name: str, examples: int) -> tuple[nn.Module, Tensor]:
    if name == "grouped":
        torch.manual_seed(0)
        return Grouped().double(), torch.randn(examples, 2, 7).double()
    return network(name, examples)


@BOTH
@pytest.mark.parametrize("name", ["grouped", "lenet", "googlenet", "mobilenet_v2", "resnet18", "densenet121"])
def test_after_a_cut_every_layer_has_factors_by_its_rule_and_the_function_is_kept(name: str, examples: int) -> None:
    """W 3.4.2: units go, the scaling is computed anew, the weights are changed so that the outputs stay."""
    model, example = case(name, examples)
    adopt(model, scaling="inverse", keep_function=True)
    structure, chance = Structure(model, example), np.random.default_rng(0)
    for _ in range(1 if name == "grouped" else 3):
        plan = random_plan(structure, chance)
        silence(outgoing(structure, plan))
        before = model(example)
        structure.apply(plan)
        torch.testing.assert_close(model(example), before)
        for layer in scaled(model).values():
            rescale(layer, layer.sigma())
            sums = layer.spread(layer.scale).expand_as(layer.weight).flatten(1).square().sum(1)
            torch.testing.assert_close(sums, torch.full_like(sums, layer.s2))
        torch.testing.assert_close(model(example), before)
    assert sum(structure.widths.values()) < sum(Structure(case(name, examples)[0], example).widths.values())


def test_a_cut_network_s_factors_are_saved_and_come_back() -> None:
    model, example = network("lenet", 3)
    fresh = copy.deepcopy(model)
    structure = Structure(adopt(model, keep_function=True), example)
    structure.apply(random_plan(structure, np.random.default_rng(0)))
    again = Structure(adopt(fresh, keep_function=True), example)
    again.apply(structure.plan)
    fresh.load_state_dict(model.state_dict())
    assert torch.equal(fresh(example), model(example))
