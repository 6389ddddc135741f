"""Any network becomes a scaled one, keeps its function or starts anew, and comes back plain."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, leaky_relu, prelu
from torch.nn.utils import parametrizations

from structlearn import alrao
from structlearn.models import ACTIVATIONS, MODELS, activations, build
from structlearn.scala import SCALED, Scaled, ScaledLinear, adopt, fold, scaling, unscaled
from structlearn.units import units

SHAPES = {"mlp": (3, 4, 5), "lstm": (6,), "cvnn": (3, 16, 16), "lenet": (1, 12, 12)}
SEQUENCE = pytest.mark.parametrize("sequence", ["uniform", "sqrt_log", "inverse"])


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def small(name: str, **options: Any) -> nn.Module:
    shape = SHAPES.get(name, (3, 32, 32) if name.startswith("vgg") else (3, 8, 8))
    return build(name, shape, 5, width=0.125, **options).eval()


def batch(name: str) -> Tensor:
    shape = SHAPES.get(name, (3, 32, 32) if name.startswith("vgg") else (3, 8, 8))
    return torch.randint(0, 5, (4, *shape)) if name == "lstm" else torch.randn(4, *shape)


def scaled(model: nn.Module) -> dict[str, Scaled]:
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, Scaled)}


def variances(model: nn.Module) -> list[float]:
    return [layer.s2 for layer in scaled(model).values()]


def plain_kinds(model: nn.Module) -> list[type]:
    return [type(layer) for layer in model.modules()]


@pytest.mark.parametrize("name", MODELS)
@SEQUENCE
def test_every_model_keeps_its_function_and_comes_back(name: str, sequence: str) -> None:
    model, x = small(name), batch(name)
    before, kinds = model(x), plain_kinds(model)
    parameters = dict(model.named_parameters())
    assert adopt(model, scaling=sequence, keep_function=True) is model
    assert {type(layer) for layer in scaled(model).values()} <= set(SCALED.values())
    assert not any(type(layer) in SCALED for layer in model.modules())
    for key, parameter in model.named_parameters():
        assert parameter is parameters[key]
    torch.testing.assert_close(model(x), before, rtol=1e-3, atol=1e-5)
    plain = unscaled(model)
    assert plain_kinds(plain) == kinds
    assert set(plain.state_dict()) == {key for key in model.state_dict() if not key.endswith(".scale")}
    torch.testing.assert_close(plain(x), model(x), rtol=1e-3, atol=1e-5)
    assert scaled(model)  # as it was


@pytest.mark.parametrize("name", MODELS)
def test_every_model_starts_anew_by_the_rule(name: str) -> None:
    model = adopt(small(name))
    layers = scaled(model)
    convolved = [name for name, layer in layers.items() if layer.weight.dim() > 2]
    for key, layer in layers.items():
        assert layer.weight.square().mean().item() == pytest.approx(1, abs=6 / layer.weight.numel() ** 0.5)
        assert layer.bias is None or not layer.bias.any()
        # Every filter's own inputs meet the rule.
        area = layer.weight[0, 0].numel()
        sums = layer.spread(layer.scale).expand_as(layer.weight).flatten(1).square().sum(1)
        torch.testing.assert_close(sums, torch.full_like(sums, layer.s2), msg=f"{key}, {area} places")
    uniform = [key for key, layer in layers.items() if layer.scaling == "uniform"]
    first = next(iter(layers)) if name != "lstm" else None
    assert uniform == ([] if first is None else [first])
    assert layers["head"].s2 == 1
    if convolved and name != "mobilenet_v2":  # whose last convolution of a block has no activation
        assert {round(layer.s2, 6) for key, layer in layers.items() if key != "head"} == {2.0}
    assert model(batch(name)).isfinite().all()


@pytest.mark.parametrize("name", MODELS)
def test_the_table_of_units_is_that_of_the_plain_network(name: str) -> None:
    model = small(name)
    before = units(model)
    after = units(adopt(model))
    assert after.layers == before.layers
    assert set(after.index) == set(before.index)
    assert all(torch.equal(after.index[key], index) for key, index in before.index.items())


@pytest.mark.parametrize("name", ["mlp", "mobilenet_v2", "lstm"])
def test_what_is_saved_comes_back(name: str) -> None:
    model, x = adopt(small(name), scaling="inverse"), batch(name)
    other = adopt(small(name), scaling="inverse")
    assert not torch.equal(other(x), model(x))
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(x), model(x))
    assert torch.equal(copy.deepcopy(model)(x), model(x))
    assert scaled(copy.deepcopy(model)).keys() == scaled(model).keys()


def test_a_network_s_weights_depend_on_the_seed_only() -> None:
    def weights(seed: int) -> Tensor:
        torch.manual_seed(seed)
        return torch.cat([parameter.flatten() for parameter in adopt(small("lenet")).parameters()])

    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))


# --- which factors -------------------------------------------------------------------------------------------


def test_positions_of_a_flattened_map_share_their_channel_s_factor() -> None:
    model = adopt(nn.Sequential(nn.Conv2d(1, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(12, 2)), scaling="inverse")
    wanted = scaling("inverse", 3, kernel_area=4, s2=1.0).repeat_interleave(4)
    torch.testing.assert_close(model[3].scale, wanted.float())


def test_a_concatenation_s_parts_each_begin_the_sequence() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two, self.out = nn.Linear(4, 2), nn.Linear(4, 3), nn.Linear(5, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(torch.cat([self.one(x), self.two(x)], dim=1))

    model = adopt(Two(), scaling="inverse")
    torch.testing.assert_close(model.out.scale, scaling("inverse", torch.tensor([0, 1, 0, 1, 2]), s2=1.0).float())
    assert [layer.scaling for layer in scaled(model).values()] == ["uniform", "uniform", "inverse"]


def test_a_layer_that_sees_the_network_s_inputs_besides_others_is_uniform() -> None:
    class Past(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.out, self.first, self.second = nn.Linear(7, 1), nn.Linear(4, 5), nn.Linear(5, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(torch.cat([x, self.second(self.first(x).tanh())], dim=1))

    model = adopt(Past(), scaling="inverse")
    assert {key: layer.scaling for key, layer in scaled(model).items()} == {
        "out": "uniform",
        "first": "uniform",
        "second": "inverse",
    }
    assert model.first.s2 == pytest.approx(activations.gain("tanh") ** 2)


def test_after_a_recurrent_layer_or_an_embedding_nothing_is_the_first() -> None:
    for before in (nn.Embedding(5, 4), nn.Embedding(5, 4).requires_grad_(False)):
        model = adopt(nn.Sequential(before, nn.Flatten(), nn.Linear(8, 3)), scaling="inverse")
        assert model[2].scaling == "inverse"

    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm, self.out = nn.LSTM(3, 2, bidirectional=True), nn.Linear(4, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(self.lstm(x)[0])

    wanted = scaling("inverse", torch.tensor([0, 1, 0, 1]), s2=1.0).float()
    torch.testing.assert_close(adopt(Both(), scaling="inverse").out.scale, wanted)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_the_variance_is_what_the_activation_that_follows_asks_for(name: str) -> None:
    model = build("mlp", (4,), 3, widths=[5, 6], activation=name, batch_norm=True, dropout=0.1)
    assert variances(adopt(model)) == pytest.approx([activations.gain(name) ** 2] * 2 + [1])


def test_activations_that_are_functions_and_methods_count() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList([nn.Linear(3, 3) for _ in range(6)])
            self.slope = nn.Parameter(torch.tensor([0.3]))

        def forward(self, x: Tensor) -> Tensor:
            a, b, c, d, e, f = self.layers
            x = leaky_relu(a(x), 0.2)
            x = b(x).relu_() * 2
            x = gelu(c(x), approximate="tanh")
            x = torch.tanh(d(x) + x)
            return f(prelu(e(x), self.slope))

    # E[leaky^2] = (1 + slope^2) / 2; a slope that is a parameter is no number in the graph: taken as linear.
    wanted = [2 / 1.04, 2.0, activations.gain("gelu") ** 2, activations.gain("tanh") ** 2, 1.0, 1.0]
    assert variances(adopt(Model())) == pytest.approx(wanted, rel=1e-3)


def test_a_prelu_counts_with_its_mean_slope_and_an_rrelu_draws_nothing() -> None:
    steep = nn.PReLU(5)
    with torch.no_grad():
        steep.weight.copy_(torch.linspace(0, 1, 5))
    model = nn.Sequential(nn.Linear(4, 5), steep, nn.Linear(5, 5), nn.RReLU(0.5, 0.5), nn.Linear(5, 1))
    state = torch.get_rng_state()
    adopt(model, keep_function=True)
    assert torch.equal(torch.get_rng_state(), state)
    assert variances(model) == pytest.approx([2 / 1.25, 2 / 1.25, 1])


def test_the_output_layer_has_variance_one_whatever_follows_it() -> None:
    model = nn.Sequential(nn.Conv2d(2, 3, 1), nn.ReLU(), nn.Conv2d(3, 4, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1))
    assert variances(adopt(model, s2=1.5)) == [1.5, 1.0]


def test_biases_have_their_share_where_there_are_any() -> None:
    model = nn.Sequential(nn.Linear(3, 4000), nn.ReLU(), nn.Linear(4000, 5, bias=False), nn.ReLU(), nn.Linear(5, 2))
    adopt(model, tau_b2=0.5)
    assert [layer.tau_b2 for layer in scaled(model).values()] == [0.5, 0.0, 0.5]
    assert model[0].bias.var().item() == pytest.approx(0.5, rel=0.1)
    assert model[0].scale.square().sum().item() == pytest.approx(1.5)
    assert model[2].scale.square().sum().item() == pytest.approx(2.0)


class Untraceable(nn.Module):
    """The way through it depends on the values."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.act, self.norm, self.b, self.tanh, self.c = (
            nn.Linear(4, 3), nn.ReLU(), nn.BatchNorm1d(3), nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.norm(self.a(x)))
        return self.c(self.tanh(self.b(-x if x.sum() > 0 else x)))


class Functional(Untraceable):
    """Nor are its activations modules."""

    def __init__(self) -> None:
        super().__init__()
        del self.act, self.tanh

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.a(x)).relu()
        return self.c(self.b(-x if x.sum() > 0 else x).tanh())


def test_without_a_graph_layers_follow_the_order_of_registration() -> None:
    model = adopt(Untraceable())
    assert [layer.scaling for layer in scaled(model).values()] == ["uniform", "sqrt_log", "sqrt_log"]
    assert variances(model) == pytest.approx([2.0, activations.gain("tanh") ** 2, 1.0])


def test_without_a_graph_s2_says_what_activations_that_are_functions_ask_for() -> None:
    assert variances(adopt(Functional(), s2=1.5)) == [1.5, 1.5, 1.0]


def test_a_layer_alone_is_a_network() -> None:
    layer = adopt(nn.Linear(4, 3))
    assert type(layer) is ScaledLinear
    assert (layer.scaling, layer.s2) == ("uniform", 1.0)
    assert type(unscaled(layer)) is nn.Linear


# --- BatchNorm -----------------------------------------------------------------------------------------------


def norms(model: nn.Module) -> list[type]:
    return [type(layer) for layer in model.modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm)]


def test_activations_are_normalised_where_they_are_not() -> None:
    x = torch.randn(64, 3, 16, 16)
    model = adopt(build("lenet", (3, 16, 16), 5), batch_norm=True)
    assert norms(model) == [nn.BatchNorm2d] * 2 + [nn.BatchNorm1d] * 2
    inputs = {}
    for name, layer in scaled(model).items():
        assert (name == "head") == (not name.endswith(".0"))
        layer.register_forward_hook(lambda _, __, y, name=name: inputs.setdefault(name, y))
    assert model(x).shape == (64, 5)
    for name in list(inputs)[:-1]:
        y = model.get_submodule(name.removesuffix(".0"))[1](inputs[name])
        assert y.mean().item() == pytest.approx(0, abs=1e-5)
        assert y.var().item() == pytest.approx(1, abs=1e-2)


@pytest.mark.parametrize("name", [name for name in MODELS if name not in {"mlp", "cvnn", "cnn", "lenet", "alexnet"}])
def test_what_is_normalised_gets_no_more_of_it(name: str) -> None:
    model = small(name)
    before = norms(model)
    assert norms(adopt(model, batch_norm=True)) == before


def test_an_mlp_s_are_where_its_own_would_be() -> None:
    ours = adopt(build("mlp", (4,), 3, widths=[8, 7]), batch_norm=True)
    theirs = build("mlp", (4,), 3, widths=[8, 7], batch_norm=True)

    def flat(model: nn.Module) -> list[type]:
        leaves = (layer for layer in model.modules() if next(layer.children(), None) is None)
        return [layer.plain if isinstance(layer, Scaled) else type(layer) for layer in leaves]

    assert flat(ours) == flat(theirs)
    assert norms(adopt(Untraceable(), batch_norm=True)) == [nn.BatchNorm1d] * 2


# --- what is left alone or refused ---------------------------------------------------------------------------


def test_layers_that_others_read_or_that_are_not_exactly_torch_s_stay_as_they_are() -> None:
    class Mine(nn.Linear):
        pass

    encoder = nn.TransformerEncoderLayer(8, 2, dim_feedforward=16, batch_first=True)
    model = nn.Sequential(
        nn.Linear(8, 8),
        encoder,
        Mine(8, 8),
        parametrizations.weight_norm(nn.Linear(8, 8)),
        nn.MultiheadAttention(8, 2),
        nn.ConvTranspose2d(8, 8, 1),
    )
    adopt(model)
    assert list(scaled(model)) == ["0"]
    with torch.no_grad():
        x = torch.randn(2, 3, 8)
        plain = unscaled(model[:2]).eval()
        torch.testing.assert_close(plain(x), model[:2].eval()(x))


def test_a_layer_used_twice_is_scaled_once() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.again, self.out = nn.Linear(4, 4), None, nn.Linear(4, 2)
            self.again = self.layer

        def forward(self, x: Tensor) -> Tensor:
            return self.out(self.again(self.layer(x).relu()).relu())

    model, x = Twice(), torch.randn(5, 4)
    before = model(x)
    adopt(model, keep_function=True)
    torch.testing.assert_close(model(x), before)
    assert model.again is model.layer
    assert model.layer.scaling == "uniform"
    torch.testing.assert_close(unscaled(model)(x), before)


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        (lambda: nn.Sequential(nn.ReLU()), {}, "no layer that can be scaled"),
        (lambda: nn.TransformerEncoderLayer(4, 2), {}, "no layer that can be scaled"),
        (lambda: adopt(nn.Sequential(nn.Linear(3, 2))), {}, "scaled already do not count"),
        (lambda: small("mlp"), {"batch_norm": True, "keep_function": True}, "not both"),
        (lambda: small("mlp"), {"scaling": "invers"}, "did you mean 'inverse'"),
        (lambda: small("mlp"), {"tau_b2": 1.0}, "must be below it, got s2=1.0, tau_b2=1.0"),
        (lambda: small("mlp"), {"s2": 0.0}, "s2 must be above 0"),
        (Functional, {}, "not known which activation follows the layer a: .* give s2"),
    ],
)
def test_what_cannot_be_scaled_is_refused_and_left_as_it_is(model: Any, options: dict[str, Any], message: str) -> None:
    network = model()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    kinds = plain_kinds(network)
    with pytest.raises(ValueError, match=message):
        adopt(network, **options)
    assert plain_kinds(network) == kinds
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


def test_shared_weights_are_refused() -> None:
    model = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 5, bias=False))
    model[1].weight = model[0].weight
    with pytest.raises(ValueError, match="layer 1 shares its weight"):
        adopt(model)


# --- with the rest -------------------------------------------------------------------------------------------


def test_alrao_takes_a_scaled_network() -> None:
    model, x = adopt(small("lenet")), torch.randn(6, 1, 12, 12)
    before = model(x)
    net, optimizer = alrao.adopt(model, heads=3, same=True)
    net.eval()
    torch.testing.assert_close(net(x), before.log_softmax(-1))
    assert "head" not in {name.rpartition(".")[2] for name in scaled(net)}
    net.train()
    net.loss(net(x), torch.randint(5, (6,))).backward()
    optimizer.step()
    assert torch.isfinite(net.eval()(x)).all()
    torch.testing.assert_close(unscaled(net.best())(x), net.best()(x))
    # The other way round: heads have a rate each, and are left as they are.
    other = adopt(alrao.Alrao(small("lenet"), heads=3))
    assert list(scaled(other)) == [f"model.{name}" for name in scaled(adopt(small("lenet"))) if name != "head"]


def test_folding_keeps_the_parameters_themselves() -> None:
    layer = ScaledLinear(4, 3)
    weight, effective = layer.weight, layer.effective().detach()
    assert fold(layer) is layer
    assert type(layer) is nn.Linear
    assert layer.weight is weight
    assert torch.equal(layer.weight, effective)
    assert set(layer.state_dict()) == {"weight", "bias"}
    assert "scaling" not in repr(layer)
