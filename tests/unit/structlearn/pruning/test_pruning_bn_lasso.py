"""BN-Lasso: which scales are penalised, and whose channels go."""

import runpy
from pathlib import Path

import pytest
import torch
from torch import nn

from structlearn.pruning import BnLasso
from structlearn.structure import Structure

support = runpy.run_path(str(Path(__file__).parents[3] / "support" / "prunable.py"))
network = support["network"]


def bn_lasso(name, scaling=None, **options):
    model, batch = network(name, scaling)
    return BnLasso(Structure(model, batch[:2]), **{"strength": 0.1} | options), model, batch


def put(scale, values):
    with torch.no_grad():
        for place, value in values.items():
            scale[place] = value


def test_the_penalty_is_on_the_scales_alone():
    pruner, model, _ = bn_lasso("residual")
    put(model[1].weight, {0: -2.0})
    scales = [model[1], model[3].norm, model[3].last, model[4].norm, model[4].last]
    assert pruner.penalty().item() == pytest.approx(0.1 * sum(norm.weight.abs().sum().item() for norm in scales))
    assert all(p.grad is None for p in model.parameters())


def test_a_channel_goes_by_its_scale_whatever_its_sign():
    pruner, model, _ = bn_lasso("mlp", threshold=0.2)
    put(model[1].weight, {0: -0.19, 3: 0.2, 4: 0.1, 5: -0.3})
    assert pruner.plan().keep == {"0": (1, 2, 3, 5, 6, 7, 8)}


def test_a_channel_of_a_residual_sum_goes_when_all_its_scales_are_small():
    pruner, model, _ = bn_lasso("residual")
    put(model[1].weight, {1: 0.0, 2: 1e-4})
    put(model[3].last.weight, {1: 1e-4, 2: 0.0, 4: 0.0})
    put(model[4].last.weight, {1: -1e-4, 2: 0.1, 4: 0.0})
    put(model[4].norm.weight, {6: 1e-5})
    assert pruner.plan().keep == {"0": (0, 2, 3, 4, 5), "4.one": (0, 1, 2, 3, 4, 5)}


def test_behind_a_concatenation_scales_belong_to_several_sets():
    pruner, model, _ = bn_lasso("dense")
    put(model.norm.weight, {2: 0.0, 6: 0.0, 10: 1e-6})
    assert pruner.plan().keep == {"stem": (0, 1, 3, 4, 5), "one": (1, 2, 3)}


def test_sets_without_a_scale_are_never_cut():
    pruner, model, _ = bn_lasso("lenet", threshold=1e9)
    assert {name: len(units) for name, units in pruner.plan().keep.items()} == {"0": 1}
    assert pruner.floor == ("0",)
    del model


def test_the_floor_keeps_the_largest_scale():
    pruner, model, batch = bn_lasso("mlp", threshold=100.0)
    put(model[1].weight, {6: -3.0})
    put(model[4].weight, {2: 3.0})
    pruner.cut(pruner.plan())
    assert pruner.structure.plan.keep == {"0": (6,), "3": (2,)}
    assert pruner.floor == ("0", "3")
    assert model(batch).shape == (12, 3)


def test_a_scaled_network_gets_its_sigmas_anew():
    pruner, model, _ = bn_lasso("mlp", "sqrt_log")
    put(model[1].weight, {0: 0.0, 1: 0.0})
    pruner.cut(pruner.plan())
    assert float(model[3].scale.square().sum()) == pytest.approx(model[3].s2)
    torch.testing.assert_close(model[3].scale, model[3].sigma().to(model[3].scale))


@pytest.mark.parametrize("norm", [[], [nn.BatchNorm1d(4, affine=False)], [nn.LayerNorm(4)]])
def test_a_network_without_scales_is_refused(norm):
    model = nn.Sequential(nn.Linear(3, 4), *norm, nn.ReLU(), nn.Linear(4, 2), nn.Linear(2, 2))
    with pytest.raises(ValueError, match="BN-Lasso needs BatchNorm layers with scales"):
        BnLasso(Structure(model, torch.randn(2, 3)), strength=0.1)


def test_scales_of_outputs_alone_are_refused():
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2), nn.BatchNorm1d(2))
    with pytest.raises(ValueError, match="on channels that can be cut"):
        BnLasso(Structure(model, torch.randn(2, 3)), strength=0.1)
