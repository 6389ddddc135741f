"""Tables from csv and npz: values, classes, and every refusal."""

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hpc.config.data import Tabular
from hpc.config.files import locate
from hpc.data import tables, tabular
from hpc.data.dataset import Source
from hpc.errors import ConfigError, RunError

Writer = Callable[..., Path]


def read(path: Path, **keys: Any) -> Source:
    config = Tabular(root=str(path), **keys)
    return tabular.read(config, locate(config))


@pytest.fixture
def csv(tmp_path: Path) -> Writer:
    def write(text: str, name: str = "t.csv") -> Path:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return path

    return write


@pytest.fixture
def npz(tmp_path: Path) -> Writer:
    def write(name: str = "t.npz", **arrays: Any) -> Path:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        np.savez(path, **arrays)
        return path

    return write


IRIS = "length,width,kind\n5.1,3.5,setosa\n\n4.9, 3.0 ,virginica\n6,2.5e0,setosa\n"


def test_csv_with_header_and_words_for_classes(csv: Writer) -> None:
    source = read(csv(IRIS))
    assert source.train.inputs.tolist() == torch.tensor([[5.1, 3.5], [4.9, 3.0], [6.0, 2.5]]).tolist()
    assert source.train.targets.tolist() == [0, 1, 0]
    assert source.labels == ("setosa", "virginica")
    assert source.test is None


def test_csv_without_header(csv: Writer) -> None:
    source = read(csv("1,2,b\n3,4,a\n5,6,b\n"))
    assert source.train.inputs.tolist() == [[1, 2], [3, 4], [5, 6]]
    assert source.train.targets.tolist() == [1, 0, 1]


def test_a_byte_order_mark_is_no_part_of_the_name(csv: Writer) -> None:
    path = csv("\ufeffa,b\n1,0\n2,1\n")
    assert read(path, target="a").labels == ("1", "2")


def test_numbers_as_classes_are_in_the_order_of_numbers(csv: Writer) -> None:
    source = read(csv("x,y\n1,10\n2,9\n3,10.0\n4,-1\n"))
    assert source.labels == ("-1", "9", "10")
    assert source.train.targets.tolist() == [2, 1, 2, 0]


def test_regression_on_several_targets_keeps_their_values(csv: Writer) -> None:
    source = read(csv("a,b,c\n1,2,3\n4,5,6.5\n"), task="regression", target=("c", "a"))
    assert source.train.inputs.tolist() == [[2], [5]]
    assert source.train.targets.tolist() == [[3, 1], [6.5, 4]]
    assert source.train.targets.dtype == torch.float32
    assert source.labels == ("c", "a")


def test_many_rows_in_blocks(csv: Writer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "ROWS", 3)
    source = read(csv("".join(f"{i},{i % 2}\n" for i in range(10))))
    assert source.train.inputs[:, 0].tolist() == list(range(10))
    assert source.train.targets.tolist() == [0, 1] * 5


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,b\n1,2\n3\n", "line 3 has 1 values, but the first line has 2; mend it"),
        ("a,b\n1,0\n,1\n", "line 3, column 'a': a missing value where a finite number is needed"),
        ("a,b\n1,0\nblue,1\n", "line 3, column 'a': 'blue' where a finite number"),
        ("a,b\n1,0\n\nnan,1\n", "line 4, column 'a': 'nan'"),
        ("a,b\n1,0\n1e39,1\n", "line 3, column 'a': '1e39'"),
        ("a,b\n-inf,0\nred,1\n", "line 2, column 'a': '-inf'"),
        ("a,a\n1,0\n", "two columns are named 'a'"),
        ("a;b\n1;0\n2;1\n", "no column besides the target 'a;b'; csv values are separated by commas"),
        ("a,b\n", "no rows"),
        ("", "empty; give it one row a line"),
        ("a,b\n1,\n2,1\n", "the target 'b' is missing in row 1"),
        ("a,b\n1,x\n2,x\n", "the target 'b' is 'x' in every row"),
        ("a,b\n1,.5\n2,1.5\n3,2.5\n", "3 distinct values in 3 rows, .* set data.task: regression"),
        ("a,b\n1,\0\n", "not a readable csv file"),
    ],
)
def test_broken_csv(csv: Writer, text: str, message: str) -> None:
    if "\0" in text:  # since Python 3.11 csv takes NUL as a character
        text = "a,b\n" + "1" * 200_000 + ",1\n"
    with pytest.raises(RunError, match=rf"t\.csv: .*{message}"):
        read(csv(text))


def test_not_utf8(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes(b"a,b\n1,caf\xe9\n")
    with pytest.raises(RunError, match=r"not a readable csv file .* save it as csv in UTF-8"):
        read(tmp_path / "t.csv")


def test_regression_needs_numbers(csv: Writer) -> None:
    with pytest.raises(RunError, match="line 2, column 'kind': 'setosa'"):
        read(csv(IRIS), task="regression")


def test_an_unknown_target_is_a_matter_of_the_config(csv: Writer, npz: Writer) -> None:
    with pytest.raises(
        ConfigError, match=r"data.target: .*t.csv has no column 'sort'; its columns are length, width, kind"
    ):
        read(csv(IRIS), target="sort")
    with pytest.raises(ConfigError, match=r"data.target: .*t.npz has no array 'sort'; its arrays are x, y"):
        read(npz(x=np.ones((2, 1)), y=np.arange(2)), target="sort")


def test_npz(npz: Writer) -> None:
    chance = np.random.default_rng(0)
    x, y, z = chance.normal(size=(6, 3)), chance.normal(size=(6, 2)), np.arange(6)
    path = npz(x=x, y=y, z=z)
    source = read(path, task="regression")
    assert source.train.inputs.numpy() == pytest.approx(x.astype(np.float32))
    assert source.train.targets.numpy() == pytest.approx(y.astype(np.float32))
    assert source.labels == ("y[0]", "y[1]")
    assert read(path, task="regression", target=("z", "y")).labels == ("z", "y[0]", "y[1]")
    assert read(path, target="z").labels == tuple("012345")
    words = npz(x=x, y=np.array(list("abcabc")))
    assert read(words).train.targets.tolist() == [0, 1, 2, 0, 1, 2]


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"X": np.ones((2, 2)), "y": np.arange(2)}, "no array 'x'; its arrays are X, y. Save it with"),
        ({"x": np.ones((2, 2))}, "no array 'y'"),
        ({"x": np.ones(2), "y": np.arange(2)}, r"x is \(2,\), but \(rows, columns\) is expected"),
        ({"x": np.ones((2, 2)), "y": np.arange(3)}, r"y is \(3,\), but x has 2 rows"),
        ({"x": np.ones((2, 2)), "y": np.array(1)}, r"y is \(\), but x has 2 rows"),
        ({"x": np.array([[1, 2], [3, np.nan]]), "y": np.arange(2)}, r"x\[1, 1\] is nan"),
        ({"x": np.full((2, 2), 1e39), "y": np.arange(2)}, r"x\[0, 0\] is 1e\+39"),
        ({"x": np.full((2, 2), "a"), "y": np.arange(2)}, "x is of type <U1, but numbers are needed"),
        (
            {"x": np.ones((2, 2)), "y": np.ones(2) * 1j},
            "y is of type complex128; classes are numbers or text",
        ),
        ({"x": np.ones((2, 2)), "y": np.array([1, np.nan])}, "the target 'y' is missing in row 2"),
        ({"x": np.ones((2, 2)), "y": np.eye(2)}, "a classification has one target, but 2 columns"),
        ({"x": np.array([[object()]]), "y": np.arange(1)}, "holds Python objects, not plain arrays"),
    ],
)
def test_broken_npz(npz: Writer, arrays: Any, message: str) -> None:
    with pytest.raises(RunError, match=rf"t\.npz.*{message}"):
        read(npz(**arrays))


def test_a_pickle_under_the_name_of_npz_is_never_opened(tmp_path: Path) -> None:
    (tmp_path / "t.npz").write_bytes(pickle.dumps({"x": 1}))
    with pytest.raises(RunError, match=r"t\.npz: not a readable npz file"):
        read(tmp_path / "t.npz")


def test_a_truncated_npz(npz: Writer) -> None:
    path = npz(x=np.ones((50, 2)), y=np.arange(50))
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(RunError, match=r"t\.npz: not a readable npz file"):
        read(path)


def test_a_folder(csv: Writer) -> None:
    csv("a,k\n1,x\n2,y\n3,x\n", "d/train.csv")
    csv("a,k\n7,y\n", "d/valid.csv")
    folder = csv("a,k\n8,x\n9,y\n", "d/test.csv").parent
    source = read(folder)
    assert source.valid.targets.tolist() == [1]
    assert source.test.inputs.tolist() == [[8], [9]]
    csv("a,k\n7,z\n", "d/valid.csv")
    with pytest.raises(RunError, match=r"valid.csv: class 'z' does not occur in .*train.csv"):
        read(folder)
    csv("b,k\n7,x\n", "d/valid.csv")
    with pytest.raises(RunError, match=r"valid.csv: its columns are b, k, but those of .*train.csv are a, k"):
        read(folder)
