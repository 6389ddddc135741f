"""Finding the files of a data set, and saying what is missing."""

from pathlib import Path

import pytest

from hpc.config import files
from hpc.config.data import Digits, ImageFiles, Tabular, TextFiles
from hpc.config.files import PUBLISHED, locate
from hpc.errors import ConfigError


@pytest.fixture(autouse=True)
def _nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """None of the usual places exists, wherever the tests run."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("STRUCTLEARN_DATA", raising=False)
    monkeypatch.setattr(files, "DEBIAN", {"fashion-mnist": tmp_path / "debian"})
    monkeypatch.chdir(tmp_path)


def put(folder: Path, *names: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).touch()
    return folder


def published(name: str) -> list[str]:
    return [names[0] for names in PUBLISHED[name].files.values()]


def test_digits_have_no_files() -> None:
    assert locate(Digits()) == {}


@pytest.mark.parametrize("name", PUBLISHED)
def test_files_in_the_root_itself(name: str, tmp_path: Path) -> None:
    put(tmp_path / "here", *published(name))
    found = locate(ImageFiles(name=name, root=str(tmp_path / "here")))
    assert list(found) == list(PUBLISHED[name].files)
    assert {path.parent for path in found.values()} == {tmp_path / "here"}


@pytest.mark.parametrize("name", [name for name in PUBLISHED if PUBLISHED[name].folders])
def test_files_in_the_customary_folder(name: str, tmp_path: Path) -> None:
    folder = put(tmp_path / PUBLISHED[name].folders[0], *published(name))
    found = locate(ImageFiles(name=name, root=str(tmp_path)))
    assert {path.parent for path in found.values()} == {folder}


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("mark", ["-", "."])
def test_idx_names_in_all_variants(mark: str, suffix: str, tmp_path: Path) -> None:
    names = [f"{stem}-images{mark}idx3-ubyte{suffix}" for stem in ("train", "t10k")]
    names += [f"{stem}-labels{mark}idx1-ubyte{suffix}" for stem in ("train", "t10k")]
    put(tmp_path / "here", *names)
    found = locate(ImageFiles(name="mnist", root=str(tmp_path / "here")))
    assert sorted(path.name for path in found.values()) == sorted(names)


def test_class_names_are_found_where_they_are(tmp_path: Path) -> None:
    put(tmp_path / "here", *published("cifar10"), "batches.meta.txt")
    assert locate(ImageFiles(name="cifar10", root="here"))["labels"].name == "batches.meta.txt"


def test_usual_places_in_their_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = ImageFiles(name="fashion-mnist")
    monkeypatch.setenv("STRUCTLEARN_DATA", str(tmp_path / "shared"))
    for place in (
        tmp_path / "debian",
        Path("data/fashion-mnist"),
        tmp_path / "home/.cache/structlearn/fashion-mnist",
        tmp_path / "shared/fashion-mnist",
    ):
        put(place, *published("fashion-mnist"))
        assert locate(config)["train_images"].parent == place


def test_a_given_root_is_the_only_place(tmp_path: Path) -> None:
    put(tmp_path / "data/svhn", *published("svhn"))
    put(tmp_path / "empty")
    with pytest.raises(ConfigError, match="empty \\(none of them\\)"):
        locate(ImageFiles(name="svhn", root="empty"))


def test_the_message_names_files_places_and_the_remedy(tmp_path: Path) -> None:
    put(tmp_path / "data/fashion-mnist", published("fashion-mnist")[0])
    with pytest.raises(ConfigError) as caught:
        locate(ImageFiles(name="fashion-mnist"))
    message = str(caught.value)
    assert message.startswith("data.root: fashion-mnist needs the files train-images-idx3-ubyte, ")
    assert (
        "data/fashion-mnist (lacks train-labels-idx1-ubyte, t10k-images-idx3-ubyte, t10k-labels-idx1-ubyte)" in message
    )
    assert f"{tmp_path / 'home/.cache/structlearn/fashion-mnist'} (none of them)" in message
    assert "dataset-fashion-mnist" in message


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_the_archive_to_unpack_is_named(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"unpack cifar-{name[5:]}-binary\.tar\.gz"):
        locate(ImageFiles(name=name))


def test_a_root_that_is_missing_or_a_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^data\.root: .*nope does not exist; give the place of the files of mnist"):
        locate(ImageFiles(name="mnist", root="nope"))
    put(tmp_path, "file")
    with pytest.raises(ConfigError, match="is a file, not a folder"):
        locate(TextFiles(root="file"))


def test_text_by_the_word_in_the_name(tmp_path: Path) -> None:
    put(tmp_path / "ptb", "ptb.train.txt", "PTB.VALID.txt", "ptb.test.txt", "train.md", "README.txt")
    found = locate(TextFiles(root="ptb"))
    assert {part: path.name for part, path in found.items()} == {
        "train": "ptb.train.txt",
        "valid": "PTB.VALID.txt",
        "test": "ptb.test.txt",
    }


def test_text_that_is_ambiguous_or_missing(tmp_path: Path) -> None:
    put(tmp_path / "two", "ptb.train.txt", "ptb.char.train.txt", "ptb.valid.txt", "ptb.test.txt")
    with pytest.raises(
        ConfigError, match=r"2 files in two have 'train' in their names: ptb.char.train.txt, ptb.train.txt"
    ):
        locate(TextFiles(root="two"))
    put(tmp_path / "few", "train.txt")
    with pytest.raises(ConfigError, match=r"no .txt file in few has 'valid' or 'test' in its name .found: train.txt."):
        locate(TextFiles(root="few"))
    put(tmp_path / "both", "train-test.txt", "valid.txt")
    with pytest.raises(ConfigError, match=r"two of the words in its name \(train-test.txt, valid.txt\)"):
        locate(TextFiles(root="both"))


def test_tables(tmp_path: Path) -> None:
    put(tmp_path, "one.csv", "one.xlsx")
    assert locate(Tabular(root="one.csv")) == {"all": Path("one.csv")}
    with pytest.raises(ConfigError, match=r"a table ends in .csv or .npz"):
        locate(Tabular(root="one.xlsx"))
    put(tmp_path / "parts", "train.csv", "test.npz")
    assert set(locate(Tabular(root="parts"))) == {"train", "test"}
    put(tmp_path / "parts", "valid.csv")
    assert set(locate(Tabular(root="parts"))) == {"train", "valid", "test"}
    put(tmp_path / "lonely", "train.csv")
    with pytest.raises(ConfigError, match=r"no .csv or .npz file in lonely has 'test' in its name"):
        locate(Tabular(root="lonely"))


def test_a_classification_has_one_target(tmp_path: Path) -> None:
    put(tmp_path, "one.csv")
    with pytest.raises(ConfigError, match=r"data.target: got .'a', 'b'., but a classification has one target"):
        locate(Tabular(root="one.csv", target=("a", "b")))
    assert locate(Tabular(root="one.csv", target=("a", "b"), task="regression"))
