"""Where a data set's files are: found, or missed with advice, before any rank starts."""

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from hpc.config.data import DataConfig, Digits, ImageFiles, Tabular, TextFiles
from hpc.errors import ConfigError

DEBIAN: Final = {"fashion-mnist": Path("/usr/share/datasets/fashion-mnist")}
"""Where Debian's packages put data sets."""


@dataclass(frozen=True)
class Published:
    """The form in which a data set of images is published.

    Attributes:
        files: what each file is for, and the names it is found under, the preferred one first.
        folders: sub-folders in which archives and other tools leave the files.
        advice: how to get the files.
        labels: name of the file with the names of the classes; the data set can be read without it.
    """

    files: Mapping[str, tuple[str, ...]]
    folders: tuple[str, ...]
    advice: str
    labels: str | None = None


def _idx(stem: str, kind: str) -> tuple[str, ...]:
    """An IDX file's names: MNIST's site writes a hyphen, some unpackers a dot; gzipped or not."""
    return tuple(f"{stem}{mark}{kind}-ubyte{suffix}" for suffix in ("", ".gz") for mark in "-.")


_MNIST: Final = {
    "train_images": _idx("train-images", "idx3"),
    "train_labels": _idx("train-labels", "idx1"),
    "test_images": _idx("t10k-images", "idx3"),
    "test_labels": _idx("t10k-labels", "idx1"),
}

PUBLISHED: Final[Mapping[str, Published]] = {
    "mnist": Published(
        files=_MNIST,
        folders=("MNIST/raw",),
        advice="download the four files of the MNIST database (train-images-idx3-ubyte.gz and so on); "
        "they are read with or without unpacking",
    ),
    "fashion-mnist": Published(
        files=_MNIST,
        folders=("FashionMNIST/raw",),
        advice="install Debian's package dataset-fashion-mnist, or download the four files from "
        "https://github.com/zalandoresearch/fashion-mnist; they are read with or without unpacking",
    ),
    "cifar10": Published(
        files={f"data_batch_{i}": (f"data_batch_{i}.bin",) for i in range(1, 6)} | {"test_batch": ("test_batch.bin",)},
        folders=("cifar-10-batches-bin",),
        advice="unpack cifar-10-binary.tar.gz (the binary version, not the Python one) from "
        "https://www.cs.toronto.edu/~kriz/cifar.html",
        labels="batches.meta.txt",
    ),
    "cifar100": Published(
        files={"train": ("train.bin",), "test": ("test.bin",)},
        folders=("cifar-100-binary",),
        advice="unpack cifar-100-binary.tar.gz (the binary version, not the Python one) from "
        "https://www.cs.toronto.edu/~kriz/cifar.html",
        labels="fine_label_names.txt",
    ),
    "svhn": Published(
        files={"train": ("train_32x32.mat",), "test": ("test_32x32.mat",)},
        folders=(),
        advice="download train_32x32.mat and test_32x32.mat (format 2, cropped digits) from "
        "http://ufldl.stanford.edu/housenumbers",
    ),
}


def locate(config: DataConfig) -> dict[str, Path]:
    """The files a data set consists of: what each is for, and where it is. Nothing is read.

    - ``digits``: none.
    - Images: see ``PUBLISHED``. With ``root`` given, only there (or in its customary sub-folder); else the
      first of ``$STRUCTLEARN_DATA/NAME``, ``~/.cache/structlearn/NAME``, ``./data/NAME`` and Debian's
      folder that holds all of them. ``labels`` is among them where the file with the classes' names is.
    - ``text``: ``train``, ``valid``, ``test``, each the one .txt file with that word in its name.
    - ``tabular``: ``all`` for a single file, else ``train``, ``test`` and, where there is one, ``valid``.

    Raises:
        ConfigError: with what was looked for, where, and what to do.
    """
    match config:
        case Digits():
            return {}
        case ImageFiles():
            return _images(config)
        case TextFiles():
            root = Path(config.root).expanduser()
            _must_be_folder(root, "three .txt files with train, valid and test in their names")
            return _by_words(root, (".txt",), needed=("train", "valid", "test"))
        case Tabular():
            return _table(config)


def _images(config: ImageFiles) -> dict[str, Path]:
    published = PUBLISHED[config.name]
    if config.root is None:
        places = list(_usual_places(config.name))
    else:
        places = [Path(config.root).expanduser()]
        _must_be_folder(places[0], f"the files of {config.name}; {published.advice}")
    missing = {}
    for place in places:
        for folder in (place, *(place / sub for sub in published.folders)):
            found, lacking = _look(folder, published.files)
            if not lacking:
                labels = folder / published.labels if published.labels else None
                return found | ({"labels": labels} if labels and labels.is_file() else {})
            missing[folder] = f"{folder} ({'lacks ' + ', '.join(lacking) if found else 'none of them'})"
    names = ", ".join(names[0] for names in published.files.values())
    raise ConfigError(
        f"data.root: {config.name} needs the files {names}. Looked in: {'; '.join(missing.values())}. "
        f"What to do: {published.advice}, and set data.root to their folder"
    )


def _usual_places(name: str) -> Iterator[Path]:
    if shared := os.environ.get("STRUCTLEARN_DATA"):
        yield Path(shared).expanduser() / name
    yield Path("~/.cache/structlearn").expanduser() / name
    yield Path("data") / name
    if name in DEBIAN:
        yield DEBIAN[name]


def _look(folder: Path, files: Mapping[str, tuple[str, ...]]) -> tuple[dict[str, Path], list[str]]:
    """The files that are in a folder, and the names of those that are not."""
    found = {key: path for key, names in files.items() if (path := _first(folder / name for name in names)) is not None}
    return found, [names[0] for key, names in files.items() if key not in found]


def _first(paths: Iterable[Path]) -> Path | None:
    return next((path for path in paths if path.is_file()), None)


def _table(config: Tabular) -> dict[str, Path]:
    if config.task == "classification" and isinstance(config.target, tuple) and len(config.target) != 1:
        raise ConfigError(
            f"data.target: got {list(config.target)}, but a classification has one target; "
            f"name one column, or set data.task: regression"
        )
    root = Path(config.root).expanduser()
    if root.is_file():
        if root.suffix.lower() not in {".csv", ".npz"}:
            raise ConfigError(f"data.root: got {root}; a table ends in .csv or .npz: rename or convert it")
        return {"all": root}
    _must_be_folder(root, "a .csv or .npz file, or a folder with files that have train and test in their names")
    return _by_words(root, (".csv", ".npz"), needed=("train", "test"), welcome=("valid",))


def _must_be_folder(root: Path, needed: str) -> None:
    if not root.is_dir():
        kind = "is a file, not a folder" if root.exists() else "does not exist"
        raise ConfigError(f"data.root: {root.absolute()} {kind}; give the place of {needed}")


def _by_words(
    root: Path, endings: tuple[str, ...], needed: tuple[str, ...], welcome: tuple[str, ...] = ()
) -> dict[str, Path]:
    """One file for each word, by the word in its name; a file never serves two words."""
    files = sorted(path for path in root.iterdir() if path.suffix.lower() in endings and path.is_file())
    found: dict[str, Path] = {}
    for word in (*needed, *welcome):
        fitting = [path for path in files if word in path.name.lower()]
        if len(fitting) > 1:
            raise ConfigError(
                f"data.root: {len(fitting)} files in {root} have {word!r} in their names: "
                f"{', '.join(path.name for path in fitting)}; leave one of them there"
            )
        if fitting:
            found[word] = fitting[0]
    kinds = " or ".join(endings)
    if lacking := [word for word in needed if word not in found]:
        seen = ", ".join(path.name for path in files) or "none"
        raise ConfigError(
            f"data.root: no {kinds} file in {root} has {' or '.join(map(repr, lacking))} in its name "
            f"(found: {seen}); put one file for each of {', '.join(needed)} there"
        )
    if len(set(found.values())) < len(found):
        names = ", ".join(sorted({path.name for path in found.values()}))
        raise ConfigError(f"data.root: a file in {root} has two of the words in its name ({names}); rename it")
    return found
