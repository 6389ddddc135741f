"""The norm rule (W 4.8.1) on networks whose norms are known."""

import runpy
from pathlib import Path

import pytest
import torch

from structlearn.pruning import Norm
from structlearn.structure import Structure

support = runpy.run_path(str(Path(__file__).parents[3] / "support" / "prunable.py"))
network = support["network"]
INCOMING = ("l2", "l1", "group_lasso", "sparse_group_lasso")


def norm(name, **options):
    model, batch = network(name)
    return Norm(Structure(model, batch[:2]), **{"strength": 0.1} | options), model, batch


def scaled_to(tensor, rows, size):
    """Rows with this 2-norm."""
    with torch.no_grad():
        for row in rows:
            tensor[row] *= size / tensor[row].norm()


@pytest.mark.parametrize("penalty", INCOMING)
def test_a_neuron_goes_by_its_incoming_weights(penalty):
    pruner, model, _ = norm("lenet", penalty=penalty)
    scaled_to(model[0].weight, [2], 0.00099)
    scaled_to(model[4].weight, [0, 5], 0.00101)
    scaled_to(model[7].weight, [1, 6], 0.0)
    with torch.no_grad():
        model[7].bias[1] = 5.0  # a bias holds nobody
        model[9].weight[:, 3] = 0.0  # nor do outgoing weights drop anybody
    assert pruner.plan().keep == {"0": (0, 1, 3, 4, 5), "7": (0, 2, 3, 4, 5, 7)}


def test_the_threshold_itself_goes():
    pruner, model, _ = norm("mlp", threshold=0.5)
    with torch.no_grad():
        model[3].weight.zero_()
        model[3].weight[:, 0] = torch.tensor([0.5, 0.5000001, 1, 1, 1, 1, 1, 0.4999999])
    assert pruner.plan().keep["3"] == (1, 2, 3, 4, 5, 6)


def test_a_channel_of_a_residual_sum_goes_with_all_that_makes_it():
    pruner, model, _ = norm("residual")
    for layer, gone in ((model[0], [1, 2, 3]), (model[3].two, [2, 3]), (model[4].two, [3, 2, 4])):
        scaled_to(layer.weight, gone, 0.0)
    assert pruner.plan().keep == {"0": (0, 1, 4, 5)}


def test_a_cell_goes_with_all_its_gates():
    pruner, model, _ = norm("lstm")
    scaled_to(model.rnn.weight_ih_l0, [0, 7, 14, 21, 1, 8, 15], 0.0)
    scaled_to(model.rnn.weight_hh_l0, [0, 7, 14, 21, 1, 8, 15, 22], 0.0)
    assert pruner.plan().keep == {"rnn": (1, 2, 3, 4, 5, 6)}


def test_the_reversed_kind_goes_by_outgoing_weights_from_the_last_layer_on():
    pruner, model, _ = norm("mlp", penalty="reversed_group_lasso")
    scaled_to(model[3].weight, [4], 0.0)  # incoming weights do not drop it
    with torch.no_grad():
        model[6].weight[:, 5] = 0.0
        model[3].weight[:, 2] = 0.0
        model[3].weight[5, 2] = 3.0  # the only one that uses unit 2 goes at the same moment
    assert pruner.plan().keep == {"0": (0, 1, 3, 4, 5, 6, 7, 8), "3": (0, 1, 2, 3, 4, 6, 7)}


def test_the_reversed_kind_asks_all_that_use_a_unit():
    pruner, model, _ = norm("dense", penalty="reversed_group_lasso")
    with torch.no_grad():
        model.one.weight[:, [1, 4]] = 0.0
        model.two.weight[:, [1, 2, 6 + 3]] = 0.0
    assert pruner.plan().keep == {"stem": (0, 2, 3, 4, 5), "one": (0, 1, 2, 4)}


def test_units_keep_their_order():
    pruner, model, _ = norm("mlp")
    scaled_to(model[0].weight, [4], 0.0)
    scaled_to(model[0].weight, [8], 100.0)
    assert pruner.plan().keep == {"0": (0, 1, 2, 3, 5, 6, 7, 8)}


def test_values_have_the_usual_factors():
    """sqrt(P) for incoming groups, sqrt(n) for outgoing ones of linear layers (W table 4.1)."""
    for penalty, axis in (("group_lasso", 1), ("reversed_group_lasso", 0)):
        pruner, model, _ = norm("mlp", penalty=penalty)
        weights = [model[place].weight.detach() for place in (0, 3, 6)]
        wanted = sum(w.shape[axis] ** 0.5 * w.norm(dim=axis).sum().item() for w in weights)
        assert pruner.penalty().item() == pytest.approx(0.1 * wanted)


def test_the_mixture_goes_from_group_lasso_to_l1():
    values = {
        mix: norm("residual", penalty="sparse_group_lasso", mix=mix)[0].penalty().item() for mix in (0.0, 0.25, 1.0)
    }
    assert values[0.0] == pytest.approx(norm("residual", penalty="group_lasso")[0].penalty().item())
    assert values[1.0] == pytest.approx(norm("residual", penalty="l1")[0].penalty().item())
    assert values[0.25] == pytest.approx(0.75 * values[0.0] + 0.25 * values[1.0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"penalty": "grouplasso"}, "unknown penalty 'grouplasso'.*did you mean 'group_lasso'"),
        ({"mix": 1.5}, "mix is the share of the L1 penalty, from 0 to 1, got 1.5"),
        ({"strength": float("inf")}, "strength must be at least 0, got inf"),
    ],
)
def test_bad_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        norm("mlp", **options)


@pytest.mark.parametrize("penalty", ["l2", "group_lasso"])
def test_a_network_of_which_nothing_is_trained_is_refused(penalty):
    model, batch = network("mlp")
    structure = Structure(model.requires_grad_(False), batch[:2])
    with pytest.raises(ValueError, match="no weight of this network is trained"):
        Norm(structure, strength=0.1, penalty=penalty)


@pytest.mark.parametrize("penalty", [*INCOMING, "reversed_group_lasso"])
def test_where_no_weight_has_a_gradient_none_is_added(penalty):
    pruner, model, _ = norm("mlp", penalty=penalty)
    pruner.regularise()
    assert all(parameter.grad is None for parameter in model.parameters())


def test_the_proximal_steps_of_l2_are_refused():
    with pytest.raises(ValueError, match="proximal=True is for exact zeros"):
        norm("mlp", penalty="l2", proximal=True)
