"""The norm rule (W 4.8.1) on networks whose norms are known."""

import runpy
from pathlib import Path

import pytest
import torch
from torch import nn

from structlearn.penalties import penalise
from structlearn.pruning import Norm
from structlearn.structure import Plan, Structure

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


# --- factors (W table 4.1) ---------------------------------------------------------------------------------


def norms_of(weight, axis):
    return weight.detach().double().transpose(0, axis).flatten(1).norm(dim=1).sum().item()


def test_bayesian_factors_in_a_chain_of_layers_are_those_of_each_layer():
    wanted = {
        "l2": lambda w: w.shape[1] / 2 * w.detach().double().square().sum().item(),
        "l1": lambda w: (2 * w.shape[1]) ** 0.5 * w.detach().double().abs().sum().item(),
        "group_lasso": lambda w: (w.shape[1] * (w.shape[1] + 1)) ** 0.5 * norms_of(w, 0),
        "reversed_group_lasso": lambda w: (w.shape[1] * (w.shape[0] + 1)) ** 0.5 * norms_of(w, 1),
    }
    wanted["sparse_group_lasso"] = lambda w: 0.5 * wanted["l1"](w) + 0.5 * wanted["group_lasso"](w)
    for penalty, of in wanted.items():
        pruner, model, _ = norm("mlp", penalty=penalty, factors="bayesian")
        weights = [module.weight for module in model if isinstance(module, nn.Linear)]
        assert pruner.penalty().item() == pytest.approx(pruner.strength * sum(map(of, weights)), rel=1e-6)
        alone = penalise(model, penalty, factors="bayesian", strength=pruner.strength)
        assert pruner.penalty().item() == pytest.approx(alone.value().item(), rel=1e-6)  # one definition


def test_bayesian_factors_of_a_convolution_and_of_a_flattened_channel():
    pruner, model, _ = norm("lenet", penalty="reversed_group_lasso", factors="bayesian")
    total = 0.0
    for index, areas in ((0, 9), (4, 4)):
        weight = model[index].weight
        inputs = weight[0].numel()
        total += (inputs * (weight.shape[0] * areas + 1)) ** 0.5 * norms_of(weight, 1)
    flattened, last = model[7].weight.detach().double(), model[9].weight
    blocks = flattened.view(8, 7, 4).transpose(0, 1).flatten(1)  # the 4 places of a channel are one group
    total += (28 * (8 * 4 + 1)) ** 0.5 * blocks.norm(dim=1).sum().item()
    total += (8 * (3 + 1)) ** 0.5 * norms_of(last, 1)
    assert pruner.penalty().item() == pytest.approx(pruner.strength * total, rel=1e-6)


def test_bayesian_factors_where_several_layers_make_a_unit_count_all_that_it_adds_up():
    """The channels of a residual network: the stem's 2 x 9 weights, and those of two blocks, 5 x 9 and 7 x 9."""
    pruner, model, _ = norm("residual", penalty="group_lasso", factors="bayesian")
    one, two = model[3], model[4]
    ways = [model[0].weight, one.two.weight, two.two.weight]
    channels = torch.cat([weight.detach().double().flatten(1) for weight in ways], 1)
    inputs = 18 + 45 + 63
    assert channels.shape == (6, inputs)
    total = (inputs * (inputs + 1)) ** 0.5 * channels.norm(dim=1).sum().item()
    total += sum((54 * 55) ** 0.5 * norms_of(block.one.weight, 0) for block in (one, two))
    total += (6 * 7) ** 0.5 * norms_of(model[-1].weight, 0)
    assert pruner.penalty().item() == pytest.approx(pruner.strength * total, rel=1e-6)


def test_bayesian_factors_of_outgoing_weights_that_lie_in_several_layers():
    """The second moment of exp(-f ||w||) in d dimensions is d (d + 1) / f^2: that of all weights by their own P."""
    pruner, model, _ = norm("residual", penalty="reversed_group_lasso", factors="bayesian")
    one, two, last = model[3], model[4], model[-1]
    channels = [weight.detach().double() for weight in (one.one.weight, two.one.weight, last.weight)]
    moment = 5 * 9 / 54 + 7 * 9 / 54 + 3 / 6
    size = 5 * 9 + 7 * 9 + 3
    outgoing = torch.cat([weight.transpose(0, 1).flatten(1) for weight in channels], 1)
    total = (size * (size + 1) / moment) ** 0.5 * outgoing.norm(dim=1).sum().item()
    total += sum(
        (block.two.weight[0].numel() * (6 * 9 + 1)) ** 0.5 * norms_of(block.two.weight, 1) for block in (one, two)
    )
    total += (18 * (6 * 9 + 1)) ** 0.5 * norms_of(model[0].weight, 1)
    assert pruner.penalty().item() == pytest.approx(pruner.strength * total, rel=1e-6)


def test_factors_are_renewed_when_the_network_has_been_cut():
    pruner, model, _ = norm("mlp", penalty="group_lasso", factors="bayesian")
    pruner.penalty()
    pruner.cut(Plan({"0": (0, 2, 3), "3": (1, 5)}))
    weights = [module.weight for module in model if isinstance(module, nn.Linear)]
    assert [weight.shape[1] for weight in weights] == [5, 3, 2]
    total = sum((w.shape[1] * (w.shape[1] + 1)) ** 0.5 * norms_of(w, 0) for w in weights)
    assert pruner.penalty().item() == pytest.approx(pruner.strength * total, rel=1e-6)


def test_an_unknown_rule_is_told():
    with pytest.raises(ValueError, match=r"unknown rule for factors 'baysian'.*did you mean 'bayesian'"):
        norm("mlp", factors="baysian")
