"""Penalties against sums written out, their gradients against autograd, proximal steps against a minimiser."""

import math
import runpy
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from structlearn.penalties import L1, L2, Entries, GroupLasso, Groups, SparseGroupLasso
from structlearn.pruning.weights import groups_of, weights_of
from structlearn.structure import Structure

support = runpy.run_path(str(Path(__file__).parents[3] / "support" / "prunable.py"))
network, NETS = support["network"], support["NETS"]
PENALTIES = ("l2", "l1", "incoming", "outgoing", "sparse")


def penalised(name, kind):
    """(penalty, weights) of a network."""
    model, batch = network(name)
    structure = Structure(model, batch[:2])
    weights = weights_of(structure)
    tensors = [weight.tensor for weight in weights]
    if kind == "l2":
        return L2(tensors), tensors
    if kind == "l1":
        return L1(tensors), tensors
    groups = groups_of(structure, weights, "in" if kind == "outgoing" else "out")
    lasso = GroupLasso(tensors, groups, None if kind == "outgoing" else groups.sizes.sqrt())
    return (SparseGroupLasso(L1(tensors), lasso, 0.3) if kind == "sparse" else lasso), tensors


def toy(entries, index, factors=None):
    """A group Lasso over two tensors, (n, 2) by rows and (2, n, 2) by the middle axis, and the tensors."""
    one = nn.Parameter(torch.tensor(entries[: 2 * len(index)], dtype=torch.float64).view(-1, 2))
    two = nn.Parameter(torch.tensor(entries[2 * len(index) :], dtype=torch.float64).view(2, -1, 2))
    numbers = torch.tensor(index)
    count = int(numbers.max()) + 1
    sizes = torch.zeros(count, dtype=torch.float64).index_add(0, numbers, torch.full((len(index),), 6.0).double())
    groups = Groups([Entries((0,)), Entries((1,))], [numbers, numbers], count, sizes)
    return GroupLasso([one, two], groups, factors), one, two


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("kind", PENALTIES)
def test_the_gradient_is_that_of_the_value(name, kind):
    penalty, tensors = penalised(name, kind)
    with torch.no_grad():
        for tensor in tensors:  # some are zero, and some groups
            tensor[0] = 0.0
            tensor[:, 0] = 0.0
            tensor.view(-1)[-1] = 0.0
    start = [torch.randn_like(tensor) for tensor in tensors]
    wanted = torch.autograd.grad(0.7 * penalty.value(), tensors)
    for tensor, grad in zip(tensors, start, strict=True):
        tensor.grad = grad.clone()
    penalty.add_gradient(0.7)
    for tensor, grad, own in zip(tensors, start, wanted, strict=True):
        assert own.isfinite().all()
        torch.testing.assert_close(tensor.grad, grad + own, rtol=0, atol=1e-10)


@pytest.mark.parametrize("kind", PENALTIES)
def test_all_zero_has_the_subgradient_zero(kind):
    penalty, tensors = penalised("residual", kind)
    with torch.no_grad():
        torch._foreach_zero_(tensors)
    for tensor in tensors:
        tensor.grad = torch.zeros_like(tensor)
    penalty.add_gradient(1.0)
    gradients = torch.autograd.grad(penalty.value(), tensors)
    assert penalty.value() == 0
    assert all((each == 0).all() for each in (*gradients, *(tensor.grad for tensor in tensors)))
    penalty.shrink(0.5)
    assert all((tensor == 0).all() for tensor in tensors)


@pytest.mark.parametrize("kind", PENALTIES)
def test_a_parameter_without_gradient_is_left_alone(kind):
    penalty, tensors = penalised("mlp", kind)
    alone = torch.autograd.grad(penalty.value(), tensors)[1]
    tensors[1].grad = torch.zeros_like(tensors[1])
    penalty.add_gradient(1.0)
    assert tensors[0].grad is None
    assert tensors[2].grad is None
    torch.testing.assert_close(tensors[1].grad, alone)


def test_values_are_the_sums_of_the_source():
    model, batch = network("mlp")
    one, two, three = (model.get_parameter(name).detach() for name in ("0.weight", "3.weight", "6.weight"))
    every = (one, two, three)
    structure = Structure(model, batch[:2])
    weights = weights_of(structure)
    tensors = [weight.tensor for weight in weights]
    incoming, outgoing = (groups_of(structure, weights, side) for side in ("out", "in"))
    l1 = sum(float(w.abs().sum()) for w in every)
    rows = sum(math.sqrt(w.shape[1]) * math.sqrt(sum(x * x for x in row)) for w in every for row in w.tolist())
    columns = sum(math.sqrt(sum(x * x for x in column)) for w in every for column in w.T.tolist())
    lasso = GroupLasso(tensors, incoming, incoming.sizes.sqrt())
    assert L2(tensors).value().item() == pytest.approx(sum(float((w * w).sum()) for w in every))
    assert L1(tensors).value().item() == pytest.approx(l1)
    assert lasso.value().item() == pytest.approx(rows)
    assert GroupLasso(tensors, outgoing).value().item() == pytest.approx(columns)
    assert SparseGroupLasso(L1(tensors), lasso, 0.25).value().item() == pytest.approx(0.25 * l1 + 0.75 * rows)


@pytest.mark.parametrize("name", ["residual", "lstm", "lenet"])
def test_a_coupled_units_weights_are_under_one_root(name):
    model, batch = network(name)
    structure = Structure(model, batch[:2])
    weights = weights_of(structure)
    sets = structure.reduce("out", lambda _, tensor: tensor.square() if tensor.dim() > 1 else torch.zeros_like(tensor))
    wanted = sum(each.sqrt().sum().item() for each in sets.values())
    wanted += weights[-1].tensor.square().sum(1).sqrt().sum().item()  # the answer's units, which are in no set
    found = GroupLasso([weight.tensor for weight in weights], groups_of(structure, weights, "out")).value()
    assert found.item() == pytest.approx(wanted)


def minimised(start, penalty_of, amount):
    """The least ||u - w||^2 / 2 + amount penalty(u), by descent along shrinking subgradient steps."""
    u = start.clone().requires_grad_()
    least = math.inf
    for step in range(1, 6001):
        objective = (u - start).square().sum() / 2 + amount * penalty_of(u)
        least = min(least, objective.item())
        (gradient,) = torch.autograd.grad(objective, u)
        with torch.no_grad():
            u -= 0.5 / math.sqrt(step) * gradient / max(1.0, float(gradient.norm()))
    return least


@pytest.mark.parametrize("kind", ["l2", "l1", "group", "sparse"])
def test_the_proximal_step_minimises_its_objective(kind):
    torch.manual_seed(1)
    amount, index = 0.6, torch.tensor([0, 1, 0, 2])
    start = torch.randn(4, 3, dtype=torch.float64)
    start[3] *= 0.05  # a group that goes
    weight = nn.Parameter(start.clone())
    factors = torch.tensor([1.0, 0.5, 2.0], dtype=torch.float64)
    groups = Groups([Entries((0,))], [index], 3, torch.tensor([6.0, 3.0, 3.0], dtype=torch.float64))
    lasso = GroupLasso([weight], groups, factors)
    penalty = {
        "l2": L2([weight]),
        "l1": L1([weight]),
        "group": lasso,
        "sparse": SparseGroupLasso(L1([weight]), lasso, 0.4),
    }
    values = {
        "l2": lambda u: u.square().sum(),
        "l1": lambda u: u.abs().sum(),
        "group": lambda u: sum(f * (u[index == g].square().sum() + 1e-30).sqrt() for g, f in enumerate(factors)),
    }
    values["sparse"] = lambda u: 0.4 * values["l1"](u) + 0.6 * values["group"](u)
    least = minimised(start, values[kind], amount)
    penalty[kind].shrink(amount)
    own = weight.detach()
    objective = float((own - start).square().sum() / 2 + amount * values[kind](own))
    assert objective <= least + 1e-12  # nothing that descent finds is better,
    for _ in range(500):  # nor what lies around it
        other = own + 10 ** float(-6 * torch.rand(())) * torch.randn_like(own)
        assert float((other - start).square().sum() / 2 + amount * values[kind](other)) >= objective - 1e-12
    if kind != "l2":
        assert ((own == 0) & (start != 0)).any()


@given(
    st.lists(st.floats(-2, 2), min_size=18, max_size=18),
    st.lists(st.integers(0, 2), min_size=3, max_size=3),
    st.floats(0, 3),
)
@settings(max_examples=200, deadline=None)
def test_the_block_threshold_in_closed_form(entries, index, amount):
    index[0] = 2  # so that there are three groups, some of which may be empty
    factors = torch.tensor([1.0, 0.0, 2.0], dtype=torch.float64)
    penalty, one, two = toy(entries, index, factors)
    before = one.detach().clone(), two.detach().clone()
    penalty.shrink(amount)
    for group in range(3):
        own = torch.tensor(index) == group
        vector = torch.cat([before[0][own].flatten(), before[1][:, own].flatten()])
        norm = float(vector.norm())
        share = max(0.0, 1 - amount * float(factors[group]) / norm) if norm else 0.0
        found = torch.cat([one[own].flatten(), two[:, own].flatten()]).detach()
        torch.testing.assert_close(found, share * vector, rtol=1e-9, atol=1e-12)
        if norm and amount * float(factors[group]) > norm * (1 + 1e-12):
            assert (found == 0).all()


@given(st.lists(st.floats(-2, 2), min_size=18, max_size=18), st.floats(0, 3))
@settings(max_examples=100, deadline=None)
def test_the_soft_threshold_in_closed_form(entries, amount):
    weight = nn.Parameter(torch.tensor(entries, dtype=torch.float64).view(3, 6))
    L1([weight]).shrink(amount)
    wanted = [math.copysign(max(0.0, abs(x) - amount), x) for x in entries]
    torch.testing.assert_close(weight.detach().flatten(), torch.tensor(wanted, dtype=torch.float64), rtol=0, atol=1e-12)
    assert all(found == 0 for found, x in zip(weight.flatten().tolist(), entries, strict=True) if abs(x) <= amount)
