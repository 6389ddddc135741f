"""Digits: 1,797 handwritten digits of 8 x 8 pixels, embedded in scikit-learn.

Source: UCI, "Optical Recognition of Handwritten Digits", test part; see sklearn.datasets.load_digits.
"""

import numpy as np
import torch

from hpc.data.dataset import Part, Source


def read() -> Source:
    """All samples: images uint8 (1797, 1, 8, 8) with the values 0 to 16 as published, classes int64."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = torch.from_numpy(digits.images.astype(np.uint8)).unsqueeze(1)
    targets = torch.from_numpy(digits.target.astype(np.int64))
    return Source(Part(images, targets), None, None, tuple("0123456789"))
