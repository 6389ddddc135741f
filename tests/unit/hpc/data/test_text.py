"""Characters in windows."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from hpc.data import text
from hpc.errors import RunError


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    found = {part: tmp_path / f"{part}.txt" for part in ("train", "valid", "test")}
    found["train"].write_bytes("the cat — sat\non the mat\n".encode())
    found["valid"].write_bytes(b"the sea\r\nat ten\n")
    found["test"].write_bytes(b"a hat on a mat")
    return found


def spell(rows: Tensor, labels: tuple[str, ...]) -> list[str]:
    return ["".join(labels[i] for i in row) for row in rows.tolist()]


def test_windows_are_the_text_cut_without_overlap(files: dict[str, Path]) -> None:
    source = text.read(files, length=5)
    assert source.labels == tuple(sorted(set("the cat — sat\non the mat\n")))
    assert spell(source.train.inputs, source.labels) == ["the c", "at — ", "sat\no", "n the"]
    assert spell(source.train.targets, source.labels) == ["he ca", "t — s", "at\non", " the "]
    assert spell(source.test.inputs, source.labels) == ["a hat", " on a"]


def test_line_ends_are_one_character(files: dict[str, Path]) -> None:
    source = text.read(files, length=7)
    assert spell(source.valid.inputs, source.labels) == ["the sea", "\nat ten"]


def test_a_window_and_its_last_target_fit_exactly(files: dict[str, Path]) -> None:
    assert len(text.read(files, length=13).test) == 1
    with pytest.raises(RunError, match=r"test.txt: 14 characters, but one sample takes 15 \(data.length \+ 1\)"):
        text.read(files, length=14)


def test_targets_are_the_next_inputs(files: dict[str, Path]) -> None:
    part = text.read(files, length=4).train
    assert part.inputs.dtype == part.targets.dtype == torch.int64
    assert torch.equal(part.inputs.flatten()[1:], part.targets.flatten()[:-1])


def test_an_unknown_character_is_named(files: dict[str, Path]) -> None:
    files["test"].write_text("a hat\non a zebra, quick", encoding="utf-8")
    with pytest.raises(
        RunError, match=r"test.txt: character ',' \(U\+002C, line 2\) and 7 more is not in the training"
    ):
        text.read(files, length=3)


def test_not_utf8(files: dict[str, Path]) -> None:
    files["valid"].write_bytes(b"caf\xe9 au lait")
    with pytest.raises(RunError, match=r"valid.txt: not UTF-8 text at byte 3"):
        text.read(files, length=3)


def test_an_empty_file(files: dict[str, Path]) -> None:
    files["train"].write_bytes(b"")
    with pytest.raises(RunError, match=r"train.txt: 0 characters"):
        text.read(files, length=3)
