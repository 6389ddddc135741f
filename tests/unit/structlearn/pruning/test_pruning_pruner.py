"""What every method keeps to: the contract of :class:`structlearn.pruning.Pruner`, in a training loop."""

import copy
import runpy
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from structlearn.pruning import BnLasso, Norm, ScaLP
from structlearn.structure import Structure

support = runpy.run_path(str(Path(__file__).parents[3] / "support" / "prunable.py"))
network = support["network"]

METHODS = {
    **{f"scalp-{penalty}": (ScaLP, {"penalty": penalty}) for penalty in ("l2", "l1", "group_lasso")},
    **{
        f"norm-{penalty}": (Norm, {"penalty": penalty})
        for penalty in ("l2", "l1", "group_lasso", "sparse_group_lasso", "reversed_group_lasso")
    },
    "bn_lasso": (BnLasso, {}),
}
PROXIMAL = [name for name in METHODS if not name.endswith("-l2")]  # its proximal steps make no zeros
STEPS = [(name, proximal) for name in METHODS for proximal in (False, True)[: 1 + (name in PROXIMAL)]]
NETWORKS = ("mlp", "lenet", "residual", "dense", "lstm", "maxmin")


def build(method, name, **options):
    kind, own = METHODS[method]
    model, batch = network(name, "sqrt_log" if kind is ScaLP else None)
    structure = Structure(model, batch[:2])
    return kind(structure, **{"strength": 0.01} | own | options), model, batch


class Training:
    """A training loop around a pruner, one epoch of which is three steps."""

    def __init__(self, method, name, **options):
        self.pruner, self.model, self.batch = build(method, name, **options)
        self.targets = torch.arange(len(self.batch)) % 3
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.05, momentum=0.5)

    def epoch(self, accuracy=0.5):
        for _ in range(3):
            self.optimizer.zero_grad()
            nn.functional.cross_entropy(self.model(self.batch), self.targets).backward()
            self.pruner.regularise()
            self.optimizer.step()
            self.pruner.after_step(self.optimizer)
        self.pruner.cut(self.pruner.plan(), self.optimizer)
        self.pruner.after_epoch(accuracy)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("method", METHODS)
def test_regularise_adds_the_penaltys_gradient(method, name):
    pruner, model, batch = build(method, name)
    parameters = dict(model.named_parameters())
    nn.functional.cross_entropy(model(batch), torch.arange(len(batch)) % 3).backward()
    before = {key: parameter.grad.clone() for key, parameter in parameters.items()}
    added = torch.autograd.grad(pruner.penalty(), list(parameters.values()), allow_unused=True)
    pruner.regularise()
    assert any(each is not None for each in added)
    for (key, parameter), own in zip(parameters.items(), added, strict=True):
        wanted = before[key] if own is None else before[key] + own
        torch.testing.assert_close(parameter.grad, wanted, rtol=0, atol=1e-10)


@pytest.mark.parametrize("method", PROXIMAL)
def test_proximal_steps_take_the_place_of_the_gradient(method):
    pruner, model, batch = build(method, "residual", proximal=True, strength=0.3)
    model(batch).sum().backward()
    gradients = [parameter.grad.clone() for parameter in model.parameters()]
    before, value = copy.deepcopy(model.state_dict()), pruner.penalty().item()
    pruner.regularise()
    assert all(torch.equal(parameter.grad, one) for parameter, one in zip(model.parameters(), gradients, strict=True))
    assert all(torch.equal(before[name], each) for name, each in model.state_dict().items())
    pruner.after_step(torch.optim.SGD(model.parameters(), lr=0.5))
    assert pruner.penalty().item() < value


@pytest.mark.parametrize(
    "options", [{}, {"momentum": 0.9}, {"momentum": 0.9, "dampening": 0.5}, {"momentum": 0.8, "nesterov": True}]
)
def test_proximal_steps_end_where_the_penalty_has_its_minimum_whatever_the_momentum(options):
    """The minimum of sum (w - a)^2 / 2 + lambda sum abs(w) is a, drawn towards 0 by lambda."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5, bias=False), nn.ReLU(), nn.Linear(5, 2, bias=False)).double()
    pruner = Norm(Structure(model, torch.zeros(2, 6, dtype=torch.float64)), penalty="l1", strength=0.3, proximal=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, **options)
    wanted = [torch.randn_like(parameter) for parameter in model.parameters()]
    for _ in range(2000):
        optimizer.zero_grad()
        sum((w - a).square().sum() / 2 for w, a in zip(model.parameters(), wanted, strict=True)).backward()
        pruner.regularise()
        optimizer.step()
        pruner.after_step(optimizer)
    for parameter, a in zip(model.parameters(), wanted, strict=True):
        torch.testing.assert_close(parameter.data, nn.functional.softshrink(a, 0.3), rtol=0, atol=1e-9)
        assert (parameter.data[a.abs() < 0.3] == 0).all()


def test_proximal_steps_of_several_lengths_are_refused():
    pruner, model, _ = build("norm-l1", "mlp", proximal=True)
    first, *others = model.parameters()
    optimizer = torch.optim.SGD([{"params": [first], "lr": 0.2}, {"params": others}], lr=0.1)
    with pytest.raises(ValueError, match=r"these groups make steps of \[0.2, 0.1\]; give the optimiser one group"):
        pruner.after_step(optimizer)


def test_proximal_steps_leave_alone_what_the_optimiser_has_not_moved():
    """A trunk that is not trained, and a branch that took no part."""
    torch.manual_seed(0)
    model = nn.ModuleDict({name: nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4)) for name in "abc"})

    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.parts = model

        def forward(self, x, branch="b"):
            return self.parts["a"](x) + self.parts[branch](x)

    network, x = Network(), torch.randn(3, 6)
    structure = Structure(network, x)
    for method in ("l1", "group_lasso", "sparse_group_lasso"):
        pruner = Norm(structure, penalty=method, strength=0.1, proximal=True)
        optimizer = torch.optim.SGD([*model["b"].parameters(), *model["c"].parameters()], lr=0.1)
        before = copy.deepcopy(network.state_dict())
        optimizer.zero_grad()
        network(x).sum().backward()
        optimizer.step()
        pruner.after_step(optimizer)
        moved = {key for key, each in network.state_dict().items() if not torch.equal(each, before[key])}
        assert {key.split(".")[1] for key in moved} == {"b"}


@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.AdamW, torch.optim.RMSprop, torch.optim.Adagrad])
def test_proximal_steps_after_an_adaptive_optimisers_are_refused(kind):
    pruner, model, _ = build("norm-l1", "mlp", proximal=True)
    with pytest.raises(ValueError, match=f"those of {kind.__name__} have another length for each parameter; use"):
        pruner.after_step(kind(model.parameters()))


class NoWaiting(TorchDispatchMode):
    """Refuses what a device would be waited for."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func.overloadpacket.__name__ not in {"_local_scalar_dense", "nonzero", "equal", "masked_select"}
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(("method", "proximal"), STEPS)
def test_a_step_waits_for_nothing(method, proximal):
    pruner, model, batch = build(method, "dense", proximal=proximal)
    model(batch).sum().backward()
    pruner.penalty()  # indices are made after a cut, once
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with NoWaiting():
        pruner.regularise()
        pruner.after_step(optimizer)
    with pytest.raises(AssertionError), NoWaiting():
        model(batch).sum().item()


@pytest.mark.parametrize("method", METHODS)
def test_without_proximal_steps_nothing_comes_after_a_step(method):
    pruner, model, _ = build(method, "mlp")
    before = copy.deepcopy(model.state_dict())
    pruner.after_step(torch.optim.SGD(model.parameters(), lr=0.5))
    assert all(torch.equal(before[name], each) for name, each in model.state_dict().items())


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize(("method", "proximal"), STEPS)
def test_training_goes_on_across_cuts(method, name, proximal):
    """A strength that empties every layer it can: widths go down, none below one unit."""
    training = Training(method, name, strength=3.0, threshold=0.5, proximal=proximal)
    before = training.pruner.structure.widths
    for _ in range(10):
        training.epoch()
        assert min(training.pruner.structure.widths.values()) >= 1
    assert sum(training.pruner.structure.widths.values()) < sum(before.values())
    assert all(parameter.isfinite().all() for parameter in training.model.parameters())
    held = training.pruner.floor
    assert all(training.pruner.structure.widths[each] == 1 for each in held)


@pytest.mark.parametrize("method", METHODS)
def test_fine_tuning_leaves_everything_alone(method):
    training = Training(method, "residual", patience=1, threshold=0.5)
    training.pruner.after_epoch(0.5)
    training.pruner.after_epoch(0.5)
    pruner, model = training.pruner, training.model
    assert pruner.phase == "fine_tuning"
    model(training.batch).sum().backward()
    gradients = [parameter.grad.clone() for parameter in model.parameters()]
    pruner.regularise()
    pruner.after_step(training.optimizer)
    assert pruner.penalty().item() == 0
    assert not pruner.plan()
    assert pruner.floor == ()
    assert all(torch.equal(parameter.grad, one) for parameter, one in zip(model.parameters(), gradients, strict=True))


def test_phases_count_the_units_that_are_left():
    training = Training("bn_lasso", "mlp", patience=2, strength=0.0)
    with torch.no_grad():
        training.model[1].weight[3] = 0.0
    training.pruner.after_epoch(0.5)
    training.pruner.after_epoch(0.5)
    training.pruner.cut(training.pruner.plan())
    training.pruner.after_epoch(0.5)  # a unit less: the count begins anew
    training.pruner.after_epoch(0.5)
    assert (training.pruner.phase, training.pruner.factor, training.pruner.best) == ("pruning", 1.0, False)
    training.pruner.after_epoch(0.5)
    training.pruner.after_epoch(0.4)
    assert (training.pruner.phase, training.pruner.factor, training.pruner.best) == ("fine_tuning", 1.0, True)
    training.pruner.after_epoch(0.4)
    training.pruner.after_epoch(0.4)
    assert (training.pruner.factor, training.pruner.best) == (0.1, False)


@pytest.mark.parametrize("method", METHODS)
def test_resumed_training_is_the_same_bit_for_bit(method):
    """A new network takes the plan, then the weights, the optimiser's and the method's state."""
    accuracies = [0.1, 0.2, 0.3, 0.4, 0.5, *[0.4] * 10]
    options = {"strength": 3.0, "threshold": 0.3, "patience": 2, "proximal": method in PROXIMAL}
    whole, half, resumed = (Training(method, "residual", **options) for _ in range(3))
    for accuracy in accuracies:
        whole.epoch(accuracy)
    for accuracy in accuracies[:4]:
        half.epoch(accuracy)
    assert half.pruner.structure.plan
    assert half.pruner.phase == "pruning"
    resumed.pruner.structure.apply(half.pruner.structure.plan)
    resumed.model.load_state_dict(half.model.state_dict())
    resumed.optimizer.load_state_dict(half.optimizer.state_dict())
    resumed.pruner.load_state_dict(half.pruner.state_dict())
    for accuracy in accuracies[4:]:
        resumed.epoch(accuracy)
    assert whole.pruner.phase == resumed.pruner.phase != "pruning"
    assert whole.pruner.structure.widths == resumed.pruner.structure.widths
    assert whole.pruner.state_dict() == resumed.pruner.state_dict()
    for name, each in whole.model.state_dict().items():
        assert torch.equal(each, resumed.model.state_dict()[name]), name


def test_equal_weights_give_equal_plans():
    """Ranks that hold one network make one plan."""
    one, _, _ = build("scalp-group_lasso", "dense", threshold=0.2)
    other, _, _ = build("scalp-group_lasso", "dense", threshold=0.2)
    assert one.plan()
    assert one.plan().digest == other.plan().digest


@pytest.mark.parametrize("method", METHODS)
def test_one_judgement_gives_the_plan_and_what_is_held(method, monkeypatch):
    pruner, model, _ = build(method, "mlp", threshold=0.5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    plan, floor = pruner.plan(), pruner.floor
    assert plan
    assert floor == tuple(pruner.structure.sets)
    calls, verdicts = [], type(pruner)._verdicts
    monkeypatch.setattr(type(pruner), "_verdicts", lambda self: calls.append(1) or verdicts(self))
    assert pruner.judge() == (plan, floor)
    assert calls == [1]
