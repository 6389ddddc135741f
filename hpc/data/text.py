"""Text as a sequence of characters: one file each for training, validation and test.

The form of the Penn Treebank as T. Mikolov prepared it. Every character counts, line breaks among them (CR LF
is read as LF). The vocabulary is that of the training file, sorted; a character of the other files that is
not in it is an error that names it: a network never trained on a character can give it no probability, and
a quiet stand-in would make the loss incomparable with published ones.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from hpc.data.dataset import Part, Source
from hpc.errors import RunError

Codes = npt.NDArray[np.uint32]


def read(files: Mapping[str, Path], length: int) -> Source:
    """Windows of characters: inputs int64 (N, T), targets int64 (N, T), the character after each.

    Windows follow each other without overlap, so every character but the first is a target exactly once; the
    rest that fills no window is left out.

    Args:
        files: as ``hpc.config.files.locate`` returns them.
        length: T, characters in a window.

    Raises:
        RunError: a file is not UTF-8, is too short, or has a character that the training file has not.
    """
    codes = {part: _codes(path) for part, path in files.items()}
    vocabulary = np.unique(codes["train"])
    parts = {part: _windows(files[part], _ids(codes[part], vocabulary, files, part), length) for part in files}
    return Source(parts["train"], parts["valid"], parts["test"], tuple(map(chr, vocabulary)))


def _codes(path: Path) -> Codes:
    """The file's characters as their Unicode numbers."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise RunError(f"{path}: not UTF-8 text at byte {error.start} ({error.reason}); convert it") from error
    return np.frombuffer(text.encode("utf-32-le"), np.uint32)


def _ids(codes: Codes, vocabulary: Codes, files: Mapping[str, Path], part: str) -> npt.NDArray[np.int64]:
    """Each character's place in the vocabulary."""
    unknown = np.setdiff1d(codes, vocabulary)
    if len(unknown):
        line = 1 + np.count_nonzero(codes[: np.argmax(codes == unknown[0])] == ord("\n"))
        more = f" and {len(unknown) - 1} more" if len(unknown) > 1 else ""
        raise RunError(
            f"{files[part]}: character {chr(unknown[0])!r} (U+{unknown[0]:04X}, line {line}){more} is not in "
            f"the training file {files['train']}; replace it, or make the training file contain it"
        )
    return np.searchsorted(vocabulary, codes)


def _windows(path: Path, ids: npt.NDArray[np.int64], length: int) -> Part:
    count = (len(ids) - 1) // length
    if count < 1:
        raise RunError(
            f"{path}: {len(ids)} characters, but one sample takes {length + 1} (data.length + 1); "
            f"lower data.length or use a longer text"
        )
    stream = torch.from_numpy(ids)
    end = count * length  # inputs and targets are two views of one stream: no memory twice
    return Part(stream[:end].view(count, length), stream[1 : end + 1].view(count, length))
