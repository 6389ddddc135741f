"""What the configuration knows of the smallest images is what the networks find out from their layers."""

from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")

# ruff: noqa: E402 - what follows needs torch
from hpc.config.model import IMAGENET_SIDE, LEAST_SIDES, least_side, small_form
from hpc.config.read import validate
from structlearn.models import MODELS, build, checks

FOR_IMAGES = sorted(MODELS.keys() - {"mlp", "lstm"})
TWO_FORMS = [name for name in FOR_IMAGES if hasattr(validate({"model": {"name": name}}).model, "stem")]
CASES: list[tuple[str, dict[str, Any]]] = [
    *((name, {}) for name in FOR_IMAGES),
    *((name, {"stem": stem}) for name in TWO_FORMS for stem in ("cifar", "imagenet")),
    ("alexnet", {"pool": 1}),
    ("alexnet", {"kernel": 5, "pool": 2}),
    ("alexnet", {"stem": "cifar", "pool": 4}),
    ("alexnet", {"pool": 5}),
]


def works(name: str, options: dict[str, Any], height: int, width: int) -> bool:
    """Can the network be built for images of this size, and does it answer?"""
    with torch.device("meta"):
        try:
            network = build(name, (3, height, width), 4, **options)
        except ValueError as error:
            assert "the smallest is" in str(error)  # noqa: PT017
            return False
    return network(torch.empty(2, 3, height, width, device="meta")).shape == (2, 4)


@pytest.mark.parametrize(("name", "options"), CASES)
def test_the_least_side_works_and_one_less_does_not(name: str, options: dict[str, Any]) -> None:
    least = least_side(validate({"model": {"name": name, **options}}).model, side=8)
    assert works(name, options, least, least)
    assert works(name, options, least, least + 9)
    if least > 1:
        assert not works(name, options, least - 1, least - 1)
        assert not works(name, options, least - 1, least + 9)


def test_only_networks_are_listed() -> None:
    assert set(LEAST_SIDES) <= set(FOR_IMAGES)


@pytest.mark.parametrize("name", TWO_FORMS)
@pytest.mark.parametrize("stem", ["auto", "cifar", "imagenet"])
@pytest.mark.parametrize("side", [8, 95, 96, 224])
def test_the_form_is_the_one_that_the_networks_take(name: str, stem: Any, side: int) -> None:
    model = validate({"model": {"name": name, "stem": stem}}).model
    assert small_form(model, side) == checks.small_images(stem, (3, side + 1, side))
    assert IMAGENET_SIDE == checks.IMAGENET_SIDE
