"""Numbers of parameters, against the published ones."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch

from structlearn.models import MODELS, build, width_for

if TYPE_CHECKING:
    from collections.abc import Callable

    from structlearn.models import Net

    OnMeta = Callable[..., Net]

CIFAR = (3, 32, 32)
IMAGENET = (3, 224, 224)
MNIST = (1, 28, 28)

# Published counts; the source of each is named in the builder's docstring.
COUNTS = [
    ("mlp", MNIST, 10, {"widths": [1000, 1000, 10]}, 1_796_010),
    ("mlp", (54,), 7, {"widths": []}, 54 * 7 + 7),
    ("cvnn", CIFAR, 10, {}, 5_711_010),
    ("cnn", CIFAR, 10, {}, 145_578),
    ("cnn", (3, 28, 28), 10, {"hidden": [128]}, 211_818),
    ("lenet", MNIST, 10, {}, 61_706),
    ("alexnet", CIFAR, 10, {}, 1_110_658),
    ("alexnet", CIFAR, 10, {"kernel": 5, "pool": 2}, 1_244_802),
    ("alexnet", IMAGENET, 1000, {}, 61_100_840),
    ("vgg11", CIFAR, 10, {}, 9_231_114),
    ("vgg16", CIFAR, 10, {}, 14_728_266),
    ("vgg19", CIFAR, 10, {}, 20_040_522),
    ("vgg11", IMAGENET, 1000, {}, 132_868_840),
    ("vgg16", IMAGENET, 1000, {}, 138_365_992),
    ("vgg19", IMAGENET, 1000, {}, 143_678_248),
    ("googlenet", CIFAR, 10, {}, 6_166_250),
    ("googlenet", IMAGENET, 1000, {}, 6_624_904),
    ("mobilenet_v1", CIFAR, 10, {}, 3_217_226),
    ("mobilenet_v1", IMAGENET, 1000, {}, 4_231_976),
    ("mobilenet_v2", CIFAR, 10, {}, 2_296_922),
    ("mobilenet_v2", IMAGENET, 1000, {}, 3_504_872),
    ("resnet18", CIFAR, 10, {}, 11_173_962),
    ("resnet18", IMAGENET, 1000, {}, 11_689_512),
    ("resnet50", CIFAR, 10, {}, 23_520_842),
    ("resnet50", IMAGENET, 1000, {}, 25_557_032),
    ("wideresnet28_10", CIFAR, 10, {}, 36_479_194),
    ("densenet121", CIFAR, 10, {}, 6_956_298),
    ("densenet121", IMAGENET, 1000, {}, 7_978_856),
    ("lstm", (70,), 50, {}, 171_650),
    ("lstm", (70,), 10_000, {}, 2_171_600),
]

# W table 2.2: with Alrao's ten output layers, in thousands.
TEN_HEADS = [
    ("googlenet", CIFAR, 10, 6_258),
    ("vgg19", CIFAR, 10, 20_087),
    ("mobilenet_v2", CIFAR, 10, 2_412),
    ("lstm", (70,), 50, 217),
]


def parameters(model: torch.nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def test_every_model_is_counted() -> None:
    assert {name for name, *_ in COUNTS} == set(MODELS)


@pytest.mark.parametrize("case", COUNTS, ids=str)
def test_parameter_count_is_the_published_one(case: tuple[Any, ...], on_meta: OnMeta) -> None:
    name, shape, outputs, options, count = case
    assert parameters(on_meta(name, shape, outputs, **options)) == count


@pytest.mark.parametrize(("name", "shape", "outputs", "thousands"), TEN_HEADS)
def test_ten_heads_give_the_counts_of_the_thesis(
    name: str, shape: tuple[int, ...], outputs: int, thousands: int, on_meta: OnMeta
) -> None:
    model = on_meta(name, shape, outputs)
    assert round((parameters(model) + 9 * parameters(model.head)) / 1000) == thousands


@pytest.mark.parametrize("name", ["mlp", "cnn", "vgg11", "resnet18", "lstm"])
@pytest.mark.parametrize("wanted", [40_000, 300_000])
def test_no_other_factor_comes_nearer_to_so_many_parameters(name: str, wanted: int, on_meta: OnMeta) -> None:
    shape = {"mlp": (64,), "lstm": (70,)}.get(name, CIFAR)
    found = width_for(name, shape, 10, parameters=wanted)
    assert parameters(on_meta(name, shape, 10, width=found.value)) == found.parameters
    for factor in (0.99, 0.995, 0.999, 1.001, 1.005, 1.01):
        other = parameters(on_meta(name, shape, 10, width=factor * found.value))
        assert abs(other - wanted) >= abs(found.parameters - wanted)


def test_activations_are_compared_at_one_number_of_parameters(on_meta: OnMeta) -> None:
    """B table 3.1: only the filters vary."""
    relu, maxmin = (
        width_for("cnn", CIFAR, 10, parameters=600_000, vary="channels", hidden=[64], activation=activation)
        for activation in ("relu", "maxmin")
    )
    assert all(2**-0.5 * 0.9 < less / more < 0.75 for less, more in zip(maxmin.value, relu.value, strict=True))
    for fit, activation in ((relu, "relu"), (maxmin, "maxmin")):
        model = on_meta("cnn", CIFAR, 10, channels=fit.value, activation=activation)
        assert parameters(model) == fit.parameters == pytest.approx(600_000, rel=0.01)
        assert model.head.in_features == 64 * (2 if activation == "maxmin" else 1)


BAD_FITS = [
    (("cnn", CIFAR, 10), {"parameters": 10}, r"cnn cannot have 10 parameters: with width at its smallest it has 1"),
    (("cnn", CIFAR, 10), {"parameters": 9000, "vary": "chanels"}, r"option of cnn to vary 'chanels' \(did you mean 'c"),
    (
        ("cnn", CIFAR, 10),
        {"parameters": 9000, "vary": "activation"},
        r"vary='activation' of cnn is 'relu', which is no",
    ),
    (("cn", CIFAR, 10), {"parameters": 9000}, r"unknown model 'cn'"),
    (("cnn", CIFAR, 10), {"parameters": 0}, r"parameters must be a whole number of at least 1, got 0"),
]


@pytest.mark.parametrize(("arguments", "options", "message"), BAD_FITS)
def test_sizes_that_cannot_be_are_named(arguments: tuple[Any, ...], options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        width_for(*arguments, **options)


def test_the_weights_that_are_drawn_next_are_those_without_the_search() -> None:
    torch.manual_seed(3)
    width = width_for("mlp", (8,), 3, parameters=500).value
    first = build("mlp", (8,), 3, width=width).head.weight
    torch.manual_seed(3)
    assert torch.equal(build("mlp", (8,), 3, width=width).head.weight, first)
