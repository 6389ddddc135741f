"""Networks as after training, and what must hold when they are cut."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from structlearn.structure import Structure
from structlearn.structure.verify import outgoing, random_plan, silence


def stir(model: nn.Module, seed: int = 0) -> nn.Module:
    """Normalisations with scales, shifts and statistics as after training; in evaluation."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, _NormBase):
            for values in (module.running_mean, module.bias):
                if values is not None:
                    values.data.normal_(generator=generator)
            for values in (module.running_var, module.weight):
                if values is not None:
                    values.data.uniform_(0.5, 1.5, generator=generator)
    return model.eval()


def assert_equal(one: Tensor, other: Tensor) -> None:
    """Up to rounding of float64."""
    assert one.shape == other.shape
    assert float((one - other).detach().abs().max()) <= 1e-10 * max(1.0, float(one.detach().abs().max()))


def cut_and_compare(model: nn.Module, example: Tensor | tuple[Any, ...], plans: int) -> None:
    """Cut silent units at random: nothing changes."""
    arguments = example if isinstance(example, tuple) else (example,)
    chance = np.random.default_rng(0)
    for number in range(plans):
        if number % 5 == 0:  # five cuts, one after the other
            cut = copy.deepcopy(model)
            structure = Structure(cut, example)
        plan = random_plan(structure, chance)
        silence(outgoing(structure, plan))
        before = cut(*arguments)
        structure.apply(plan)
        assert {name: structure.widths[name] for name in plan.keep} == {
            name: len(units) for name, units in plan.keep.items()
        }
        assert_equal(cut(*arguments), before)
