"""The run folder: what is frozen in it, whose it is, and text that is never half written."""

import fcntl
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hpc.config import folder
from hpc.config.folder import (
    CHECKPOINTS,
    CONFIG,
    LOCK,
    LOGS,
    RECORD,
    STATUS,
    check_folder,
    ended,
    freeze,
    frozen,
    read_status,
    resumable,
    write_atomically,
)
from hpc.config.read import validate
from hpc.config.root import Config
from hpc.errors import ConfigError, RunError


def config(run_dir: Path, **more: object) -> Config:
    return validate({"run_dir": str(run_dir), **more})


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """A folder in which a configuration was frozen and nothing else happened."""
    return freeze(config(tmp_path / "run", seed=1))


# --- whose folder it is --------------------------------------------------------------------------------


def test_freezing_makes_the_folder_and_its_configuration(tmp_path: Path) -> None:
    given = config(tmp_path / "deep" / "run", seed=3)
    check_folder(given)
    assert freeze(given) == tmp_path / "deep" / "run"
    assert sorted(path.name for path in (tmp_path / "deep" / "run").iterdir()) == sorted([CHECKPOINTS, CONFIG, LOGS])
    assert frozen(tmp_path / "deep" / "run") == given


def test_freezing_the_same_again_writes_nothing(run_dir: Path) -> None:
    before = (run_dir / CONFIG).stat()
    freeze(config(run_dir, seed=1))
    assert (run_dir / CONFIG).stat().st_ino == before.st_ino


def test_what_may_differ_takes_its_new_value(run_dir: Path) -> None:
    given = config(run_dir, seed=1, checkpoint={"keep": 7})
    check_folder(given)
    freeze(given)
    assert frozen(run_dir) == given


def begin_checkpoint(run_dir: Path) -> None:
    (run_dir / CHECKPOINTS / "step-1-epoch-1").mkdir()
    (run_dir / CHECKPOINTS / "step-1-epoch-1" / "manifest.json").touch()


def begin_record(run_dir: Path) -> None:
    (run_dir / RECORD).touch()


@pytest.mark.parametrize("begin", [begin_checkpoint, begin_record])
def test_a_run_of_another_configuration_is_refused(begin: Callable[[Path], None], run_dir: Path) -> None:
    begin(run_dir)
    check_folder(config(run_dir, seed=1))
    with pytest.raises(ConfigError, match=r"holds a run of another configuration(.|\n)*seed: 1 in the folder, 2 given"):
        check_folder(config(run_dir, seed=2))
    assert frozen(run_dir) == config(run_dir, seed=1)


def test_where_nothing_has_begun_the_new_configuration_counts(run_dir: Path) -> None:
    """A first start that failed must not make its folder useless."""
    (run_dir / LOCK).touch()
    check_folder(config(run_dir, seed=2))
    freeze(config(run_dir, seed=2))
    assert frozen(run_dir) == config(run_dir, seed=2)


@pytest.fixture
def lock(run_dir: Path) -> Iterator[None]:
    with (run_dir / LOCK).open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@pytest.mark.usefixtures("lock")
def test_a_process_that_trains_has_begun(run_dir: Path) -> None:
    check_folder(config(run_dir, seed=1))
    with pytest.raises(ConfigError, match="holds a run of another configuration"):
        check_folder(config(run_dir, seed=2))


def test_the_lock_is_the_one_that_runs_hold(run_dir: Path) -> None:
    pytest.importorskip("torch")
    from hpc.alone import Alone
    from hpc.lock import alone_in

    with alone_in(run_dir, Alone()), pytest.raises(ConfigError, match="another configuration"):
        check_folder(config(run_dir, seed=2))


@pytest.mark.parametrize("text", ["", "epochs: [", "sed: 3", "- 1", "epochs: 0", "\x00"])
def test_a_damaged_configuration_is_told(text: str, run_dir: Path) -> None:
    (run_dir / CONFIG).write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=r"config\.yaml: the folder's configuration cannot be used"):
        frozen(run_dir)


def test_bytes_instead_of_a_configuration_are_told(run_dir: Path) -> None:
    (run_dir / CONFIG).write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="cannot be used"):
        check_folder(config(run_dir))


def test_no_configuration_is_none(tmp_path: Path) -> None:
    assert frozen(tmp_path) is None


def test_a_file_in_the_way_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for taken in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(ConfigError, match="file is a file, but a folder is needed"):
            check_folder(config(taken))


def test_a_folder_without_rights_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[Path, int]] = []
    monkeypatch.setattr(folder.os, "access", lambda path, mode: asked.append((path, mode)))
    with pytest.raises(ConfigError, match="cannot be written to"):
        check_folder(config(tmp_path / "a" / "b"))
    assert asked == [(tmp_path, os.W_OK | os.X_OK)]


def test_a_name_too_long_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"run_dir: got '.*\.\.\.': File name too long"):
        check_folder(config(tmp_path / ("x" * 300)))


def test_a_folder_that_cannot_be_made_after_all_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(folder, "write_atomically", full)
    with pytest.raises(RunError, match=r"cannot be written to \(No space left on device\)"):
        freeze(config(tmp_path / "run"))


# --- text ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("durable", [True, False])
def test_text_is_replaced_whole(durable: bool, tmp_path: Path) -> None:
    path = tmp_path / "text"
    for text in ("one", "zwei ä"):
        write_atomically(path, text, durable=durable)
        assert path.read_text(encoding="utf-8") == text
    assert list(tmp_path.iterdir()) == [path]


def test_what_fails_leaves_the_old_text_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "text"
    write_atomically(path, "old")

    def fail(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(folder.os, "fsync", fail)
    with pytest.raises(OSError, match="No space"):
        write_atomically(path, "new")
    assert path.read_text(encoding="utf-8") == "old"
    assert list(tmp_path.iterdir()) == [path]


# --- status --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", [None, "", "{", "[1]", "3", "\xff"])
def test_a_status_that_cannot_be_read_is_empty(text: str | None, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / STATUS).write_bytes(text.encode("latin-1"))
    assert read_status(tmp_path) == {}


def test_an_end_is_added_to_what_was_known(tmp_path: Path) -> None:
    (tmp_path / STATUS).write_text(json.dumps({"state": "running", "epoch": 3}), encoding="utf-8")
    ended(tmp_path, "failed", "the reason", 1)
    found = read_status(tmp_path)
    assert (found["state"], found["epoch"], found["error"]) == ("failed", 3, "the reason")


def test_only_a_complete_checkpoint_can_be_resumed(run_dir: Path) -> None:
    assert not resumable(run_dir)
    (run_dir / CHECKPOINTS / "step-2-epoch-1").mkdir()
    assert not resumable(run_dir)
    begin_checkpoint(run_dir)
    assert resumable(run_dir)
