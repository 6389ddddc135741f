"""What every model does: shapes, gradients, width, seeds, tracing, options."""

from __future__ import annotations

import subprocess
import sys
from inspect import signature
from typing import TYPE_CHECKING

import pytest
import torch
from torch import Tensor, fx, nn

from structlearn.models import ACTIVATIONS, MODELS, Net, activations, build

if TYPE_CHECKING:
    from collections.abc import Callable

    OnMeta = Callable[..., Net]

IMAGENET = (3, 224, 224)

# The smallest input each model is happy with, so that the tests stay fast.
SMALL = {
    "mlp": (3, 4, 5),
    "cvnn": (3, 16, 17),
    "cnn": (3, 8, 9),
    "lenet": (1, 12, 13),
    "alexnet": (3, 8, 9),
    "vgg11": (3, 32, 33),
    "vgg16": (3, 32, 33),
    "vgg19": (3, 32, 33),
    "googlenet": (3, 8, 9),
    "mobilenet_v1": (3, 8, 9),
    "mobilenet_v2": (3, 8, 9),
    "resnet18": (3, 8, 9),
    "resnet50": (3, 8, 9),
    "wideresnet28_10": (3, 4, 5),
    "densenet121": (3, 8, 9),
    "lstm": (6,),
}
TWO_FORMS = [
    "alexnet",
    "vgg11",
    "vgg16",
    "vgg19",
    "googlenet",
    "mobilenet_v1",
    "mobilenet_v2",
    "resnet18",
    "resnet50",
    "densenet121",
]


def batch(name: str, shape: tuple[int, ...] | None = None, examples: int = 4) -> Tensor:
    shape = shape or SMALL[name]
    if name == "lstm":
        return torch.randint(0, 5, (examples, *shape))
    return torch.randn(examples, *shape)


def layers(model: nn.Module, kind: type | tuple[type, ...]) -> list[nn.Module]:
    return [layer for layer in model.modules() if isinstance(layer, kind)]


@pytest.fixture
def maxmin(monkeypatch: pytest.MonkeyPatch) -> str:
    """An activation that doubles the channels, as a later one (MaxMin) will."""

    class MaxMin(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.cat([x.relu(), (-x).relu()], dim=1)

    table = {**ACTIVATIONS, "maxmin": activations.Activation(MaxMin, growth=2)}
    monkeypatch.setattr(activations, "ACTIVATIONS", table)
    return "maxmin"


def test_every_model_is_in_the_tables_of_this_file() -> None:
    assert len(MODELS) == 16
    assert set(SMALL) == set(MODELS)
    with_stem = {name for name, builder in MODELS.items() if "stem" in signature(builder).parameters}
    assert with_stem == set(TWO_FORMS)


@pytest.mark.parametrize("name", MODELS)
def test_forward_gives_scores_for_each_example(name: str) -> None:
    model = build(name, SMALL[name], 5, width=0.25).eval()
    x = batch(name)
    y = model(x)
    assert y.shape == ((4, 6, 5) if name == "lstm" else (4, 5))
    assert y.isfinite().all()
    # No constant function, and no mixing of examples.
    assert not torch.allclose(y[0], y[1], rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(model(x[:2]), y[:2], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", TWO_FORMS)
def test_imagenet_form_forward(name: str, on_meta: OnMeta) -> None:
    model = on_meta(name, IMAGENET, 7)
    assert model(torch.empty(2, *IMAGENET, device="meta")).shape == (2, 7)


@pytest.mark.parametrize("name", MODELS)
def test_gradients_reach_every_parameter(name: str) -> None:
    model = build(name, SMALL[name], 5, width=0.25, dropout=0.0)
    # Random scores to match: a plain sum would send no gradient through the last BatchNorm.
    y = model(batch(name, examples=8))
    (y * torch.randn_like(y)).sum().backward()
    # A bias right before a BatchNorm has no effect; its gradient is rounding or zero.
    convolutions = {n for n, m in model.named_modules() if isinstance(m, nn.Conv2d)}
    without_effect = {f"{n}.bias" for n in convolutions if layers(model, nn.BatchNorm2d)}
    gradients = {n: p.grad for n, p in model.named_parameters()}
    assert all(g is not None and g.isfinite().all() for g in gradients.values())
    zero = {n for n, g in gradients.items() if not g.any()} - without_effect
    assert zero == set()


@pytest.mark.parametrize("name", MODELS)
def test_width_scales_every_hidden_size(name: str, on_meta: OnMeta) -> None:
    one, three = (on_meta(name, SMALL[name], 5, width=w) for w in (1, 3))
    kinds = (nn.Conv2d, nn.Linear, nn.LSTM, nn.Embedding)

    def sizes(model: Net) -> list[int]:
        units = ("out_channels", "out_features", "hidden_size", "embedding_dim")
        return [next(getattr(m, u) for u in units if hasattr(m, u)) for m in layers(model, kinds)]

    *hidden, last = sizes(three)
    assert len(hidden) >= 2
    assert hidden == [3 * n for n in sizes(one)[:-1]]
    assert last == 5
    thin = on_meta(name, SMALL[name], 5, width=1e-6)
    # DenseNet's sizes follow from a growth rate of 1, and MobileNetV2 widens 1 to 6.
    assert max(sizes(thin)[:-1]) <= (16 if name == "densenet121" else 6)


def test_width_rounds_half_up() -> None:
    first = build("mlp", (4,), 3, widths=[5, 10], width=0.5).features[1]
    assert first.out_features == 3  # 2.5, which Python's round would take to 2


@pytest.mark.parametrize("name", MODELS)
def test_weights_depend_on_the_seed_only(name: str) -> None:
    def weights(seed: int) -> Tensor:
        torch.manual_seed(seed)
        return torch.cat([p.flatten() for p in build(name, SMALL[name], 5, width=0.25).parameters()])

    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))


@pytest.mark.parametrize("name", MODELS)
def test_fx_traces_the_model_and_the_graph_computes_the_same(name: str) -> None:
    model = build(name, SMALL[name], 5, width=0.25).eval()
    traced = fx.symbolic_trace(model)
    called = {node.target for node in traced.graph.nodes if node.op == "call_module"}
    own = {n for n, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear | nn.LSTM)}
    assert own
    assert own <= called
    x = batch(name)
    assert torch.equal(traced(x), model(x))


@pytest.mark.parametrize("name", MODELS)
def test_the_last_linear_layer_is_the_head(name: str) -> None:
    model = build(name, SMALL[name], 5, width=0.25).eval()
    x = batch(name)
    assert isinstance(model.head, nn.Linear)
    assert torch.equal(model.head(model.features(x)), model(x))


@pytest.mark.parametrize("name", [n for n in MODELS if n != "lstm"])
def test_channel_doubling_activation_fits_every_model(name: str, maxmin: str) -> None:
    model = build(name, SMALL[name], 5, width=0.25, activation=maxmin)
    plain = build(name, SMALL[name], 5, width=0.25)
    assert model(batch(name)).shape == (4, 5)
    assert sum(p.numel() for p in model.parameters()) > sum(p.numel() for p in plain.parameters())


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_gain_keeps_the_second_moment(name: str) -> None:
    """Pre-activations of variance 1 in one layer give variance 1 in the next."""
    model = build("mlp", (2000,), 3, widths=[2000, 2000], activation=name)
    first, second = layers(model.features, nn.Linear)
    # The input is not activated: undo the gain in the first layer, to start from variance 1.
    z = first(torch.randn(64, 2000)) / activations.gain(name)
    y = second(activations.activation_layer(name)(z))
    assert y.square().mean().item() == pytest.approx(1, rel=0.1)


@pytest.mark.parametrize("name", ["vgg16", "mobilenet_v1", "alexnet"])
def test_weights_start_with_he_s_deviation_and_biases_at_zero(name: str) -> None:
    model = build(name, (3, 32, 32), 5)
    first, *_, last = layers(model.features, (nn.Conv2d, nn.Linear))
    assert first.weight.std().item() == pytest.approx((2 / (3 * 9)) ** 0.5, rel=0.1)
    assert last.weight.std().item() == pytest.approx((2 / last.weight[0].numel()) ** 0.5, rel=0.01)
    assert not any(m.bias.any() for m in layers(model.features, nn.Conv2d) if m.bias is not None)
    # The head keeps torch's start: uniform within 1 / sqrt(fan_in).
    bound = model.head.in_features**-0.5
    assert 0.9 * bound < model.head.weight.abs().max().item() <= bound


def test_depthwise_fan_in_is_one_channel() -> None:
    depthwise = [m for m in layers(build("mobilenet_v1", (3, 8, 8), 5), nn.Conv2d) if m.groups > 1]
    assert len(depthwise) == 13
    assert depthwise[-1].weight.std().item() == pytest.approx((2 / 9) ** 0.5, rel=0.05)


def test_gain_of_relu_is_he_s() -> None:
    assert activations.gain("relu") == pytest.approx(2**0.5, rel=1e-6)
    assert activations.gain("identity") == pytest.approx(1, rel=1e-6)


def test_gain_counts_the_channels_that_come_out(maxmin: str) -> None:
    assert activations.gain(maxmin) == pytest.approx(2**0.5, rel=1e-6)


@pytest.mark.parametrize("name", [n for n in MODELS if n != "lstm"])
def test_the_activation_asked_for_is_the_only_one(name: str, on_meta: OnMeta) -> None:
    model = on_meta(name, SMALL[name], 5, activation="gelu")
    assert layers(model, nn.GELU)
    assert not layers(model, (nn.ReLU, nn.ReLU6))
    assert len(layers(model, nn.GELU)) == len(layers(on_meta(name, SMALL[name], 5), nn.ReLU))


@pytest.mark.parametrize("name", MODELS)
def test_dropout_is_there_when_asked_for(name: str, on_meta: OnMeta) -> None:
    assert layers(on_meta(name, SMALL[name], 5, dropout=0.0), nn.Dropout) == []
    drops = layers(on_meta(name, SMALL[name], 5, dropout=0.3), nn.Dropout)
    assert drops
    assert {layer.p for layer in drops} == {0.3}


@pytest.mark.parametrize("name", TWO_FORMS)
def test_auto_takes_the_imagenet_form_from_96_pixels_on(name: str, on_meta: OnMeta) -> None:
    def described(side: int, stem: str) -> str:
        return str(on_meta(name, (3, side, side + 9), 5, stem=stem))

    assert described(95, "auto") == described(95, "cifar") != described(95, "imagenet")
    assert described(96, "auto") == described(96, "imagenet") != described(96, "cifar")


def test_mlp_widths_with_and_without_the_output_layer() -> None:
    def sizes(outputs: int, *widths: int) -> list[int]:
        return [layer.out_features for layer in layers(build("mlp", (4,), outputs, widths=widths), nn.Linear)]

    assert sizes(10, 8, 7, 10) == [8, 7, 10]
    assert sizes(10, 8, 7) == [8, 7, 10]
    assert sizes(7, 8, 7) == [8, 7]
    assert sizes(7, 8, 7, 7) == [8, 7, 7]
    assert sizes(7) == sizes(7, 7) == [7]


def test_mlp_batch_norm_stands_before_each_activation() -> None:
    model = build("mlp", (4,), 3, widths=[8, 7], batch_norm=True)
    kinds = [type(layer).__name__ for layer in model.features]
    assert kinds == ["Flatten", "Linear", "BatchNorm1d", "ReLU", "Linear", "BatchNorm1d", "ReLU"]


def test_cnn_and_vgg_take_hidden_layers(on_meta: OnMeta) -> None:
    model = build("cnn", (1, 28, 28), 10, channels=[8, 6], hidden=[], width=0.5)
    assert [c.out_channels for c in layers(model, nn.Conv2d)] == [4, 3]
    assert model.head.in_features == 3 * 7 * 7
    model = on_meta("vgg16", (3, 32, 32), 10, hidden=[2500], width=2)
    assert [c.out_features for c in layers(model, nn.Linear)] == [5000, 10]


def test_importing_the_package_does_not_import_torch() -> None:
    code = "import sys, structlearn; assert structlearn.__version__ == '0.1.0'; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
