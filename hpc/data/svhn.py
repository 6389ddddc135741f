"""Street View House Numbers, format 2 (cropped digits), MATLAB files.

``X`` is (32, 32, 3, N) uint8, ``y`` (N, 1) with labels 1 to 10, where 10 means the digit 0.
Source: http://ufldl.stanford.edu/housenumbers.
"""

import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hpc.data.dataset import Part, Source
from hpc.errors import RunError


def read(files: Mapping[str, Path]) -> Source:
    """SVHN: images uint8 (N, 3, 32, 32), classes int64 (N,), the digit itself.

    Raises:
        RunError: a file is not what it should be.
    """
    return Source(_part(files["train"]), None, _part(files["test"]), tuple("0123456789"))


def _part(path: Path) -> Part:
    content = _content(path)
    if lacking := [key for key in ("X", "y") if key not in content]:
        raise RunError(f"{path}: holds no variable {' or '.join(lacking)}; use the published files of format 2")
    images, labels = content["X"], content["y"].reshape(-1)
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[:3] != (32, 32, 3):
        raise RunError(
            f"{path}: X is {images.dtype} {images.shape}, but uint8 (32, 32, 3, N) is expected; "
            f"use the published files of format 2"
        )
    if images.shape[3] != len(labels):
        raise RunError(f"{path}: {images.shape[3]} images, but {len(labels)} labels; download it again")
    if not np.isin(labels, np.arange(1, 11)).all():
        wrong = labels[~np.isin(labels, np.arange(1, 11))][0]
        raise RunError(f"{path}: label {wrong}, but labels go from 1 to 10 (10 is the digit 0); download it again")
    return Part(
        torch.from_numpy(np.ascontiguousarray(images.transpose(3, 2, 0, 1))),
        torch.from_numpy(labels.astype(np.int64) % 10),
    )


def _content(path: Path) -> dict[str, Any]:
    from scipy.io import loadmat
    from scipy.io.matlab import MatReadError

    try:
        content: dict[str, Any] = loadmat(path, variable_names=["X", "y"])
    except NotImplementedError as error:  # scipy's answer to HDF5 inside
        raise RunError(
            f"{path}: saved in MATLAB's version 7.3, but the published version 5 is expected; "
            f"download it again, or save it with -v7"
        ) from error
    except (MatReadError, ValueError, TypeError, LookupError, OSError, EOFError, zlib.error) as error:
        raise RunError(f"{path}: not a readable MATLAB file ({error}); download it again") from error
    return content
