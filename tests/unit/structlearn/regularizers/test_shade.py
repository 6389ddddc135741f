"""SHADE against a loop over units and samples written from the source, and what it does to any network."""

import copy
import pickle
import shutil

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from structlearn import models
from structlearn.alrao import Alrao
from structlearn.regularizers import Shade
from structlearn.regularizers import variance as module
from structlearn.regularizers.memory import Room
from structlearn.regularizers.variance import latent_variance
from structlearn.structure import Plan, Structure


def by_hand(y, mean0, mean1):
    """B eq. 4.10 and 4.11, one sample of one unit after the other; y is [samples, units]."""
    total = 0.0
    for unit in range(y.shape[1]):
        for value in y[:, unit]:
            absent = np.exp(-max(value, 0.0))
            for p, mean in ((absent, mean0[unit]), (1 - absent, mean1[unit])):
                total += p * (value - mean) ** 2 / len(y)
    return total


def averages_by_hand(batches, units):
    """B Alg. 5."""
    p, mu = np.full((2, units), 0.5), np.stack([np.full(units, -1.0), np.full(units, 1.0)])
    for y in batches:
        absent = np.exp(-np.maximum(y, 0))
        for b, weight in enumerate((absent, 1 - absent)):
            p[b] = 0.8 * p[b] + 0.2 * weight.mean(0)
            mu[b] = 0.8 * mu[b] + 0.2 * (weight / p[b] * y).mean(0)
    return p, mu


def drawn(seed, *shape):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


SHAPES = st.sampled_from([(7, 3), (1, 1), (4, 3, 5), (2, 3, 4, 5), (2, 2, 3, 2, 3)])


@settings(max_examples=60, deadline=None)
@given(SHAPES, st.sampled_from([1, -1]), st.floats(0.01, 30), st.integers(0, 2**31), st.sampled_from([4, 1 << 16]))
def test_the_loss_is_that_of_the_source(shape, axis, size, seed, cached):
    y = drawn(seed, *shape) * size
    mean0, mean1 = drawn(seed + 1, shape[axis]), drawn(seed + 2, shape[axis])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "CACHED", cached)  # in parts, or all at once
        _, loss, moments = latent_variance(y, axis, mean0, mean1)
    flat = y.movedim(axis, -1).reshape(-1, shape[axis]).numpy()
    assert loss.item() == pytest.approx(by_hand(flat, mean0.numpy(), mean1.numpy()), rel=1e-9, abs=1e-9)
    absent = np.exp(-np.maximum(flat, 0))
    exact = (absent.sum(0), (absent * flat).sum(0), ((1 - absent) * flat).sum(0))
    for found, expected in zip(moments, exact, strict=True):
        np.testing.assert_allclose(found.numpy(), expected, rtol=1e-9, atol=1e-9 * size)


@settings(max_examples=60, deadline=None)
@given(SHAPES, st.sampled_from([1, -1]), st.floats(0.01, 30), st.integers(0, 2**31), st.sampled_from([4, 1 << 16]))
def test_the_gradient_is_that_of_autograd(shape, axis, size, seed, cached):
    y = (drawn(seed, *shape) * size).requires_grad_()
    mean0, mean1 = drawn(seed + 1, shape[axis]), drawn(seed + 2, shape[axis])
    units = y.movedim(axis, -1)
    absent = torch.exp(-units.relu())
    plain = (absent * (units - mean0) ** 2 + (1 - absent) * (units - mean1) ** 2).sum() * shape[axis] / y.numel()
    (expected,) = torch.autograd.grad(3 * plain, y)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "CACHED", cached)
        loss = latent_variance(y, axis, mean0, mean1, scale=1.5).loss
    (found,) = torch.autograd.grad(2 * loss, y)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
    assert loss.item() == pytest.approx(1.5 * plain.item())


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 6), st.integers(0, 2**31))
def test_the_gradient_of_a_linear_neuron_has_the_closed_form(inputs, seed):
    """B App. B.2, with its sigma = p1: (delta_1 + delta_2) x."""
    x, w, b = drawn(seed, 1, inputs), drawn(seed + 1, inputs).requires_grad_(), drawn(seed + 2, 1)
    mu0, mu1 = drawn(seed + 3, 1), drawn(seed + 4, 1)
    y = (x @ w + b).unsqueeze(1)
    latent_variance(y, 1, mu0, mu1).loss.backward()
    value = y.detach()
    sigma = 1 - torch.exp(-value.relu())
    slope = torch.exp(-value) * (value > 0)
    delta1 = slope * ((value - mu1) ** 2 - (value - mu0) ** 2)
    delta2 = 2 * sigma * (value - mu1) + 2 * (1 - sigma) * (value - mu0)
    torch.testing.assert_close(w.grad, ((delta1 + delta2) * x).squeeze(0), rtol=1e-9, atol=1e-12)


def test_in_half_precision_it_is_that_of_what_was_rounded():
    y = drawn(0, 16, 4, 3, 3).bfloat16().requires_grad_()
    means = drawn(1, 4).float(), drawn(2, 4).float()
    exact = y.detach().float().requires_grad_()
    for value in (y, exact):
        latent_variance(value, 1, *means, room=Room()).loss.backward()
    assert y.grad.dtype == torch.bfloat16
    torch.testing.assert_close(y.grad.float(), exact.grad, rtol=0.01, atol=1e-4)


@pytest.mark.parametrize("overwritten", [False, True])
def test_the_gradient_can_be_taken_again_and_goes_through_what_comes_next(overwritten):
    x, means = drawn(0, 3, 2).requires_grad_(), (drawn(1, 2), drawn(2, 2))
    seen = latent_variance(3 * x, 1, *means, overwritten=overwritten)
    total = seen.loss + (seen.y.relu_() if overwritten else seen.y.relu()).square().sum()
    once = torch.autograd.grad(total, x, retain_graph=True)[0]
    again = torch.autograd.grad(2 * total, x)[0]
    alone, rectified = (
        torch.autograd.grad(each, x)[0]
        for each in (latent_variance(3 * x, 1, *means).loss, (3 * x).relu().square().sum())
    )
    torch.testing.assert_close(once, alone + rectified)
    torch.testing.assert_close(again, 2 * once)


def test_what_is_changed_after_the_rectifier_is_refused():
    y = 3 * drawn(0, 3, 2).requires_grad_()
    seen = latent_variance(y, 1, drawn(1, 2), drawn(2, 2))
    seen.y.relu().sum()
    y.add_(1)
    with pytest.raises(RuntimeError, match="changed in place after the rectifier"):
        seen.loss.backward()


KEEPERS = {
    "a hook": lambda y, kept: y.register_hook(kept.append),
    "a hook, detached": lambda y, kept: y.register_hook(lambda gradient: kept.append(gradient.detach())),
    "a hook, part of it": lambda y, kept: y.register_hook(lambda gradient: kept.append(gradient[:2])),
}


@pytest.mark.parametrize("keeper", KEEPERS)
def test_a_gradient_that_somebody_else_holds_is_not_changed(keeper):
    x, kept = drawn(0, 5, 2).requires_grad_(), []
    seen = latent_variance(3 * x, 1, drawn(1, 2), drawn(2, 2))
    KEEPERS[keeper](seen.y, kept)
    (seen.loss + (2 * (3 * seen.y)).sum()).backward()
    assert torch.equal(kept[0], torch.full_like(kept[0], 6))


def test_nor_is_one_that_is_given_or_goes_two_ways():
    x, means = drawn(0, 5, 2).requires_grad_(), (drawn(1, 2), drawn(2, 2))
    given = torch.ones(5, 2, dtype=torch.float64)
    seen = latent_variance(3 * x, 1, *means)
    torch.autograd.backward([seen.y, seen.loss], [given, torch.tensor(1.0, dtype=torch.float64)])
    assert torch.equal(given, torch.ones_like(given))
    first, second = latent_variance(3 * x, 1, *means), latent_variance(4 * x, 1, *means)
    loss = first.loss + second.loss + (3 * (first.y + second.y)).relu().sum()
    found = torch.autograd.grad(loss, [first.y, second.y, x])
    open_ = 3.0 * (7 * x > 0)
    assert torch.equal(found[0], open_)
    assert torch.equal(found[1], open_)
    apart = [torch.autograd.grad(latent_variance(size * x, 1, *means).loss, x)[0] for size in (3, 4)]
    torch.testing.assert_close(found[2], sum(apart) + 7 * open_)


def test_a_gradient_that_is_alone_is_changed_in_its_place():
    """What is_alone is for: no memory is asked for where nobody but autograd holds a gradient."""
    x, room = torch.randn(5, 2, requires_grad=True), Room()
    for _ in range(2):
        seen = latent_variance(3 * x, 1, torch.zeros(2), torch.ones(2), room=room)
        (seen.loss + (2 * seen.y.relu()).sum()).backward()
    assert not room._made


def test_two_forward_passes_before_a_backward_do_not_share_the_room():
    room, means = Room(), (drawn(1, 2), drawn(2, 2))
    first, second = (drawn(seed, 5, 2).requires_grad_() for seed in (3, 4))
    for _ in range(2):
        losses = [latent_variance(y, 1, *means, room=room).loss for y in (first, second)]
        sum(losses).backward()
    for y in (first, second):
        alone = y.detach().requires_grad_()
        latent_variance(alone, 1, *means).loss.backward()
        torch.testing.assert_close(y.grad, 2 * alone.grad)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler, and there is no g++")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own, when its compiler is imported
def test_a_compiled_network_has_the_same_gradients():
    """Its backward pass must take the averages as they were, though they have gone on since."""
    net, x = models.build("cnn", (1, 28, 28), 10, width=0.25).double(), drawn(0, 8, 1, 28, 28)
    other = copy.deepcopy(net)
    shades = [Shade(each, x[:2], strength=0.1) for each in (net, other)]
    compiled = torch.compile(other)
    for _ in range(3):
        for each, shade in zip((net, compiled), shades, strict=True):
            each.zero_grad()
            (each(x).square().sum() + shade.loss()).backward()
        for one, same in zip(net.parameters(), other.parameters(), strict=True):
            torch.testing.assert_close(one.grad, same.grad, rtol=1e-9, atol=1e-9 * one.grad.abs().max().item())


# --- in a network ------------------------------------------------------------------------------------------


def mlp():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)).double()


class Functions(nn.Module):
    """Rectifies by functions and by one module that is called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Conv2d(1, 3, 3), nn.Conv2d(3, 4, 3), nn.Linear(4 * 4, 5)
        self.out, self.act = nn.Linear(5, 3), nn.ReLU(inplace=True)

    def forward(self, x):
        x = functional.relu(self.first(x), inplace=True)
        x = self.act(self.second(x)).flatten(1)
        return self.out(torch.relu(self.act(self.third(x)) + 1))


class Sequence(nn.Module):
    """Units on the last axis."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.GELU(), nn.Linear(6, 2))

    def forward(self, x):
        return self.body(x).mean(1)


def test_each_step_uses_the_averages_of_before_it():
    net, batches = mlp(), [drawn(seed, 8, 4) for seed in range(4)]
    shade = Shade(net, batches[0][:2], strength=0.1)
    net.train()
    seen = {name: [] for name in ("1", "3")}
    for x in batches:
        before = {name: (sites[0].mean0.clone(), sites[0].mean1.clone()) for name, sites in shade.sites.items()}
        net(x)
        loss = shade.loss()
        expected = 0.0
        for name, sites in (("1", net[:1]), ("3", net[:3])):
            with torch.no_grad():
                seen[name].append(sites.eval()(x).numpy())
            expected += 0.1 * by_hand(seen[name][-1], *(mean.numpy() for mean in before[name]))
        net.train()
        assert loss.item() == pytest.approx(expected, rel=1e-9)
    for name, units in (("1", 6), ("3", 5)):
        p, mu = averages_by_hand(seen[name], units)
        site = shade.sites[name][0]
        np.testing.assert_allclose(site.present.numpy(), p[1], rtol=1e-6)  # torch keeps 1 - 0.8 as a float
        np.testing.assert_allclose(site.mean0.numpy(), mu[0], rtol=1e-6, atol=1e-9)
        np.testing.assert_allclose(site.mean1.numpy(), mu[1], rtol=1e-6, atol=1e-9)


def test_a_unit_that_never_finds_its_pattern_stays_finite():
    net = nn.Sequential(nn.Linear(2, 3), nn.ReLU())
    shade = Shade(net, torch.zeros(2, 2), strength=1.0)
    nn.init.constant_(net[0].bias, -50.0)
    for _ in range(4000):
        net(torch.zeros(2, 2))
        assert shade.loss().isfinite()
    site = shade.sites["1"][0]
    assert all(value.isfinite().all() for value in (site.present, site.mean0, site.mean1))


@pytest.mark.parametrize(
    ("network", "example", "places"),
    [
        (mlp, (2, 4), {"1": [(6, 1)], "3": [(5, 1)]}),
        (Functions, (2, 1, 6, 6), {"act": [(4, 1), (5, 1)], "": [(3, 1), (5, 1)]}),
        (Sequence, (2, 7, 4), {"body.2": [(6, -1)]}),
        (lambda: models.build("cnn", (1, 28, 28), 10, activation="maxmin", width=0.125), (2, 1, 28, 28), None),
        (lambda: models.build("resnet18", (3, 32, 32), 10, width=0.0625), (2, 3, 32, 32), None),
        (lambda: models.build("densenet121", (3, 32, 32), 10, width=0.25), (2, 3, 32, 32), None),
        (lambda: Alrao(models.build("lenet", (1, 28, 28), 10)), (2, 1, 28, 28), None),
    ],
)
def test_it_is_before_every_rectifier_of_any_network(network, example, places):
    net = network()
    x = torch.randn(example, dtype=next(net.parameters()).dtype)
    shade = Shade(net, x, strength=1e-3)
    if places is None:
        rectifiers = [name for name, each in net.named_modules() if type(each).__name__ in {"ReLU", "MaxMin"}]
        assert [*shade.sites] == rectifiers
    else:
        found = {name: [(len(site.mean0), site.axis) for site in sites] for name, sites in shade.sites.items()}
        assert found == places
    net.eval()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    net(x)
    assert shade.loss() is None
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    net.train()
    net(x)
    shade.loss().backward()
    assert shade.loss() is None  # asked once
    weights = [each for name, each in net.named_parameters() if each.dim() > 1 and each.grad is not None]
    assert weights
    assert all(each.grad.isfinite().all() for each in weights)
    for sites in shade.sites.values():
        assert all(not torch.equal(site.mean0, torch.full_like(site.mean0, -1)) for site in sites)


def test_what_rectifies_in_place_is_seen_before_it_does():
    torch.manual_seed(0)
    there, apart = (nn.Sequential(nn.Linear(4, 6), nn.ReLU(inplace=each), nn.Linear(6, 2)) for each in (True, False))
    there.load_state_dict(apart.state_dict())
    x = torch.randn(8, 4)
    for net in (there, apart):
        shade = Shade(net, x[:2], strength=0.5)
        (net(x).square().sum() + shade.loss()).backward()
    for one, other in zip(there.parameters(), apart.parameters(), strict=True):
        assert torch.equal(one.grad, other.grad)


def test_functions_are_watched_as_modules_are():
    class ByFunction(nn.Module):
        def __init__(self, layers):
            super().__init__()
            self.layers = layers

        def forward(self, x):
            return self.layers[4](self.layers[2](self.layers[0](x).relu()).relu())

    net = mlp()
    other = ByFunction(copy.deepcopy(net))
    x = drawn(0, 8, 4)
    shades = [Shade(each, x[:2], strength=0.5) for each in (net, other)]
    for _ in range(3):
        net(x)
        other(x)
        one, same = (shade.loss() for shade in shades)
        assert one.item() == same.item()
    one.backward()
    same.backward()
    assert torch.equal(net[0].weight.grad, other.layers[0].weight.grad)


def test_a_forward_pass_that_fails_leaves_no_mode_behind():
    net = Functions()
    shade = Shade(net, torch.randn(2, 1, 6, 6), strength=1.0)
    with pytest.raises(RuntimeError):
        net(torch.randn(2, 1, 9, 9))
    assert not torch.overrides._get_current_function_mode_stack()
    net(torch.randn(2, 1, 6, 6))
    assert shade.loss().isfinite()


@pytest.mark.parametrize("network", [mlp, Functions])
def test_units_are_cut_with_their_averages(network):
    net = network()
    x = torch.randn((8, 4) if network is mlp else (8, 1, 6, 6), dtype=next(net.parameters()).dtype)
    plain = Structure(copy.deepcopy(net), x[:2])
    shade = Shade(net, x[:2], strength=0.1)
    net(x)
    shade.loss()
    structure = Structure(net, x[:2])
    assert structure.widths == plain.widths  # nothing is tied down by it
    whole = copy.deepcopy(net)
    plan = Plan({name: tuple(range(size))[::-2] for name, size in structure.widths.items()})
    structure.apply(plan)
    before = {name: value for name, value in whole.named_buffers() if "shade" in name}
    for name, value in net.named_buffers():
        assert torch.equal(value, before[name].flip(0)[::2]), name
    net(x)
    shade.loss().backward()


def test_a_copy_has_averages_of_its_own_and_a_pickle_keeps_them(tmp_path):
    net, x = mlp(), drawn(0, 8, 4)
    shade = Shade(net, x[:2], strength=0.1)
    net(x)
    shade.loss().backward()
    other = copy.deepcopy(net)
    same = pickle.loads(pickle.dumps(net))
    for each in (other, same):
        assert all(torch.equal(value, each.state_dict()[name]) for name, value in net.state_dict().items())
        before = net.state_dict()["1.shade.0.mean0"].clone()
        each(x)
        assert torch.equal(net.state_dict()["1.shade.0.mean0"], before)
        assert not torch.equal(each.state_dict()["1.shade.0.mean0"], before)


def test_it_is_saved_and_goes_on_bit_for_bit():
    x = [drawn(seed, 8, 4) for seed in range(6)]

    def made():
        net = mlp()
        return net, Shade(net, x[0][:2], strength=0.1), torch.optim.SGD(net.parameters(), lr=0.1)

    def train(net, shade, optimizer, batches):
        for batch in batches:
            optimizer.zero_grad()
            (net(batch).square().mean() + shade.loss()).backward()
            optimizer.step()

    whole, first, second = made(), made(), made()
    train(*whole, x)
    train(*first, x[:3])
    second[0].load_state_dict(first[0].state_dict())
    train(*second, x[3:])
    assert all(torch.equal(value, second[0].state_dict()[name]) for name, value in whole[0].state_dict().items())


@pytest.mark.parametrize("network", [mlp, Functions])
def test_taken_away_it_leaves_the_network_as_it_was(network):
    net = network()
    names, x = [*net.state_dict()], torch.randn(2, 4).double() if network is mlp else torch.randn(2, 1, 6, 6)
    shade = Shade(net, x, strength=0.1)
    assert [*net.state_dict()] != names
    shade.remove()
    assert [*net.state_dict()] == names
    assert not any(each._forward_pre_hooks or each._forward_hooks for each in net.modules())
    net(x)
    assert shade.loss() is None
    assert Shade(net, x, strength=0.1).sites


def test_it_pulls_units_towards_their_modes():
    net, x = mlp(), drawn(0, 64, 4)
    shade, optimizer = Shade(net, x[:2], strength=0.1), torch.optim.SGD(net.parameters(), lr=0.1)
    losses = []
    for _ in range(200):
        optimizer.zero_grad()
        net(x)
        loss = shade.loss()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.1 * losses[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"strength": -1}, "strength must be at least 0"),
        ({"strength": float("nan")}, "strength must be at least 0"),
        ({"example": torch.zeros(2, 5)}, "cannot be run with the example"),
        ({"model": nn.Sequential(nn.Linear(4, 3), nn.Tanh())}, "calls none"),
    ],
)
def test_what_cannot_be_is_refused(options, message):
    given = {"model": mlp(), "example": torch.zeros(2, 4).double(), "strength": 0.1, **options}
    if "model" in options:
        given["example"] = torch.zeros(2, 4)
    with pytest.raises(ValueError, match=message):
        Shade(given["model"], given["example"], strength=given["strength"])


def test_once_is_enough():
    net = mlp()
    Shade(net, torch.zeros(2, 4).double(), strength=0.1)
    with pytest.raises(ValueError, match="already"):
        Shade(net, torch.zeros(2, 4).double(), strength=0.1)


# --- unusual uses ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [1.0, 2.0**16])
def test_in_float16_no_gradient_is_lost_or_overflows(scale):
    """A slope times strength / samples is below float16's least number, and a loss scale may be above its largest."""
    y = drawn(0, 64, 8, 16, 16).half().requires_grad_()
    exact = y.detach().float().requires_grad_()
    means = drawn(1, 8).float(), drawn(2, 8).float()
    for value, factor in ((y, 2.0**12 * scale), (exact, 1.0)):
        (latent_variance(value, 1, *means, scale=1e-4).loss * factor).backward()
    found = y.grad.float() / (2.0**12 * scale)
    assert found.isfinite().all()
    torch.testing.assert_close(found, exact.grad, rtol=0.02, atol=2e-4 / 2**12)


def test_a_network_made_half_after_it_was_attached_keeps_its_averages_in_float32():
    net = nn.Sequential(nn.Linear(4, 6), nn.ReLU()).to(torch.bfloat16)
    x = torch.randn(4096, 4).bfloat16()
    other = copy.deepcopy(net).float()
    first, second = Shade(net, x[:2], strength=1.0), Shade(other, x[:2].float(), strength=1.0)
    other.to(torch.bfloat16)
    for each in (net, other):
        each(x)
    assert all(value.dtype == torch.float32 for value in other.buffers())
    assert first.loss().item() == second.loss().item()


def test_a_batch_that_is_not_finite_does_not_spoil_the_averages():
    net, x = mlp(), drawn(0, 8, 4)
    shade = Shade(net, x[:2], strength=1.0)
    for batch in (x, torch.full_like(x, torch.inf), x, x[:0]):
        net(batch)
        assert shade.loss().isfinite() or not batch.isfinite().all()
    assert all(value.isfinite().all() for name, value in net.named_buffers())


def test_there_are_first_derivatives_only():
    y = drawn(0, 3, 2).requires_grad_()
    loss = latent_variance(y, 1, drawn(1, 2), drawn(2, 2)).loss
    with pytest.raises(RuntimeError, match="first derivatives only"):
        torch.autograd.grad(loss, y, create_graph=True)


def test_a_gradient_that_somebody_keeps_is_not_overwritten():
    room, means = Room(), (drawn(1, 2), drawn(2, 2))
    y = drawn(3, 5, 2).requires_grad_()
    (kept,) = torch.autograd.grad(latent_variance(y, 1, *means, room=room).loss, y)
    before = kept.clone()
    (2 * latent_variance(3 * y, 1, *means, room=room).loss).backward()
    assert torch.equal(kept, before)


def test_the_room_is_used_again_from_step_to_step():
    room, means, places = Room(), (drawn(1, 2), drawn(2, 2)), set()
    weight = drawn(3, 2).requires_grad_()
    for step in range(4):
        y = weight * drawn(step, 5, 2)
        (latent_variance(y, 1, *means, room=room).loss + y.square().sum()).backward()
        places |= {each.data_ptr() for each in room._made}
    assert len(places) == 1


VIEWS = {
    "a view": lambda x: x.view(4, 10),
    "a transposed one": lambda x: x.t(),
    "a flattened one": lambda x: x.view(4, 2, 5).flatten(1),
    "unsqueezed": lambda x: x.unsqueeze(-1),
}


@pytest.mark.parametrize("view", VIEWS)
def test_a_gradient_kept_in_another_shape_is_not_overwritten(view):
    room, kept, expected = Room(), [], []
    for step in range(4):
        x = torch.randn(4, 10, generator=torch.Generator().manual_seed(step)).requires_grad_()
        y = VIEWS[view](x)
        latent_variance(y, 1, torch.zeros(y.shape[1]), torch.ones(y.shape[1]), room=room).loss.backward()
        kept.append(x.grad)
        expected.append(x.grad.clone())
    assert all(torch.equal(one, other) for one, other in zip(kept, expected, strict=True))


def test_what_hooks_have_detached_is_not_overwritten():
    room, means = Room(), (torch.zeros(2), torch.ones(2))
    x = [torch.randn(5, 2, requires_grad=True) for _ in range(2)]
    with torch.autograd.graph.saved_tensors_hooks(lambda each: each.detach(), lambda each: each):
        losses = [latent_variance(3 * each, 1, *means, overwritten=True, room=room).loss for each in x]
    sum(losses).backward()
    for each in x:
        alone = each.detach().requires_grad_()
        latent_variance(3 * alone, 1, *means).loss.backward()
        torch.testing.assert_close(each.grad, alone.grad)


def test_a_checkpointed_network_has_the_gradients_of_the_averages_of_before_the_batch():
    class Checkpointed(nn.Module):
        def __init__(self, body):
            super().__init__()
            self.body = body

        def forward(self, x):
            return checkpoint(self.body, x, use_reentrant=False)

    x = drawn(0, 8, 4)
    nets = [mlp(), Checkpointed(mlp())]
    for net in nets:
        shade = Shade(net, x[:2], strength=0.5)
        (net(x).square().mean() + shade.loss()).backward()
    for one, other in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad)


def test_second_derivatives_of_the_network_alone_can_be_taken():
    net, x = nn.Sequential(nn.Linear(4, 6), nn.Softplus(), nn.Linear(6, 1)).double(), drawn(0, 8, 4).requires_grad_()
    plain = copy.deepcopy(net)
    Shade(net, x[:2], strength=0.5)
    found = []
    for each in (plain, net):
        (slope,) = torch.autograd.grad(each(x).sum(), x, create_graph=True)
        found.append(torch.autograd.grad(slope.square().sum(), each[0].weight)[0])
    assert torch.equal(*found)


def test_its_strength_can_be_changed():
    net, x = mlp(), drawn(0, 8, 4)
    shade = Shade(net, x[:2], strength=1.0)
    other = copy.deepcopy(net)
    again = Shade.__new__(Shade)
    again.model, again._strength = other, 1.0
    again.strength = 0.25
    net(x)
    other(x)
    assert shade.loss().item() == pytest.approx(4 * again.loss().item())
    with pytest.raises(ValueError, match="strength"):
        shade.strength = -1.0


def test_passes_without_gradients_do_not_take_a_term_away():
    net, x = mlp(), drawn(0, 8, 4)
    shade = Shade(net, x[:2], strength=1.0)
    net(x)
    with torch.no_grad():
        net(x)
    net.eval()(x)
    net.train()
    loss = shade.loss()
    assert loss.requires_grad
    loss.backward()


def test_a_copy_is_made_though_a_loss_was_not_asked_for():
    net, x = mlp(), drawn(0, 8, 4)
    Shade(net, x[:2], strength=1.0)
    net(x)
    copy.deepcopy(net)
    pickle.dumps(net)


class Recurrent(nn.Module):
    """One ReLU, called once a step."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.act, self.aside, self.extra = nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 3), nn.ReLU()

    def forward(self, x):
        state = x.new_zeros(len(x), 4)
        for step in range(x.shape[1]):
            state = self.act(self.cell(torch.cat([x[:, step], state], 1)))
        return state + self.extra(self.aside(state)).sum() if self.training else state


def test_calls_are_counted_as_in_training_and_more_of_them_are_told():
    net = Recurrent()
    shade = Shade(net, torch.randn(2, 3, 4), strength=1.0)
    assert {name: len(sites) for name, sites in shade.sites.items()} == {"act": 3, "extra": 1}
    net(torch.randn(5, 3, 4))
    assert shade.loss().isfinite()
    with pytest.raises(ValueError, match="more often"):
        net(torch.randn(5, 4, 4))
    net(torch.randn(5, 3, 4))  # and it goes on


class Both(nn.Module):
    """Layers with units on the last axis and on the second."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.linear, self.act = nn.Conv1d(8, 8, 1), nn.Linear(8, 8), nn.ReLU()

    def forward(self, x):
        first = self.conv(x)
        self.linear(first.transpose(1, 2))
        return self.act(first)


def test_where_units_could_be_on_either_axis_another_example_is_asked_for():
    assert Shade(Both(), torch.randn(2, 8, 5), strength=1.0).sites["act"][0].axis == 1
    with pytest.raises(ValueError, match="differs from its channels"):
        Shade(Both(), torch.randn(2, 8, 8), strength=1.0)
