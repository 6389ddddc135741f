"""REVE: its loss by numpy from the source, its projection, its state, and every kind of output layer."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit, log_softmax
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from structlearn import alrao
from structlearn.models import build
from structlearn.regularizers import Reve
from structlearn.regularizers.mixture import FLOOR
from structlearn.regularizers.projection import Projection, row_space
from structlearn.scala import ScaledLinear
from structlearn.structure import Plan, Structure


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def network(inputs: int = 5, hidden: int = 7, classes: int = 3) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, hidden), nn.Tanh(), nn.Linear(hidden, classes)).double()


def weighted_log(z: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """log of the share times the normal density of one mode, [samples, D], by the M-step (B 5.3.2)."""
    mean = (weight * z).sum(0) / weight.sum(0)
    variance = np.maximum((weight * (z - mean) ** 2).sum(0) / weight.sum(0), FLOOR)
    density = -0.5 * np.log(2 * np.pi * variance) - (z - mean) ** 2 / (2 * variance)
    return np.asarray(np.log(weight.mean(0)) + density)


def log_q(z: np.ndarray, mixture: bool = True) -> np.ndarray:
    """[samples]."""
    if not mixture:
        return weighted_log(z, np.ones_like(z)).sum(1)
    return np.logaddexp(weighted_log(z, expit(z)), weighted_log(z, expit(-z))).sum(1)


def reference(
    y: Tensor, weight: Tensor, bias: Tensor, targets: Tensor, noise: Tensor, *, on: str = "z", mixture: bool = True
) -> float:
    """B eq. 5.13, with the SVD of the source; noise [S, N, rank], or [S, N, D] on Y."""
    w, b, h = weight.detach().numpy(), bias.detach().numpy(), y.detach().numpy()
    eps = noise.numpy()
    if on == "z":
        basis = row_space(weight).numpy()  # the signs of V's columns are no more than the SVD's choice
        z = h @ basis @ basis.T + eps @ basis.T
    else:
        z = h + eps
    z = z.reshape(-1, z.shape[-1])
    scores = log_softmax(z @ w.T + b, axis=1)
    right = scores[np.arange(len(z)), np.tile(targets.numpy(), len(eps))]
    return float(-(right + log_q(z, mixture)).mean())


def drawn(seed: int, *shape: int, variance: float) -> Tensor:
    torch.manual_seed(seed)
    return torch.randn(*shape, dtype=torch.float64) * variance**0.5


def step(model: nn.Module, reve: Reve, x: Tensor, targets: Tensor, seed: int | None = None) -> Tensor:
    model(x)
    if seed is not None:
        torch.manual_seed(seed)
    loss = reve.loss(targets)
    assert loss is not None
    return loss


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 10_000), st.integers(2, 6), st.integers(2, 9), st.integers(2, 5), st.integers(1, 5),
    st.sampled_from(["z", "y"]), st.booleans(), st.floats(0.01, 1.0),
)  # fmt: skip
def test_the_loss_is_the_sources(
    seed: int, batch: int, hidden: int, classes: int, draws: int, on: str, mixture: bool, variance: float
) -> None:
    torch.manual_seed(seed)
    model = network(4, hidden, classes)
    x, targets = torch.randn(batch, 4, dtype=torch.float64), torch.randint(classes, (batch,))
    reve = Reve(model, strength=0.5, variance=variance, samples=draws, on=on, mixture=mixture)
    found = step(model, reve, x, targets, seed)
    noise = drawn(seed, draws, batch, min(hidden, classes) if on == "z" else hidden, variance=variance)
    y, layer = model[:2](x), model[2]
    assert isinstance(layer, nn.Linear)
    wanted = reference(y, layer.weight, layer.bias, targets, noise, on=on, mixture=mixture)
    assert found.item() == pytest.approx(0.5 * wanted, rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("on", ["z", "y"])
def test_the_gradient_is_that_of_the_formula_with_v_and_q_constant(on: str) -> None:
    model = network()
    x, targets = torch.randn(6, 5, dtype=torch.float64), torch.randint(3, (6,))
    reve = Reve(model, strength=1.0, samples=4, on=on)
    parameters = list(model.parameters())
    found = torch.autograd.grad(step(model, reve, x, targets, 1), parameters)
    noise, layer = drawn(1, 4, 6, 3 if on == "z" else 7, variance=1e-2), model[2]
    assert isinstance(layer, nn.Linear)
    z = model[:2](x) + noise if on == "y" else model[:2](x) @ row_space(layer.weight) @ row_space(layer.weight).mT
    z = z if on == "y" else z + noise @ row_space(layer.weight).mT
    z = z.flatten(0, 1)
    fixed = z.detach()
    modes = []
    for weight in (fixed.sigmoid(), (-fixed).sigmoid()):
        mean = (weight * fixed).sum(0) / weight.sum(0)
        deviation = ((weight * (fixed - mean).square()).sum(0) / weight.sum(0)).sqrt()
        modes.append(weight.mean(0).log() + torch.distributions.Normal(mean, deviation).log_prob(z))
    naive = cross_entropy(layer(z), targets.repeat(4)) - torch.stack(modes).logsumexp(0).sum(-1).mean()
    for one, other in zip(found, torch.autograd.grad(naive, parameters), strict=True):
        torch.testing.assert_close(one, other)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 8), st.integers(1, 8), st.integers(0, 8))
def test_the_projection_keeps_what_the_output_layer_sees_and_nothing_else(
    seed: int, classes: int, features: int, rank: int
) -> None:
    torch.manual_seed(seed)
    rank = min(rank, classes, features)
    left, right = torch.randn(classes, rank, dtype=torch.float64), torch.randn(rank, features, dtype=torch.float64)
    weight = left @ right
    basis, y = row_space(weight), torch.randn(20, features, dtype=torch.float64)
    assert basis.shape == (features, min(classes, features))
    z = y @ basis @ basis.mT
    torch.testing.assert_close(z @ weight.mT, y @ weight.mT)  # W z = W y
    torch.testing.assert_close(z @ basis @ basis.mT, z)  # a projection
    projector = basis @ basis.mT
    assert projector.trace().item() == pytest.approx(rank, abs=1e-6)  # of the smallest rank that can do this
    wanted = torch.linalg.pinv(weight) @ weight if rank else torch.zeros_like(projector)
    torch.testing.assert_close(projector, wanted, rtol=1e-6, atol=1e-6)


def test_features_in_the_kernel_are_left_alone() -> None:
    model = nn.Sequential(nn.Identity(), nn.Linear(6, 2)).double()
    x, layer = torch.randn(8, 6, dtype=torch.float64, requires_grad=True), model[1]
    assert isinstance(layer, nn.Linear)
    (slope,) = torch.autograd.grad(step(model, Reve(model), x, torch.randint(2, (8,))), x)
    basis = row_space(layer.weight)
    torch.testing.assert_close(slope @ basis @ basis.mT, slope)
    assert slope.abs().max() > 0


def test_v_is_made_anew_every_so_many_batches() -> None:
    model = network()
    reve = Reve(model, refresh=3)
    layer = model[2]
    assert isinstance(layer, nn.Linear)
    x, targets = torch.randn(4, 5, dtype=torch.float64), torch.randint(3, (4,))
    served: list[Tensor] = []
    for number in range(7):
        step(model, reve, x, targets)
        basis = reve.part.projection.basis
        assert basis is not None
        if number % 3 == 0:
            torch.testing.assert_close(basis, row_space(layer.weight), rtol=0, atol=0)
        else:
            assert basis is served[-1]
            assert not torch.allclose(basis @ basis.mT, row_space(layer.weight) @ row_space(layer.weight).mT)
        served.append(basis)
        with torch.no_grad():
            layer.weight.add_(torch.randn_like(layer.weight))


def train(model: nn.Module, reve: Reve, steps: range) -> list[float]:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    losses = []
    for number in steps:
        torch.manual_seed(number)
        x, targets = torch.randn(6, 5), torch.randint(3, (6,))
        loss = cross_entropy(model(x), targets) + (reve.loss(targets) or 0)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("stop", [1, 2, 4, 5])
def test_a_resumed_run_is_the_uninterrupted_one(stop: int) -> None:
    model = network().float()
    other = copy.deepcopy(model)
    whole = train(model, Reve(model, strength=0.1, refresh=4), range(9))
    first = train(other, Reve(other, strength=0.1, refresh=4), range(stop))
    fresh = network().float()
    reve = Reve(fresh, strength=0.1, refresh=4)
    fresh.load_state_dict(pickle.loads(pickle.dumps(other.state_dict())))
    assert first + train(fresh, reve, range(stop, 9)) == whole
    for one, two in zip(model.parameters(), fresh.parameters(), strict=True):
        assert torch.equal(one, two)


def test_v_is_saved_but_is_no_buffer_and_any_size_loads() -> None:
    model, other = network(hidden=7), network(hidden=7)
    reve, small = Reve(model, refresh=5), Reve(other, refresh=5)
    assert not list(reve.part.buffers())
    step(model, reve, torch.randn(4, 5, dtype=torch.float64), torch.randint(3, (4,)))
    state = model.state_dict()
    assert all(isinstance(value, Tensor) for value in state.values())
    other.load_state_dict(state)
    one, two = reve.part.projection, small.part.projection
    assert one.basis is not None
    assert two.basis is not None
    assert torch.equal(one.basis, two.basis)
    assert two.age == one.age == 1
    wider = Projection(2)
    wider.set_extra_state(one.get_extra_state())
    assert wider(torch.randn(3, 9, dtype=torch.float64)).shape == (9, 3)  # does not fit: made anew
    empty = Projection(2)
    two.set_extra_state(empty.get_extra_state())
    assert two.basis is None


@pytest.mark.parametrize("refresh", [1, 10])
def test_units_can_be_cut(refresh: int) -> None:
    model = network(hidden=8).float()
    plain = copy.deepcopy(model)
    x, targets = torch.randn(6, 5), torch.randint(3, (6,))
    reve = Reve(model, refresh=refresh)
    step(model, reve, x, targets)
    structure, without = Structure(model, x), Structure(plain, x)
    assert structure.fixed == without.fixed
    plan = Plan({"0": (1, 2, 5)})
    structure.apply(plan)
    without.apply(plan)
    reve.restructured()
    step(model, reve, x, targets)
    basis, layer = reve.part.projection.basis, model[2]
    assert isinstance(layer, nn.Linear)
    assert basis is not None
    torch.testing.assert_close(basis, row_space(layer.weight))
    torch.testing.assert_close(model(x), plain(x))


def test_units_that_are_permuted_have_another_v() -> None:
    model = network(hidden=8)
    reve, layer = Reve(model, refresh=100), model[2]
    assert isinstance(layer, nn.Linear)
    x, targets = torch.randn(6, 5, dtype=torch.float64), torch.randint(3, (6,))
    step(model, reve, x, targets)
    with torch.no_grad():
        layer.weight.copy_(layer.weight.flip(1))
    reve.restructured()
    step(model, reve, x, targets)
    basis = reve.part.projection.basis
    assert basis is not None
    torch.testing.assert_close(basis, row_space(layer.weight))


def test_evaluation_is_left_alone_and_copies_work() -> None:
    model = network()
    x, targets = torch.randn(4, 5, dtype=torch.float64), torch.randint(3, (4,))
    answer = model(x)
    reve = Reve(model)
    assert torch.equal(model(x), answer)  # training, too: the network's own answer has no noise
    twin = copy.deepcopy(model)  # while features of the last batch are held
    pickle.loads(pickle.dumps(model))
    assert reve.loss(targets) is not None
    assert reve.loss(targets) is None  # asked once
    twin(x)
    assert reve.loss(targets) is None  # the copy's batch is not ours
    model.eval()
    model(x)
    assert reve.loss(targets) is None
    reve.remove()
    model.train()
    model(x)
    assert list(model.state_dict()) == list(network().state_dict())
    assert not model[2]._forward_pre_hooks


class Fully(nn.Module):
    """A convolution for scores of places, pooled: WELDON's shape (B 5.4.3)."""

    def __init__(self, pool: bool = True) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(2, 6, 3, padding=1), nn.Tanh())
        self.head = nn.Conv2d(6, 3, 1)
        if pool:
            self.pool = nn.Sequential(nn.AdaptiveMaxPool2d(1), nn.Flatten())
        self.mean = not pool

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.head(self.features(x))
        return scores.mean((2, 3)) if self.mean else self.pool(scores)


@pytest.mark.parametrize("pool", [True, False])
def test_a_convolution_has_its_places_as_samples_and_pools_its_scores(pool: bool) -> None:
    model = Fully(pool).double()
    reve = Reve(model, strength=1.0, samples=3, after=None if pool else lambda scores: scores.mean((2, 3)))
    x, targets = torch.randn(4, 2, 3, 5, dtype=torch.float64), torch.randint(3, (4,))
    found = step(model, reve, x, targets, 2)
    weight = model.head.weight.detach().flatten(1)
    basis = row_space(weight)
    maps = model.features(x).detach().movedim(1, -1)  # batch, height, width, 6
    z = maps @ basis @ basis.mT + drawn(2, 3, 4 * 15, 3, variance=1e-2).view(3, 4, 3, 5, 3) @ basis.mT
    scores = z @ weight.mT + model.head.bias.detach()
    pooled = scores.amax((2, 3)) if pool else scores.mean((2, 3))
    right = log_softmax(pooled.numpy(), axis=-1)[:, np.arange(4), targets.numpy()]
    wanted = -right.mean() - log_q(z.reshape(-1, 6).numpy()).mean()
    assert found.item() == pytest.approx(wanted, rel=1e-6)


def test_a_convolution_without_pooling_is_asked_about() -> None:
    with pytest.raises(ValueError, match="after="):
        Reve(Fully(pool=False))


def test_a_sequence_has_its_places_as_samples_with_their_own_targets() -> None:
    model = network()
    x, targets = torch.randn(4, 6, 5, dtype=torch.float64), torch.randint(3, (4, 6))
    reve, layer = Reve(model, strength=1.0, samples=2), model[2]
    assert isinstance(layer, nn.Linear)
    found = step(model, reve, x, targets, 3)
    noise = drawn(3, 2, 24, 3, variance=1e-2)
    wanted = reference(model[:2](x).flatten(0, 1), layer.weight, layer.bias, targets.flatten(), noise)
    assert found.item() == pytest.approx(wanted, rel=1e-6)
    model(x)
    with pytest.raises(ValueError, match="after="):
        reve.loss(targets[:, 0])
    last = network()
    only = Reve(last, after=lambda scores: scores[:, -1])
    assert step(last, only, x, targets[:, -1]).isfinite()


def test_a_scaled_layer_is_seen_as_it_acts() -> None:
    plain, scaled = network(), network()
    layer = ScaledLinear(7, 3).double()
    scaled[0], scaled[2] = plain[0], layer
    head = plain[2]
    assert isinstance(head, nn.Linear)
    with torch.no_grad():
        head.weight.copy_(layer.effective())
        head.bias.copy_(layer.bias)
    x, targets = torch.randn(6, 5, dtype=torch.float64), torch.randint(3, (6,))
    one, two = Reve(plain), Reve(scaled)
    torch.testing.assert_close(step(plain, one, x, targets, 1), step(scaled, two, x, targets, 1))


def test_alraos_heads_are_one_stack_and_predict_as_a_mixture() -> None:
    model = alrao.Alrao(network(hidden=9), heads=2)
    with torch.no_grad():
        model.switch.logw[0, 1] -= 1.5  # the heads are not trusted alike
    reve = Reve(model, strength=1.0, samples=3)
    x, targets = torch.randn(5, 5, dtype=torch.float64), torch.randint(3, (5,))
    before = model.evidence.clone(), model.switch.posterior().clone()
    found = step(model, reve, x, targets, 4)
    assert torch.equal(model.evidence, before[0])
    assert torch.equal(model.switch.posterior(), before[1])
    basis = reve.part.projection.basis
    heads = model.heads
    assert basis is not None
    assert heads.bias is not None
    matrix = heads.weight.detach().flatten(0, 1)
    y = model.model[:2](x).detach()  # type: ignore[index]
    torch.testing.assert_close(y @ basis @ basis.mT @ matrix.mT, y @ matrix.mT)
    z = (y @ basis @ basis.mT + drawn(4, 3, 5, 6, variance=1e-2) @ basis.mT).flatten(0, 1)
    scores = torch.einsum("nd,kcd->knc", z, heads.weight.detach()) + heads.bias.detach()[:, None]
    each = scores.log_softmax(-1)[:, torch.arange(15), targets.repeat(3)]
    mixed = (each + model.switch.posterior()[:, None]).logsumexp(0)
    wanted = -(mixed.numpy() + log_q(z.numpy())).mean()
    assert found.item() == pytest.approx(wanted, rel=1e-6)
    # Each head learns from its own loss, whatever the switch thinks of it.
    (slope,) = torch.autograd.grad(found, heads.weight)
    own = heads.weight.detach().clone().requires_grad_()
    losses = [cross_entropy(z @ own[k].mT + heads.bias[k].detach(), targets.repeat(3)) for k in range(2)]
    (wanted_slope,) = torch.autograd.grad(torch.stack(losses).sum(), own)
    torch.testing.assert_close(slope, wanted_slope)


def test_a_head_that_is_lost_hides_none_of_what_the_others_see() -> None:
    model = alrao.Alrao(network(hidden=12), heads=3)
    reve = Reve(model)
    with torch.no_grad():
        model.heads.weight[1] = torch.inf
        model.heads.weight[2] *= 1e30
    x, targets = torch.randn(5, 5, dtype=torch.float64), torch.randint(3, (5,))
    loss = step(model, reve, x, targets)
    basis, first = reve.part.projection.basis, model.heads.weight[0].detach()
    assert basis is not None
    torch.testing.assert_close(first @ basis @ basis.mT, first)
    (slope,) = torch.autograd.grad(loss, model.model[0].weight)  # type: ignore[index]
    assert loss.isfinite()
    assert slope.isfinite().all()


def test_alraos_convolutions() -> None:
    model = alrao.Alrao(Fully().double(), heads=2)
    reve = Reve(model)
    loss = step(model, reve, torch.randn(4, 2, 3, 3, dtype=torch.float64), torch.randint(3, (4,)))
    loss.backward()  # type: ignore[no-untyped-call]
    assert all(each.grad is not None and each.grad.isfinite().all() for each in model.parameters())


@pytest.mark.parametrize("name", ["mlp", "alexnet", "resnet18", "densenet121"])
def test_the_networks_here(name: str) -> None:
    model = build(name, (3, 16, 16), 4, width=0.125)
    reve = Reve(model, strength=0.1, refresh=2)
    assert reve.output.name == "head"
    x, targets = torch.randn(4, 3, 16, 16), torch.randint(4, (4,))
    step(model, reve, x, targets).backward()  # type: ignore[no-untyped-call]
    assert model.head.weight.grad is not None
    Structure(model, x)


def test_half_precision_is_worked_in_single() -> None:
    model = network().bfloat16()
    reve = Reve(model, strength=1.0)
    loss = step(model, reve, torch.randn(4, 5).bfloat16(), torch.randint(3, (4,)))
    loss.backward()  # type: ignore[no-untyped-call]
    assert loss.dtype == torch.float32
    model, x = network().float(), torch.randn(4, 5)
    reve, targets = Reve(model, strength=1.0), torch.randint(3, (4,))
    with torch.autocast("cpu", torch.bfloat16):
        assert step(model, reve, x, targets).dtype == torch.float32
    assert reve.part.projection.basis is not None
    assert reve.part.projection.basis.dtype == torch.float32


def test_the_term_falls_when_it_is_trained() -> None:
    model = network(hidden=20)
    reve = Reve(model, strength=1.0)
    x, targets = torch.randn(40, 5, dtype=torch.float64), torch.randint(3, (40,))
    optimizer, losses = torch.optim.Adam(model.parameters(), lr=0.01), []
    for _ in range(60):
        loss = step(model, reve, x, targets)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 1


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"strength": -1.0}, "strength"),
        ({"variance": 0.0}, "variance"),
        ({"samples": 0}, "samples"),
        ({"refresh": 0}, "refresh"),
        ({"on": "x"}, "use one of: z, y"),
        ({"head": "nowhere"}, "head="),
        ({"head": "1"}, "Tanh"),
    ],
)
def test_what_is_out_of_range_is_refused(options: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        Reve(network(), **options)


def test_what_has_no_classes_is_refused() -> None:
    with pytest.raises(ValueError, match="regression"):
        Reve(alrao.Alrao(network(), task="regression", heads=2))
    model = network()
    reve = Reve(model)
    model(torch.randn(4, 5, dtype=torch.float64))
    with pytest.raises(ValueError, match="float"):
        reve.loss(torch.randn(4, 3))
    with pytest.raises(ValueError, match="already"):
        Reve(model)
    with pytest.raises(ValueError, match="none was found"):
        Reve(nn.Sequential(nn.ReLU()))
