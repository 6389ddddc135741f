"""Checkpoints of runs that are done are removed: those that nobody needs, and no others."""

from __future__ import annotations

import fcntl
import json
import shutil
import sys
import zlib
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from hpc.config import yamls
from hpc.config.folder import freeze
from hpc.config.read import validate
from hpc.errors import ConfigError
from jobs import clean as cleaning
from jobs.clean import clean
from jobs.cli import main
from jobs.resources import Resources
from jobs.submit import submit
from jobs.sweep import Run
from jobs.sweepfolder import SweepFolder

if TYPE_CHECKING:
    from pathlib import Path

OLD, NEW = "step-000000010-epoch-00001", "step-r00001-000000007-epoch-00002"
FILES = {"shared.h5": bytes(300), "rank-0000.h5": bytes(100)}


def checkpoint(run_dir: Path, name: str, *, complete: bool = True) -> Path:
    """A checkpoint whose manifest fits its files."""
    folder = run_dir / "checkpoints" / name
    folder.mkdir(parents=True)
    for file, content in FILES.items():
        (folder / file).write_bytes(content)
    manifest = {"files": {file: {"size": len(content)} for file, content in FILES.items()}}
    checksum = zlib.crc32(json.dumps(manifest, sort_keys=True).encode())
    if complete:
        (folder / "manifest.json").write_text(json.dumps({"crc32": checksum, "manifest": manifest}))
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> SweepFolder:
    """A sweep of a run that is done, and one that is not."""
    sweep = SweepFolder(tmp_path / "s")
    config = validate({})
    runs = [Run(name, f"is {name}", replace(config, run_dir=str(sweep.path / name)), Resources()) for name in "ab"]
    sweep.add(runs)
    for run, state in zip(runs, ("done", "stopped"), strict=True):
        run_dir = freeze(run.config)
        (run_dir / "status.json").write_text(json.dumps({"state": state}))
        for name in (OLD, NEW):
            checkpoint(run_dir, name)
    return sweep


def left(folder: SweepFolder, run: str) -> list[str]:
    return sorted(path.name for path in (folder.run_dir(run) / "checkpoints").iterdir())


def told(folder: SweepFolder, capsys: pytest.CaptureFixture[str], code: int = 0, **options: bool) -> dict[str, Any]:
    """What --json says of the run that is done."""
    capsys.readouterr()
    assert clean(folder.path, **({"everything": False, "dry_run": False} | options), as_json=True) == code
    found = json.loads(capsys.readouterr().out)
    assert found["not_done"] == 1
    assert left(folder, "b") == [OLD, NEW]
    (run,) = found["runs"]
    assert found["bytes"] == run["bytes"]
    return run


def size(path: Path) -> int:
    return sum(file.stat().st_size for file in path.iterdir())


# --- what goes -----------------------------------------------------------------------------------------


def test_all_but_the_newest_go(folder, capsys) -> None:
    freed = size(folder.run_dir("a") / "checkpoints" / OLD)
    assert told(folder, capsys) == {
        "id": "a", "label": "is a", "removed": [OLD], "bytes": freed, "kept": NEW, "problem": "",
    }  # fmt: skip
    assert left(folder, "a") == [NEW]
    assert told(folder, capsys)["removed"] == []


def test_what_is_said_for_people(folder, capsys) -> None:
    path, freed = folder.path, size(folder.run_dir("a") / "checkpoints" / OLD)
    stays = "the last of each stays: structlearn export reads it (--all removes it, too)\n"
    assert clean(path, everything=False, dry_run=True, as_json=False) == 0
    said = f"{path}: would free {freed} bytes: 1 checkpoint(s) of 1 run(s) that are done\n{stays}"
    assert capsys.readouterr().out == f"{said}not touched: 1 run(s) that are not done\n"
    assert clean(path, everything=False, dry_run=False, as_json=False) == 0
    assert capsys.readouterr().out.startswith(f"{path}: freed {freed} bytes: 1 checkpoint(s) of 1 run(s)")
    clean(path, everything=True, dry_run=False, as_json=False)
    assert "their networks cannot be exported any more, only trained anew in another run_dir" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 bytes"), (999, "999 bytes"), (1500, "1.5 kB"), (2.5e9, "2.5 GB"), (4e15, "4,000.0 TB")]
)
def test_bytes_for_people(count, text) -> None:
    assert cleaning._bytes(count) == text


def test_a_dry_run_changes_nothing(folder, capsys) -> None:
    before = sorted(folder.path.rglob("*"))
    assert told(folder, capsys, dry_run=True)["removed"] == [OLD]
    assert sorted(folder.path.rglob("*")) == before


def test_all_of_them_go_where_that_is_asked(folder, capsys) -> None:
    found = told(folder, capsys, everything=True)
    assert (found["removed"], found["kept"], left(folder, "a")) == ([OLD, NEW], "", [])
    assert told(folder, capsys)["removed"] == []


def test_what_is_no_checkpoint_any_more_goes_too(folder, capsys) -> None:
    run_dir = folder.run_dir("a")
    checkpoint(run_dir, "damaged-step-000000005-epoch-00000")
    checkpoint(run_dir, "step-r00001-000000009-epoch-00009", complete=False)  # newer, and half removed or half written
    (run_dir / "checkpoints" / "mine.txt").write_text("not a checkpoint")
    assert len(told(folder, capsys)["removed"]) == 3
    assert left(folder, "a") == ["mine.txt", NEW]


def test_a_clean_that_was_broken_off_is_finished(folder, capsys, monkeypatch) -> None:
    monkeypatch.setattr(cleaning.shutil, "rmtree", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        clean(folder.path, everything=True, dry_run=False, as_json=True)
    assert left(folder, "a") == [OLD, NEW]
    monkeypatch.undo()
    assert told(folder, capsys)["removed"] == [OLD]
    assert left(folder, "a") == [NEW]


def test_a_folder_without_checkpoints_is_no_problem(folder, capsys) -> None:
    shutil.rmtree(folder.run_dir("a") / "checkpoints")
    assert told(folder, capsys)["removed"] == []


def test_many_runs(tmp_path, capsys) -> None:
    folder = SweepFolder(tmp_path / "s")
    config = validate({})
    folder.add([Run(f"{number:04}", "same", config, Resources()) for number in range(300)])
    for name in folder.runs():
        for step in (OLD, NEW):
            checkpoint(folder.run_dir(name), step)
        (folder.run_dir(name) / "status.json").write_text('{"state": "done"}')
        if int(name) % 2:
            (folder.run_dir(name) / "checkpoints" / NEW / "shared.h5").unlink()
    assert clean(folder.path, everything=False, dry_run=False, as_json=False) == 1
    said = capsys.readouterr().out
    assert "150 checkpoint(s) of 150 run(s)" in said
    assert "left: of 150 run(s) that are done\n" in said
    assert said.endswith("  and 110 more; --json names them all\n")


# --- what stays ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", ["running", "stopped", "failed", "", None])
def test_a_run_that_is_not_done_is_not_touched(state, folder, capsys) -> None:
    path = folder.run_dir("a") / "status.json"
    path.unlink() if state is None else path.write_text(json.dumps({"state": state}))
    assert clean(folder.path, everything=True, dry_run=False, as_json=True) == 0
    assert json.loads(capsys.readouterr().out) == {
        "folder": str(folder.path), "dry_run": False, "bytes": 0, "runs": [], "not_done": 2,
    }  # fmt: skip
    assert left(folder, "a") == [OLD, NEW]


@pytest.mark.parametrize("dry_run", [False, True])
def test_a_run_whose_folder_is_held_is_not_touched(dry_run, folder, capsys) -> None:
    with (folder.run_dir("a") / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        found = told(folder, capsys, code=1, everything=True, dry_run=dry_run)
    assert found["problem"] == "another process is training in its folder"
    assert left(folder, "a") == [OLD, NEW]


def test_a_run_that_is_started_in_between_is_not_touched(folder, monkeypatch, capsys) -> None:
    answers = iter([True, False, False])  # b comes after a, or before: it is not done either way
    monkeypatch.setattr(cleaning, "_done", lambda run_dir: run_dir.name == "a" and next(answers))
    clean(folder.path, everything=True, dry_run=False, as_json=False)
    assert "freed 0 bytes" in capsys.readouterr().out
    assert left(folder, "a") == [OLD, NEW]


def elsewhere(path: Path) -> Path:
    """Moves something away, and leaves a link."""
    target = path.with_name(f"{path.name}.x")
    path.rename(target)
    path.symlink_to(target)
    return target


@pytest.mark.parametrize("what", ["", "checkpoints", f"checkpoints/{OLD}", f"checkpoints/{NEW}"])
def test_links_are_not_followed(what, folder, capsys) -> None:
    target = elsewhere(folder.run_dir("a") / what)
    before = sorted(target.rglob("*"))
    found = told(folder, capsys, code=1, everything=True)
    assert "link to elsewhere" in found["problem"]
    assert (found["removed"], found["bytes"]) == ([], 0)
    assert sorted(path for path in target.rglob("*") if path.name != ".lock") == before


def test_what_a_link_in_a_checkpoint_leads_to_stays(folder, tmp_path, capsys) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "data").write_bytes(bytes(10_000))
    old = folder.run_dir("a") / "checkpoints" / OLD
    (old / "link").symlink_to(mine)
    (old / "file").symlink_to(mine / "data")
    assert told(folder, capsys)["bytes"] < 10_000
    assert (left(folder, "a"), (mine / "data").stat().st_size) == ([NEW], 10_000)


def test_a_lock_that_is_a_link_is_not_written_through(folder, tmp_path, capsys) -> None:
    (folder.run_dir("a") / ".lock").symlink_to(tmp_path / "made")
    assert ".lock" in told(folder, capsys, code=1)["problem"]
    assert not (tmp_path / "made").exists()


def test_a_name_that_leads_out_of_the_folder_is_no_run(folder, tmp_path, capsys) -> None:
    other = tmp_path / "other"
    checkpoint(other, OLD)
    (other / "status.json").write_text('{"state": "done"}')
    listed = json.loads((folder.own / "runs.json").read_text())
    listed["runs"] = {"../other": listed["runs"]["a"], "b": listed["runs"]["b"]}
    (folder.own / "runs.json").write_text(json.dumps(listed))
    assert "link to elsewhere" in told(folder, capsys, code=1, everything=True)["problem"]
    assert (other / "checkpoints" / OLD / "shared.h5").exists()


def shorten(path: Path) -> None:
    (path / "rank-0000.h5").write_bytes(b"short")


def alter(path: Path) -> None:
    whole = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(json.dumps(whole | {"crc32": 7}))


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (shorten, "(rank-0000.h5 has 5 bytes of 100)"),
        (lambda path: (path / "shared.h5").unlink(), "shared.h5: No such file or directory)"),
        (lambda path: (path / "manifest.json").write_text("{}"), "(manifest.json is none: KeyError('manifest'))"),
        (lambda path: (path / "manifest.json").write_text("{"), "(manifest.json is none: "),
        (alter, "(manifest.json was altered)"),
    ],
)
def test_older_ones_stay_where_the_newest_is_damaged(damage, reason, folder, capsys) -> None:
    damage(folder.run_dir("a") / "checkpoints" / NEW)
    found = told(folder, capsys, code=1)
    assert reason in found["problem"]
    assert left(folder, "a") == [OLD, NEW]
    told(folder, capsys, everything=True)
    assert left(folder, "a") == []


def test_what_cannot_be_removed_is_named(folder, capsys, monkeypatch) -> None:
    def refuse(path: Path) -> None:
        (path / "shared.h5").unlink()
        raise PermissionError(13, "Permission denied", str(path / "rank-0000.h5"))

    monkeypatch.setattr(cleaning.shutil, "rmtree", refuse)
    manifest = (folder.run_dir("a") / "checkpoints" / OLD / "manifest.json").stat().st_size
    found = told(folder, capsys, code=1)
    assert found["problem"].endswith("rank-0000.h5: Permission denied")
    assert (found["removed"], found["bytes"], found["kept"]) == ([], 300 + manifest, NEW)


def test_a_folder_without_a_sweep(folder) -> None:
    with pytest.raises(ConfigError, match="holds no sweep"):
        clean(folder.run_dir("a"), everything=False, dry_run=False, as_json=False)


# --- afterwards ----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_run_stays_done(tmp_path, capsys, monkeypatch) -> None:
    """Trained, cleaned, and then submitted, looked at, exported and trained again."""
    pytest.importorskip("safetensors")
    values = {"run_dir": str(tmp_path / "s"), "epochs": 2, "data": {"name": "digits", "train_size": 200}}
    sweep = tmp_path / "sweep.yaml"
    sweep.write_text(yamls.dump(values | {"sweep": {"seeds": 1}}))
    submit(sweep, [], "debug", dry_run=False, as_json=False)
    folder = SweepFolder(tmp_path / "s")
    run_dir = folder.run_dir(next(iter(folder.runs())))

    def call(*arguments: str) -> tuple[int, str, str]:
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", ["structlearn", *arguments])
        with pytest.raises(SystemExit) as end:
            main()
        shown = capsys.readouterr()
        return int(end.value.code or 0), shown.out, shown.err

    config, net = str(run_dir / "config.yaml"), str(tmp_path / "net")
    export = ("export", str(run_dir), "--format", "safetensors", "--out", net)
    for options in ([], ["--all"]):
        record = (run_dir / "record.h5").read_bytes()
        code, out, _ = call("clean", str(folder.path), *options)
        assert (code, "1 checkpoint(s) of 1 run(s)" in out) == (0, True)
        assert "nothing is to be submitted" in call("submit", str(sweep), "--cluster", "debug")[1]
        assert json.loads(call("status", str(folder.path), "--json")[1])["counts"] == {"done": 1}
        for way in ([], ["--ranks", "2"]) if options else ([],):
            code, out, err = call("train", config, "--json", "--progress", "plain", *way)
            summary = json.loads(out)
            assert (code, summary["state"], summary["epochs"], summary["ended_by"]) == (0, "done", 2, "epochs")
            assert ("was done" if not options else "the run is done, and has no checkpoint any more") in err
        code, _, err = call(*export)
        assert code == (1 if options else 0)
    assert "the run is done, but its last checkpoint was removed, and the network with it" in err
    assert list((run_dir / "checkpoints").iterdir()) == []
    assert (run_dir / "record.h5").read_bytes() == record
    assert call("train", config)[0] == 0
    assert call("train", config, "--epochs", "3")[0] == 2  # another run
