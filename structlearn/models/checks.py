"""What a builder checks before it builds: names, sizes and input shapes.

Every message says what was got, what is allowed and what to do.
"""

from __future__ import annotations

from itertools import count
from typing import Literal, TypeAlias

from torch import nn

from structlearn.checks import check_choice, check_count

Stem: TypeAlias = Literal["auto", "cifar", "imagenet"]
"""Which published form of a network to build: for small images, for ImageNet, or whichever fits the image."""

IMAGENET_SIDE = 96
"""The shortest side from which `stem="auto"` takes the ImageNet form."""


def check_shape(model: str, input_shape: tuple[int, ...], axes: tuple[str, ...]) -> tuple[int, ...]:
    """`input_shape` as a tuple, if it has the given axes (the batch is not among them), each at least 1."""
    shape = tuple(input_shape)
    if len(shape) != len(axes):
        raise ValueError(
            f"{model} takes inputs of shape ({', '.join(axes)}), got {shape}; "
            "give one size an axis, without the batch, or choose a model for this kind of data"
        )
    return tuple(
        check_count(f"{model}: axis {axis} of the input shape {shape}", size)
        for axis, size in zip(axes, shape, strict=True)
    )


def check_image(model: str, input_shape: tuple[int, ...]) -> tuple[int, int, int]:
    """`input_shape`, if it is (channels, height, width)."""
    channels, height, width = check_shape(model, input_shape, ("channels", "height", "width"))
    return channels, height, width


def small_images(stem: Stem, input_shape: tuple[int, int, int]) -> bool:
    """Whether to build the form for small images ("cifar") and not the one for ImageNet.

    "auto" takes the ImageNet form when the shorter side has at least `IMAGENET_SIDE` pixels: below that
    its stem and poolings (32 x in all) would leave less than 3 x 3 positions.
    """
    check_choice("stem", stem, ("auto", "cifar", "imagenet"))
    if stem == "auto":
        return min(input_shape[1:]) < IMAGENET_SIDE
    return stem == "cifar"


def map_size(model: str, trunk: nn.Module, input_shape: tuple[int, int, int]) -> tuple[int, int]:
    """Height and width of the maps that leave `trunk`, a chain of convolutions and poolings.

    Raises:
        ValueError: the image is used up on the way; the message names the smallest that is not.
    """
    height, width = (side_after(trunk, side) for side in input_shape[1:])
    if min(height, width) < 1:
        least = next(side for side in count(1) if side_after(trunk, side) >= 1)
        raise ValueError(
            f"{model} got images of {input_shape[1]} x {input_shape[2]} pixels, of which its convolutions "
            f"and poolings leave nothing; the smallest is {least} x {least}: "
            "enlarge the images, or take a model with fewer poolings"
        )
    return height, width


def side_after(trunk: nn.Module, side: int) -> int:
    """What `trunk` leaves of an image's side, 0 if nothing.

    Layers count in the order in which they were registered, so side branches (shortcuts) must keep the size.
    """
    for layer in trunk.modules():
        if isinstance(layer, nn.Conv2d | nn.MaxPool2d | nn.AvgPool2d):
            kernel, stride, padding = (_first(n) for n in (layer.kernel_size, layer.stride, layer.padding))
            side = (side + 2 * padding - kernel) // stride + 1
            if side < 1:
                return 0
    return side


def _first(size: object) -> int:
    """The size along one side: convolutions keep pairs, poolings what they were given; all are square."""
    one = size[0] if isinstance(size, tuple) else size
    assert isinstance(one, int), f"no number of pixels: {size!r}"
    return one
