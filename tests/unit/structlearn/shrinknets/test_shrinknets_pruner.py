"""ShrinkNets as a method of pruning: penalty, plan, cut."""

import copy
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from structlearn.models import build
from structlearn.regularizers import Variational
from structlearn.shrinknets import ShrinkNets, Switch, adopt, fold
from structlearn.structure import Structure

IMAGES = (3, 16, 16)
SETTINGS = {"strength": 0.01, "weight_strength": 0.001}


def pruned(net: nn.Module, example: Tensor, **options: object) -> ShrinkNets:
    return ShrinkNets(Structure(adopt(net, example), example), **{**SETTINGS, **options})


def small(**options: object) -> tuple[ShrinkNets, Tensor]:
    torch.manual_seed(0)
    x = torch.randn(8, 6)
    return pruned(build("mlp", (6,), 3, widths=[9, 7], batch_norm=True), x, **options), x


def kill(pruner: ShrinkNets, name: str, *channels: int) -> None:
    pruner.switches[name].alive[list(channels)] = 0


@pytest.mark.parametrize("p", [1, 2])
def test_the_penalty_is_what_it_says_and_regularise_adds_its_gradient(p) -> None:
    pruner, x = small(p=p)
    model = pruner.structure.model
    thetas = [switch.theta for switch in pruner.switches.values()]
    others = [each for each in model.parameters() if not any(each is theta for theta in thetas)]
    assert (len(thetas), len(others)) == (2, 10)
    by_hand = 0.01 * sum(theta.abs().sum() for theta in thetas)
    by_hand = by_hand + 0.001 * sum(each.abs().pow(p).sum() for each in others)
    torch.testing.assert_close(pruner.penalty(), by_hand)
    loss = model(x).square().sum()
    with_penalty = torch.autograd.grad(loss + pruner.penalty(), list(model.parameters()), retain_graph=True)
    loss.backward()
    pruner.regularise()
    for parameter, expected in zip(model.parameters(), with_penalty, strict=True):
        torch.testing.assert_close(parameter.grad, expected)


def test_a_unit_goes_when_its_switch_is_dead_and_the_order_stays() -> None:
    pruner, x = small()
    assert not pruner.plan()
    assert pruner.dead == 0
    kill(pruner, "features.2.switch", 0, 3, 8)
    assert pruner.dead == 3
    assert pruner.plan().keep == {"features.1": (1, 2, 4, 5, 6, 7)}
    assert pruner.floor == ()
    expected = pruner.structure.model.eval()(x)
    pruner.cut(pruner.plan())
    torch.testing.assert_close(pruner.structure.model(x), expected)
    assert pruner.structure.widths == {"features.1": 6, "features.4": 7}
    assert not pruner.plan()


def test_a_unit_with_several_switches_goes_when_all_are_dead() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, *IMAGES)
    pruner = pruned(build("densenet121", IMAGES, 4, width=0.1), x)
    coupled = pruner.structure.sets["features.0"]
    switches = [place for place in coupled.places if place.tensor.endswith(".theta")]
    assert len(switches) > 2
    for count, place in enumerate(switches):
        assert "features.0" not in pruner.plan().keep, f"{count} of {len(switches)} are dead"
        pruner.switches[place.tensor.removesuffix(".theta")].alive[place.units == 1] = 0
    assert pruner.plan().keep == {"features.0": tuple(unit for unit in range(coupled.size) if unit != 1)}
    expected = pruner.structure.model.eval()(x)
    pruner.cut(pruner.plan())
    torch.testing.assert_close(pruner.structure.model(x), expected)


def test_units_without_a_switch_stay() -> None:
    x = torch.randn(2, *IMAGES)
    pruner = pruned(build("resnet18", IMAGES, 4, width=0.1), x)
    for switch in pruner.switches.values():
        switch.alive[1:] = 0
    plan = pruner.plan()
    assert len(plan.keep) == 8
    assert all(len(units) == 1 for units in plan.keep.values())
    assert all("branch" in name for name in plan.keep)
    expected = pruner.structure.model.eval()(x)
    pruner.cut(plan)
    torch.testing.assert_close(pruner.structure.model(x), expected)


def test_never_below_one_unit_and_the_record_knows() -> None:
    pruner, x = small(strength=100.0, rule="sign_change")
    optimizer = torch.optim.SGD(pruner.structure.model.parameters(), lr=0.01)
    for _ in range(5):
        optimizer.zero_grad()
        pruner.structure.model(x).square().mean().backward()
        pruner.regularise()
        optimizer.step()
        pruner.after_step(optimizer)
    assert pruner.floor == ("features.1", "features.4")
    pruner.cut(pruner.plan(), optimizer)
    assert pruner.structure.widths == {"features.1": 1, "features.4": 1}
    assert pruner.floor == ("features.1", "features.4")
    assert all(switch.living.all() for switch in pruner.switches.values())
    assert pruner.structure.model(x).std() > 0


def train(rule: str, *, cutting: bool, steps: int = 120) -> tuple[ShrinkNets, Tensor]:
    """A few clusters, more units than they need; cut every 20 steps, or only masked."""
    torch.manual_seed(0)
    y = torch.arange(3).repeat(20)
    x = torch.randn(3, 6)[y] + 0.3 * torch.randn(60, 6)
    net = adopt(build("mlp", (6,), 3, widths=[30, 30]), x[:2]).double()
    x = x.double()
    options = {"threshold": {"threshold": 0.02}, "sign_variance": {"memory": 0.9}, "sign_change": {}}
    pruner = ShrinkNets(Structure(net, x[:2]), strength=0.01, weight_strength=1e-4, rule=rule, **options[rule])
    optimizer = torch.optim.Adam(net.parameters(), lr=0.02)
    for step in range(steps):
        optimizer.zero_grad()
        cross_entropy(net(x), y).backward()
        pruner.regularise()
        optimizer.step()
        pruner.after_step(optimizer)
        if cutting and step % 20 == 19:
            pruner.cut(pruner.plan(), optimizer)
    return pruner, net.eval()(x)


@pytest.mark.parametrize("rule", ["threshold", "sign_change", "sign_variance"])
def test_training_with_cuts_is_training_with_masks(rule) -> None:
    """Adam's state, the rule's statistics, everything goes with its channel."""
    masked, expected = train(rule, cutting=False)
    cut, got = train(rule, cutting=True)
    left = {name: int(switch.living.sum()) for name, switch in masked.switches.items()}
    assert all(0 < count < 30 for count in left.values()), left
    assert list(cut.structure.widths.values()) == list(left.values())
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)
    folded = fold(copy.deepcopy(cut.structure.model))
    assert not any(isinstance(module, Switch) for module in folded.modules())
    assert sum(each.numel() for each in folded.parameters()) < 0.5 * sum(
        each.numel() for each in build("mlp", (6,), 3, widths=[30, 30]).parameters()
    )


def test_without_weight_penalty_there_is_no_minimum() -> None:
    """S A.3, on the spot: halving the switches and doubling the weights behind them is always better."""
    with pytest.raises(ValueError, match=r"weight_strength is 0.*S A\.3"):
        small(weight_strength=0.0)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (partial(small, strength=-1.0), "strength must be at least 0"),
        (partial(small, weight_strength=-1.0), "weight_strength must be above 0"),
        (partial(small, p=3), "p must be 1 or 2"),
        (partial(small, rule="sign"), "unknown killing rule 'sign'"),
        (partial(small, memory=1.5), "memory of the rule sign_variance"),
        (partial(small, patience=0), "patience"),
        (
            lambda: ShrinkNets(Structure(build("mlp", (6,), 3), torch.randn(2, 6)), **SETTINGS),
            "no switch on units that can be cut",
        ),
    ],
)
def test_a_mistake_is_told(make, words) -> None:
    with pytest.raises(ValueError, match=words):
        make()


def test_after_pruning_nothing_dies_any_more() -> None:
    pruner, _ = small(patience=1, rule="sign_change")
    for _ in range(3):
        pruner.after_epoch(0.5)
    assert pruner.phase == "fine_tuning"
    for switch in pruner.switches.values():
        switch.theta.data.neg_()
    pruner.after_step(torch.optim.SGD(pruner.structure.model.parameters(), lr=0.1))
    assert pruner.dead == 0
    assert not pruner.plan()
    assert pruner.penalty() == 0


def test_only_the_switches_are_trained() -> None:
    pruner, x = small()
    model = pruner.structure.model
    for parameter in model.parameters():
        parameter.requires_grad_(any(parameter is switch.theta for switch in pruner.switches.values()))
    pruner = ShrinkNets(Structure(model, x), **SETTINGS)
    thetas = [switch.theta for switch in pruner.switches.values()]
    torch.testing.assert_close(pruner.penalty(), 0.01 * sum(theta.abs().sum() for theta in thetas))
    for theta in thetas:
        theta.grad = torch.zeros_like(theta)
    pruner.regularise()
    for theta in thetas:
        torch.testing.assert_close(theta.grad, 0.01 * theta.detach().sign())


def test_deviations_of_variational_inference_are_not_shrunk() -> None:
    torch.manual_seed(0)
    x = torch.randn(8, 6)
    net = adopt(build("mlp", (6,), 3, widths=[9]), x)
    Variational(net, strength=0.1)
    pruner = ShrinkNets(Structure(net, x), **SETTINGS)
    for each in net.parameters():
        each.grad = torch.zeros_like(each)
    pruner.regularise()
    pushed = {name: bool(each.grad.any()) for name, each in net.named_parameters()}
    assert [moved for name, moved in pushed.items() if name.endswith("log_deviation")] == [False, False]
    assert [moved for name, moved in pushed.items() if name.endswith(".weight")] == [True, True]
