"""ScaLP against its algorithm written out with loops; the function, the order and the sum rule after a cut."""

import copy
import math
import runpy
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from structlearn.pruning import ScaLP
from structlearn.scala import Scaled, adopt
from structlearn.structure import Plan, Structure

support = runpy.run_path(str(Path(__file__).parents[3] / "support" / "prunable.py"))
network, NETS = support["network"], support["NETS"]
SCALINGS = ("uniform", "sqrt_log", "inverse")
CHAINS = ("mlp", "lenet", "maxmin")
PENALTIES = ("l2", "l1", "group_lasso")


def scalp(name, scaling="sqrt_log", seed=0, **options):
    model, batch = network(name, scaling, seed)
    structure = Structure(model, batch[:2])
    return ScaLP(structure, **{"strength": 0.01, "threshold": 0.01} | options), model, batch


def weaken(pruner, seed, power=3.0):
    """Make outgoing weights of very different sizes, some of them zero. The sets, and which units have only zeros."""
    chance = torch.Generator().manual_seed(seed)
    tensors, zeros = pruner.structure.tensors(), {}
    for name, each in pruner.structure.sets.items():
        sizes = 10 ** (-power * torch.rand(each.size, generator=chance).double())
        sizes[torch.rand(each.size, generator=chance) < 0.3] = 0.0
        zeros[name] = sizes == 0
        for place in each.places:
            if place.role == "in":
                tensor = tensors[place.tensor].data
                factor = torch.where(place.units >= 0, sizes[place.units], 1.0)
                tensor.mul_(factor.view([-1 if axis == place.axis else 1 for axis in range(tensor.dim())]))
    return zeros


def outgoing(pruner, name):
    """m of each unit, from all that it still goes into."""
    layers = {
        f"{key}.weight": module for key, module in pruner.structure.model.named_modules() if isinstance(module, Scaled)
    }

    def magnitude(key, tensor):
        effective = layers[key].effective() if key in layers else tensor
        return effective.abs() if pruner.penalty_name == "l1" else effective.square()

    return pruner.structure.reduce("in", magnitude)[name].detach()


@pytest.mark.parametrize("scaling", SCALINGS)
@pytest.mark.parametrize("penalty", PENALTIES)
def test_a_plan_is_the_algorithm_written_out(penalty, scaling):
    """W Alg. 3 for two hidden layers, with loops over units and weights."""
    pruner, model, _ = scalp("mlp", scaling, penalty=penalty, threshold=0.02)
    weaken(pruner, 1, power=1.5)
    first, second, third = model[0], model[3], model[6]
    assert first.scaling == "uniform"
    norm = 1 if penalty == "l1" else 2

    def strength(layer, unit, rows):
        w = [layer.scale[unit].item() * layer.weight[row, unit].item() for row in rows]
        total = sum(abs(x) ** norm for x in w)
        return total ** (1 / norm), (total / len(w)) ** (1 / norm)

    keep = {}
    rows = range(3)
    for name, layer, size in (("3", third, 8), ("0", second, 9)):
        strengths = [strength(layer, unit, rows) for unit in range(size)]
        order = sorted(range(size), key=lambda unit: -strengths[unit][0])
        keep[name] = [unit for unit in order if strengths[unit][1] >= 0.02]
        rows = keep[name]
        assert 0 < len(rows) < size
    assert {name: list(units) for name, units in pruner.plan().keep.items()} == keep


def test_weights_towards_units_that_go_do_not_hold_a_unit():
    """From the last layer to the first: all sets of a chain are done in one plan."""
    torch.manual_seed(0)
    model = adopt(nn.Sequential(*[nn.Linear(6, 6) for _ in range(4)], nn.Linear(6, 2)))
    with torch.no_grad():
        for layer in model:
            layer.weight.copy_(torch.eye(6)[: len(layer.weight)] + 1e-9)
    pruner = ScaLP(Structure(model, torch.randn(2, 6)), strength=0.1, threshold=0.01)
    assert {name: sorted(units) for name, units in pruner.plan().keep.items()} == {str(n): [0, 1] for n in range(4)}


def test_a_plan_changes_nothing():
    pruner, model, _ = scalp("residual")
    weaken(pruner, 0)
    before = copy.deepcopy(model.state_dict())
    plan = pruner.plan()
    assert pruner.plan() == plan
    assert plan
    assert pruner.structure.version == 0
    assert all(torch.equal(before[name], each) for name, each in model.state_dict().items())


@pytest.mark.parametrize("scaling", SCALINGS)
@pytest.mark.parametrize("name", NETS)
@given(seed=st.integers(0, 10**6), penalty=st.sampled_from(PENALTIES), epochs=st.integers(1, 3))
@settings(max_examples=12, deadline=None)
def test_cutting_units_that_do_nothing_changes_nothing(name, scaling, seed, penalty, epochs):
    """For every network, scaling and penalty: function, order, sum rule, penalty, widths, again and again."""
    pruner, model, batch = scalp(name, scaling, seed, penalty=penalty, threshold=1e-30)
    model.eval()
    for epoch in range(epochs):
        zeros = weaken(pruner, seed + epoch)
        with torch.no_grad():
            before, value = model(batch), pruner.penalty().item()
        sets = pruner.structure.sets
        kept = {key: max(1, int((~each).sum())) for key, each in zeros.items()}
        pruner.cut(pruner.plan())
        with torch.no_grad():
            torch.testing.assert_close(model(batch), before, rtol=1e-9, atol=1e-9)
            if name in CHAINS:  # W proposition 5; and sums over fewer inputs have larger sigmas
                assert pruner.penalty().item() <= value * (1 + 1e-9)
        for key, each in pruner.structure.sets.items():
            assert 1 <= each.size <= kept[key]
            if not any(all(zeros[other]) for other in sets):
                assert each.size == kept[key]
        while plan := pruner.plan():  # where sets feed themselves (residual sums, cells), what is gone shows only now
            assert name in {"residual", "lstm"}
            pruner.cut(plan)
        for key in pruner.structure.sets:
            m = outgoing(pruner, key)
            assert (m[1:] <= m[:-1]).all()
        check_rule(model)


def check_rule(model):
    for layer in model.modules():
        if isinstance(layer, Scaled):
            area = math.prod(layer.weight.shape[2:])
            assert area * float(layer.scale.square().sum()) == pytest.approx(layer.s2 - layer.tau_b2, rel=1e-6)


@pytest.mark.parametrize("scaling", SCALINGS)
def test_after_a_cut_every_layer_is_as_one_adopted_at_these_widths(scaling):
    pruner, model, _ = scalp("dense", scaling)
    pruner.cut(Plan({"stem": (4, 0, 2), "one": (3, 1), "two": (0, 6, 5, 2)}))
    stem, one = model.two.scale[:3], model.two.scale[3:]
    torch.testing.assert_close(one, stem[:2])  # each part of a concatenation from the start of the sequence
    shares = {
        "uniform": lambda _: 1.0,
        "sqrt_log": lambda k: 1 / (math.sqrt(k + 1) * math.log(k + 1)),
        "inverse": lambda k: 1 / k,
    }
    wanted = torch.tensor([shares[scaling](k) for k in (1, 2, 3)], dtype=torch.float64)
    torch.testing.assert_close((stem / stem[0]).double(), wanted / wanted[0])
    check_rule(model)


def test_a_flattened_channel_has_one_sigma():
    pruner, model, _ = scalp("lenet", "inverse")
    pruner.cut(Plan({"4": (6, 2, 3)}))
    rows = model[7].scale.view(3, 4)
    assert (rows == rows[:, :1]).all()
    torch.testing.assert_close(rows[:, 0] / rows[0, 0], torch.tensor([1.0, 0.5, 1 / 3]).double())


def test_both_halves_of_maxmin_have_one_sigma():
    pruner, model, _ = scalp("maxmin", "inverse")
    pruner.cut(Plan({"0": (6, 2, 3, 1)}))
    halves = model[3].scale.view(2, 4)
    assert torch.equal(halves[0], halves[1])


def test_layers_whose_inputs_stay_keep_their_scaling():
    pruner, model, _ = scalp("mlp")
    before = [model[place].scale.clone() for place in (0, 3, 6)]
    pruner.cut(Plan({"3": (1, 0)}))
    assert torch.equal(model[0].scale, before[0])
    assert torch.equal(model[3].scale, before[1])
    assert model[6].scale.shape == (2,)


@pytest.mark.parametrize("kind", ["sgd", "adam"])
def test_the_optimisers_state_is_in_the_scale_of_the_new_sigmas(kind):
    """Cut silent units: the gradients' history is what it would be, had the network always had these sigmas."""
    small, model, batch = scalp("mlp", threshold=1e-30)
    weaken(small, 3)
    make = {"sgd": lambda p: torch.optim.SGD(p, lr=0.0, momentum=0.9), "adam": lambda p: torch.optim.Adam(p, lr=0.0)}[
        kind
    ]
    targets = torch.arange(len(batch)) % 3
    plan = small.plan()
    other = copy.deepcopy(model)
    twin = ScaLP(Structure(other, batch[:2]), strength=0.01)
    twin.cut(plan)
    states = []
    for net, pruner, late in ((model, small, plan), (other, twin, None)):
        optimizer = make(net.parameters())
        for _ in range(3):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(batch), targets).backward()
            optimizer.step()
        if late is not None:
            pruner.cut(late, optimizer)
        state = [optimizer.state[parameter] for parameter in net.parameters()]
        states.append(
            [each[key] for each in state for key in ("momentum_buffer", "exp_avg", "exp_avg_sq") if key in each]
        )
    assert states[0]
    for one, two in zip(*states, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-8, atol=1e-12)


def test_older_weights_are_carried_into_the_new_scale():
    """A message from before a cut stands for the function that it stood for."""
    pruner, model, batch = scalp("dense", threshold=1e-30)
    model.eval()
    weaken(pruner, 5)
    older = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with torch.no_grad():
        before = model(batch)
    cut = pruner.cut(pruner.plan())
    state = {name: cut.carry(name, tensor) for name, tensor in older.items()}
    model.load_state_dict(state)
    with torch.no_grad():
        torch.testing.assert_close(model(batch), before, rtol=1e-9, atol=1e-9)
    check_rule(model)


def test_the_floor_keeps_the_strongest_unit_and_says_so():
    pruner, model, batch = scalp("mlp", threshold=0.01)
    with torch.no_grad():
        model[3].weight.mul_(1e-3)
        model[6].weight.fill_(1.0)
    assert pruner.floor == ("0",)
    strongest = int(outgoing(pruner, "0").argmax())
    assert pruner.plan().keep == {"0": (strongest,)}
    pruner.cut(pruner.plan())
    assert pruner.structure.widths == {"0": 1, "3": 8}
    assert pruner.floor == ("0",)
    assert not pruner.plan()
    assert model(batch).shape == (12, 3)


def test_the_penalty_is_on_what_is_trained_of_every_layer():
    pruner, model, _ = scalp("lenet", penalty="l2", strength=0.3)
    weights = [model[place].weight for place in (0, 4, 7, 9)]
    assert pruner.penalty().item() == pytest.approx(0.3 * sum(w.square().sum().item() for w in weights))
    grouped, model, _ = scalp("lenet", strength=0.3)
    columns = [model[place].weight.detach() for place in (0, 4, 9)]
    total = sum(w.transpose(0, 1).flatten(1).norm(dim=1).sum().item() for w in columns)
    total += model[7].weight.detach().view(8, 7, 4).transpose(0, 1).flatten(1).norm(dim=1).sum().item()
    assert grouped.penalty().item() == pytest.approx(0.3 * total)


def test_the_rule_is_on_effective_weights():
    """Units of equal w~: those with small sigmas go first."""
    pruner, model, _ = scalp("mlp", "inverse", threshold=0.2)
    with torch.no_grad():
        model[6].weight.fill_(0.5)
    sigma = model[6].scale
    keep = [unit for unit in range(8) if 0.5 * sigma[unit] >= 0.2]
    assert 0 < len(keep) < 8
    assert list(pruner.plan().keep["3"]) == keep


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"penalty": "l3"}, "unknown penalty of ScaLP 'l3'.*l2, l1, group_lasso"),
        ({"strength": -1.0}, "strength must be at least 0"),
        ({"threshold": math.nan}, "threshold must be at least 0"),
        ({"patience": 0}, "patience must be a whole number"),
    ],
)
def test_bad_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        scalp("mlp", **options)


def test_a_network_without_scaled_layers_is_refused():
    model, batch = network("mlp")
    with pytest.raises(ValueError, match=r"needs layers behind a scaling.*call structlearn.scala.adopt"):
        ScaLP(Structure(model, batch), strength=0.1)


def test_a_network_without_units_is_refused():
    with pytest.raises(ValueError, match="no unit that can be cut"):
        ScaLP(Structure(adopt(nn.Sequential(nn.Linear(4, 2))), torch.randn(2, 4)), strength=0.1)


def test_the_proximal_steps_of_l2_are_refused():
    model = adopt(nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)))
    with pytest.raises(ValueError, match="proximal=True is for exact zeros"):
        ScaLP(Structure(model, torch.zeros(2, 4)), penalty="l2", strength=0.1, proximal=True)


def test_a_network_of_which_nothing_is_trained_is_refused():
    model = adopt(nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))).requires_grad_(False)
    with pytest.raises(ValueError, match="no weight of this network is trained"):
        ScaLP(Structure(model, torch.zeros(2, 4)), strength=0.1)


def test_an_optimiser_that_cannot_follow_new_sigmas_is_refused_before_anything_is_cut():
    model = adopt(nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    optimizer.state[model[2].weight]["sharpness"] = torch.ones(3, 6)
    pruner = ScaLP(Structure(model, torch.zeros(2, 4)), strength=0.1)
    with pytest.raises(ValueError, match="SGD keeps 'sharpness'"):
        pruner.cut(Plan({"0": (3, 1)}), optimizer)
    assert model[0].weight.shape == (6, 4)
    assert pruner.structure.version == 0
