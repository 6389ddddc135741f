"""What the models refuse, and that the message says what to do."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

from structlearn.models import build

if TYPE_CHECKING:
    from collections.abc import Callable

    from structlearn.models import Net

    OnMeta = Callable[..., Net]

CIFAR = (3, 32, 32)
IMAGENET = (3, 224, 224)

BAD = [
    (
        ("vgg190", CIFAR, 10),
        {},
        r"unknown model 'vgg190' \(did you mean 'vgg19'\?\); use one of: mlp, cvnn, .*lstm",
    ),
    (
        ("mlp", (4,), 3),
        {"batchnorm": True},
        r"option of mlp 'batchnorm' \(did you mean 'batch_norm'\?\).*widths",
    ),
    (
        ("mlp", (4,), 3),
        {"activation": "rely"},
        r"activation 'rely' \(did you mean 'relu'\?\); use one of: relu, ",
    ),
    (("mlp", (), 3), {}, r"mlp got the empty input shape \(\); give at least one axis"),
    (("mlp", (4, 0), 3), {}, r"input shape \(4, 0\) must be a whole number of at least 1, got 0"),
    (("mlp", (4,), 3), {"width": 0}, r"width must be a factor above 0 .* got 0"),
    (("mlp", (4,), 3), {"width": float("nan")}, r"width must be a factor above 0 .* got nan"),
    (("mlp", (4,), 3), {"widths": [8, -1]}, r"layer's width must be a whole number of at least 1, got -1"),
    (("mlp", (4,), 0), {}, r"outputs must be a whole number of at least 1, got 0"),
    (("mlp", (4,), 3), {"dropout": 1.5}, r"between 0 and 1, but got 1.5"),
    (
        ("cnn", (54,), 3),
        {},
        r"cnn takes inputs of shape \(channels, height, width\), got \(54,\); .*choose a model",
    ),
    (("cnn", CIFAR, 3), {"channels": []}, r"cnn got no channels; give"),
    (("lstm", CIFAR, 3), {}, r"lstm takes inputs of shape \(time\), got \(3, 32, 32\)"),
    (("lstm", (9,), 3), {"activation": "relu"}, r"activation of the lstm's cells 'relu'; use one of: tanh"),
    (("lstm", (9,), 3), {"layers": 0}, r"layers must be a whole number of at least 1, got 0"),
    (("resnet18", CIFAR, 3), {"stem": "imagnet"}, r"stem 'imagnet' \(did you mean 'imagenet'\?\)"),
    (("alexnet", CIFAR, 3), {"kernel": 4}, r"kernel must be odd.*got 4; use 3 or 5"),
    (
        ("alexnet", IMAGENET, 3),
        {"kernel": 5},
        r"kernel and pool, here \(5, 3\), belong to the form for small images.*stem='cifar'",
    ),
]


@pytest.mark.parametrize(("arguments", "options", "message"), BAD)
def test_bad_input_is_named_with_the_remedy(
    arguments: tuple[object, ...], options: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        build(*arguments, **options)


SMALLEST = [
    ("cvnn", "auto", 16),
    ("lenet", "auto", 12),
    ("alexnet", "imagenet", 63),
    ("vgg11", "cifar", 32),
    ("vgg19", "imagenet", 32),
    ("densenet121", "cifar", 8),
    ("densenet121", "imagenet", 29),
]


@pytest.mark.parametrize(("name", "stem", "least"), SMALLEST)
def test_smallest_image_is_named_and_works(name: str, stem: str, least: int, on_meta: OnMeta) -> None:
    options = {} if stem == "auto" else {"stem": stem}
    wanted = rf"{name} got images of {least + 5} x {least - 1} pixels.*smallest is {least} x {least}"
    with pytest.raises(ValueError, match=wanted):
        on_meta(name, (3, least + 5, least - 1), 4, **options)
    model = on_meta(name, (3, least, least), 4, **options)
    assert model(torch.empty(2, 3, least, least, device="meta")).shape == (2, 4)


@pytest.mark.parametrize("name", ["cnn", "alexnet", "googlenet", "mobilenet_v2", "resnet50", "wideresnet28_10"])
def test_other_models_take_a_single_pixel(name: str, on_meta: OnMeta) -> None:
    model = on_meta(name, (2, 1, 1), 4)
    assert model(torch.empty(2, 2, 1, 1, device="meta")).shape == (2, 4)
