"""Numbers of parameters, against the published ones."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from structlearn.models import MODELS

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

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
