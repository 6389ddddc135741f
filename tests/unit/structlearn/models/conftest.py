"""What the tests of the models share."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

from structlearn.models import Net, build

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def on_meta() -> Callable[..., Net]:
    """`build` without memory for the weights: enough to count and to follow shapes."""

    def build_on_meta(*arguments: object, **options: object) -> Net:
        with torch.device("meta"):
            return build(*arguments, **options)

    return build_on_meta
