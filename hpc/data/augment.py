"""Augmentation of a whole batch at once, where it lies.

First draw (on the host, from the run's own streams, for a whole epoch), then apply (on the device, without a
loop over samples): so the changes are the same on every device, and a step draws nothing.
"""

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import pad as pad_with


def draw(samples: int, pad: int, flip: bool, generator: np.random.Generator) -> npt.NDArray[np.int64]:
    """Random changes, int64 (samples, 3): row and column (0 to 2 * pad) of the crop, 1 to mirror or 0."""
    changes = np.zeros((samples, 3), np.int64)
    if pad:
        changes[:, :2] = generator.integers(0, 2 * pad, size=(samples, 2), endpoint=True)
    if flip:
        changes[:, 2] = generator.integers(0, 2, size=samples)
    return changes


def augment(images: Tensor, pad: int, changes: Tensor) -> Tensor:
    """Pad every image with zeros, crop it at its own place to its old size, mirror it left-right or not.

    Args:
        images: (N, C, H, W) of any type.
        pad: rows and columns of zeros added on each side.
        changes: (N, 3), as ``draw`` makes them with the same ``pad``, on the device of ``images``.

    Returns:
        Images of the same shape and type.
    """
    count, channels, height, width = images.shape
    padded = pad_with(images, (pad, pad, pad, pad))
    across = torch.arange(width, device=images.device)
    across = torch.where(changes[:, 2:] == 1, width - 1 - across, across)  # (N, W): mirrored after the crop
    down = torch.arange(height, device=images.device) + changes[:, :1]  # (N, H)
    columns = across + changes[:, 1:2]
    pixels = down[:, :, None] * (width + 2 * pad) + columns[:, None, :]  # (N, H, W): places in a padded plane
    index = pixels.view(count, 1, -1).expand(count, channels, -1)
    return padded.flatten(2).gather(2, index).view(images.shape)
