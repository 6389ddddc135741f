"""A sweep in one file: nothing is lost, what is missing is named, and analysis cannot tell it from the folder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from hpc.config.folder import freeze
from hpc.config.read import to_yaml, validate
from hpc.errors import ConfigError, RunError
from jobs import collected
from jobs.attempts import Attempt, note
from jobs.collect import collect
from jobs.resources import Resources
from jobs.sweep import Run
from jobs.sweepfolder import Submission, SweepFolder

COLUMNS = {
    "epochs": {
        "epoch": int, "step": int, "seconds": float, "train_loss": float, "valid_loss": float, "valid_accuracy": float,
        "test_loss": float, "test_accuracy": float, "parameters": int, "lr": float,
    },
    "exchange": {
        "rank": int, "sent": int, "received": int, "skipped": int, "bytes_sent": int, "mass": float,
        "seconds_blocked": float,
    },
    "profile": dict.fromkeys(
        ("data", "forward", "backward", "optimizer", "exchange", "evaluate", "checkpoint"), float
    ),
}  # fmt: skip


def write_record(path: Path, run: Run, epochs: int, state: str = "done", **options: Any) -> None:
    """A record as a run writes it."""
    rng = np.random.default_rng(run.config.seed)
    with h5py.File(path, "w", libver=("v110", "v110")) as file:
        texts = {"run_id": f"of-{run.id}", "config": to_yaml(run.config), "versions": '{"python": "3"}'}
        texts |= {"state": state, "ended_by": "epochs" if state == "done" else ""}
        file.attrs["schema_version"], file.attrs["world_size"], file.attrs["answer_epoch"] = 1, 2, epochs
        for name, text in texts.items():
            file.attrs[name] = np.bytes_(text.encode())
        for group, columns in COLUMNS.items():
            rows = 2 if group == "exchange" else epochs
            for name, kind in columns.items():
                values = np.arange(1, rows + 1) if kind is int else rng.random(rows)
                file.create_dataset(f"{group}/{name}", data=values, **({"fletcher32": True} | options))
        file["epochs/lr"].attrs["unit"] = np.bytes_(b"none")


@pytest.fixture
def folder(tmp_path: Path) -> SweepFolder:
    """A sweep whose runs are of all kinds: run10 has never begun."""
    sweep = SweepFolder(tmp_path / "rates.v2")
    config = validate({"epochs": 3})
    names = [f"run{number}" for number in (2, 1, 3, 4, 5, 6, 7, 8, 10)]
    runs = [
        Run(name, f"lr={number}", replace(config, run_dir=str(sweep.path / name), seed=number), Resources())
        for number, name in enumerate(names)
    ]
    sweep.add(runs)
    sweep.note(Submission(1.0, "debug", {f"debug-{run.id}": [run.id] for run in runs}))
    for run in runs[:-1]:
        freeze(run.config)
    for run in runs[:4]:
        write_record(sweep.run_dir(run.id) / "record.h5", run, 3)
        status(sweep, run.id, state="done", epoch=3, epochs=3)
        note(sweep.run_dir(run.id), Attempt("1", 0, 1, 75, "stopped", "a signal, naïve"))
        note(sweep.run_dir(run.id), Attempt("2", 1, 2, 0, "done"))
    write_record(sweep.run_dir("run5") / "record.h5", runs[4], 2, "running", compression="gzip", chunks=(2,))
    status(sweep, "run5", state="failed", epoch=2, epochs=3, error="rank 1: it broke\nand more")
    write_record(sweep.run_dir("run6") / "record.h5", runs[5], 1, "stopped")
    status(sweep, "run6", state="stopped", epoch=1, epochs=3)
    status(sweep, "run7", state="failed", epochs=3, error="no data")  # before its first record
    write_record(sweep.run_dir("run8") / "record.h5", runs[7], 3)
    status(sweep, "run8", state="done", epoch=3, epochs=3)
    return sweep


def status(sweep: SweepFolder, run: str, **values: Any) -> None:
    (sweep.run_dir(run) / "status.json").write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-200])


def told(folder: SweepFolder, out: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """What --json says of a sweep in which something is missing."""
    capsys.readouterr()
    assert collect(folder.path, out, as_json=True) == 1
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def assert_same(ours: Any, theirs: Any) -> None:
    """Equal in everything that h5py shows: values, types, layout, filters, attributes; and in what is below."""
    assert dict(ours.attrs).keys() == dict(theirs.attrs).keys()
    for name, value in theirs.attrs.items():
        assert ours.attrs[name] == value
        assert ours.attrs.get_id(name).dtype == theirs.attrs.get_id(name).dtype
    if isinstance(theirs, h5py.Dataset):
        np.testing.assert_array_equal(ours[()], theirs[()])
        for name in (
            "dtype",
            "shape",
            "maxshape",
            "chunks",
            "compression",
            "compression_opts",
            "fletcher32",
            "shuffle",
        ):
            assert getattr(ours, name) == getattr(theirs, name), (theirs.name, name)
        return
    assert list(ours) == list(theirs)
    for name in theirs:
        assert_same(ours[name], theirs[name])


# --- what is in the file -------------------------------------------------------------------------------


def test_every_record_is_there_as_it_was(folder, tmp_path, capsys) -> None:
    said = told(folder, tmp_path / "all.h5", capsys)
    assert (said["runs"], said["records"]) == (9, 7)
    with h5py.File(tmp_path / "all.h5", "r") as file:
        for name in ("run1", "run2", "run5", "run6"):
            with h5py.File(folder.run_dir(name) / "record.h5", "r") as record:
                assert_same(file[name]["record.h5"], record["/"])


def test_what_belongs_to_a_run_is_beside_its_record(folder, tmp_path) -> None:
    collect(folder.path, tmp_path / "all.h5", as_json=False)
    with h5py.File(tmp_path / "all.h5", "r") as file:
        group = file["run1"]
        starts = [json.loads(line) for line in group["attempts.jsonl"]]
        assert [(start["how"], start["reason"]) for start in starts] == [("stopped", "a signal, naïve"), ("done", "")]
        for name in ("config.yaml", "status.json", "attempts.jsonl"):
            assert b"\n".join(group[name][()]) + b"\n" == (folder.run_dir("run1") / name).read_bytes()
        for name in ("runs.json", "submissions.jsonl"):
            assert b"\n".join(file["sweep"][name][()]) + b"\n" == (folder.own / name).read_bytes()
        assert (group.attrs["label"], group.attrs["state"], group.attrs["reason"]) == (b"lr=1", b"done", b"")
        assert group.attrs["bytes"] == (folder.run_dir("run1") / "record.h5").stat().st_size
        assert file["run5"].attrs["error"] == b"rank 1: it broke"


def test_the_table_has_all_runs_in_their_order(folder, tmp_path) -> None:
    cut(folder.run_dir("run8") / "record.h5")
    collect(folder.path, tmp_path / "all.h5", as_json=False)
    with h5py.File(tmp_path / "all.h5", "r") as file:
        table = {name: column[()].tolist() for name, column in file["sweep/runs"].items()}
    assert table["id"] == [b"run2", b"run1", b"run3", b"run4", b"run5", b"run6", b"run7", b"run8", b"run10"]
    assert table["state"] == [*[b"done"] * 4, b"failed", b"stopped", b"failed", b"done", b"new"]
    assert table["record"] == [*[b"here"] * 6, b"missing", b"unreadable", b"missing"]
    assert table["epoch"] == [3, 3, 3, 3, 2, 1, 0, 3, 0]
    assert table["reason"][:7] == [
        *[b""] * 4, b"as far as epoch 2 of 3: rank 1: it broke", b"as far as epoch 1 of 3", b"no record: no data",
    ]  # fmt: skip
    assert table["reason"][7].startswith(b"record.h5 cannot be read (Unable to")
    assert table["reason"][8] == b"no record"


# --- what is missing -----------------------------------------------------------------------------------


def damaged_data(path: Path) -> None:
    """A column whose checksum does not fit."""
    with h5py.File(path, "r") as file:
        place = file["epochs/test_loss"].id.get_chunk_info(0).byte_offset
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def foreign(path: Path) -> None:
    path.unlink()
    with h5py.File(path, "w") as file:
        file["x"] = 1


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (cut, "record.h5 cannot be read (Unable to synchronously open file"),
        (lambda path: path.write_bytes(b""), "record.h5 cannot be read ("),
        (lambda path: path.write_text("no HDF5, but a text that is longer"), "record.h5 cannot be read ("),
        (damaged_data, "record.h5 cannot be read ("),
        (foreign, "record.h5 cannot be read (an HDF5 file of something else"),
        (Path.unlink, "no record"),
        (pipe, "record.h5 cannot be read (no plain file)"),
    ],
)
def test_a_record_that_cannot_be_read_is_named_and_the_others_are_there(
    damage, reason, folder, tmp_path, capsys
) -> None:
    damage(folder.run_dir("run8") / "record.h5")
    said = told(folder, tmp_path / "all.h5", capsys)
    (run8,) = [each for each in said["missing"] if each["id"] == "run8"]
    missing = "missing" if damage is Path.unlink else "unreadable"
    assert (run8["state"], run8["record"], run8["label"]) == ("done", missing, "lr=7")
    assert run8["reason"].startswith(reason)
    assert said["records"] == 6
    with h5py.File(tmp_path / "all.h5", "r") as file:
        assert "record.h5" not in file["run8"]
        assert file["run1/record.h5/epochs/epoch"][:].tolist() == [1, 2, 3]


def test_what_is_missing_is_told_and_is_the_exit_code(folder, tmp_path, capsys) -> None:
    (folder.path / "by_hand").mkdir()
    (folder.run_dir("run1") / "record.h5").rename(folder.path / "by_hand" / "record.h5")
    out = tmp_path / "all.h5"
    assert collect(folder.path, out, as_json=False) == 1
    assert capsys.readouterr().out == (
        f"{out}: 6 of 9 records, {out.stat().st_size:,} bytes\n"
        "without a record: 3 run(s)\n"
        "  run1  lr=1  done  no record\n"
        "  run7  lr=6  failed  no record: no data\n"
        "  run10  lr=8  new  no record\n"
        "not done: 2 run(s)\n"
        "  run5  lr=4  failed  as far as epoch 2 of 3: rank 1: it broke\n"
        "  run6  lr=5  stopped  as far as epoch 1 of 3\n"
        "left out, for the sweep does not know them: by_hand\n"
    )


def test_a_whole_sweep_is_a_success_and_lies_beside_its_folder(folder, tmp_path, capsys, monkeypatch) -> None:
    path = folder.own / "runs.json"
    listed = json.loads(path.read_text())["runs"]
    path.write_text(json.dumps({"runs": {name: listed[name] for name in ("run1", "run2")}}))
    for name in ("run3", "run4", "run5", "run6", "run8"):
        (folder.run_dir(name) / "record.h5").unlink()
    assert collect(folder.path, None, as_json=False) == 0
    out = tmp_path / "rates.v2.h5"
    assert capsys.readouterr().out == f"{out}: 2 of 2 records, {out.stat().st_size:,} bytes\n"
    monkeypatch.chdir(folder.path)
    out.unlink()
    assert collect(Path(), None, as_json=False) == 0
    assert out.exists()


def test_many_runs_are_named_in_the_file(tmp_path, capsys) -> None:
    folder = SweepFolder(tmp_path / "s")
    config = validate({})
    folder.add([Run(f"{number:03}", "same", config, Resources()) for number in range(150)])
    assert collect(folder.path, None, as_json=False) == 1
    assert "  and 110 more; --json and the file's /sweep/runs name them all\n" in capsys.readouterr().out
    assert len(told(folder, tmp_path / "s.h5", capsys)["missing"]) == 150
    with h5py.File(tmp_path / "s.h5", "r") as file:
        assert len(file["sweep/runs/id"]) == 150


# --- while a run is being written ----------------------------------------------------------------------

WRITER = """
import sys, time
import h5py, numpy as np
path, mode = sys.argv[1:]
with h5py.File(path, "r") as file:
    content = {name: file[name][()] for group in file for name in [f"{group}/{each}" for each in file[group]]}
    attributes = dict(file.attrs)
with h5py.File(path, "w", libver="latest") as file:
    for name, value in attributes.items():
        file.attrs[name] = value
    columns = {
        name: file.create_dataset(name, data=values, maxshape=(None,), chunks=(64,), fletcher32=True)
        for name, values in content.items()
    }
    if mode == "swmr":
        file.swmr_mode = True
    file.flush()
    print("begun", flush=True)
    for row in range(100_000):
        for name, column in columns.items():
            if name.startswith("epochs"):
                column.resize((len(column) + 1,))
                column[-1] = len(column)
                column.flush()
        if mode == "plain":
            file.flush()
        time.sleep(0.001)
"""


@pytest.fixture
def writing(folder):
    """Starts a process that has the record of run6 open, and adds to it."""
    started = []

    def start(mode: str) -> None:
        line = [sys.executable, "-c", WRITER, str(folder.run_dir("run6") / "record.h5"), mode]
        started.append(subprocess.Popen(line, stdout=subprocess.PIPE, text=True))
        assert started[0].stdout.readline() == "begun\n"
        status(folder, "run6", state="running", epoch=1, epochs=3, heartbeat=2e9)

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_a_record_that_grows_is_copied_as_far_as_it_is(folder, tmp_path, capsys, writing) -> None:
    writing("swmr")
    lengths = []
    for _ in range(5):
        said = told(folder, tmp_path / "all.h5", capsys)
        (run6,) = [each for each in said["missing"] if each["id"] == "run6"]
        assert (run6["state"], run6["record"], run6["reason"]) == ("running", "here", "as far as epoch 1 of 3")
        with h5py.File(tmp_path / "all.h5", "r") as file:
            epoch = file["run6/record.h5/epochs/epoch"][:]
            assert epoch.tolist() == list(range(1, len(epoch) + 1))
            assert all(np.all(column[1:] > 0) for column in file["run6/record.h5/epochs"].values())
            assert file["run6/record.h5"].attrs["state"] == b"stopped"
            assert file["run6"].attrs["state"] == b"running"
        lengths.append(len(epoch))
    assert lengths == sorted(lengths)


def test_a_record_that_cannot_be_copied_while_it_grows_is_named(folder, tmp_path, capsys, writing) -> None:
    writing("plain")
    said = told(folder, tmp_path / "all.h5", capsys)
    (run6,) = [each for each in said["missing"] if each["id"] == "run6"]
    assert (run6["state"], run6["record"]) == ("running", "unreadable")
    assert "cannot be read" in run6["reason"]
    assert said["records"] == 6


# --- where it goes -------------------------------------------------------------------------------------


def test_collecting_again_replaces_the_file(folder, tmp_path, capsys) -> None:
    out = tmp_path / "new" / "all.h5"
    assert told(folder, out, capsys)["records"] == 7
    (folder.run_dir("run8") / "record.h5").unlink()
    assert told(folder, out, capsys)["records"] == 6
    assert [path.name for path in out.parent.iterdir()] == ["all.h5"]


def test_a_collecting_that_is_broken_off_leaves_the_file_as_it_was(folder, tmp_path, monkeypatch) -> None:
    out = tmp_path / "new" / "all.h5"
    collect(folder.path, out, as_json=False)
    before = out.read_bytes()
    monkeypatch.setattr(collected, "_put_table", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        collect(folder.path, out, as_json=False)
    assert out.read_bytes() == before
    assert [path.name for path in out.parent.iterdir()] == ["all.h5"]


def test_places_that_cannot_take_the_file(folder, tmp_path) -> None:
    with pytest.raises(ConfigError, match=r"--out: .* is a folder; give the name of a file, such as .*records\.h5"):
        collect(folder.path, tmp_path, as_json=False)
    record = folder.run_dir("run1") / "record.h5"
    before = record.read_bytes()
    with pytest.raises(ConfigError, match="is there and was not written by collect; choose another name, or remove it"):
        collect(folder.path, record, as_json=False)
    assert record.read_bytes() == before
    with pytest.raises(RunError, match=r"cannot be written \(.*\); make room there, or choose another --out"):
        collect(folder.path, record / "all.h5", as_json=False)
    with pytest.raises(ConfigError, match="holds no sweep"):
        collect(folder.run_dir("run1"), None, as_json=False)


def test_a_full_disk_is_told_and_leaves_nothing(folder, tmp_path, monkeypatch) -> None:
    import resource

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        with pytest.raises(RunError, match=r"all\.h5 cannot be written \(File too large\)"):
            collect(folder.path, tmp_path / "new" / "all.h5", as_json=False)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list((tmp_path / "new").iterdir()) == []


# --- analysis ------------------------------------------------------------------------------------------


@pytest.fixture
def load() -> Any:
    pytest.importorskip("pandas")
    from analysis import load

    return load


def frames(records: Any) -> dict[str, Any]:
    found = {field.name: getattr(records, field.name) for field in fields(records)}
    return {name: value for name, value in found.items() if name not in {"name", "problems"}}


def test_analysis_reads_the_file_as_it_reads_the_folder(folder, tmp_path, load) -> None:
    import pandas as pd

    cut(folder.run_dir("run8") / "record.h5")
    collect(folder.path, tmp_path / "rates.v2.h5", as_json=False)
    theirs, ours = load(folder.path), load(tmp_path / "rates.v2.h5")
    assert ours.runs["run"].tolist() == ["run1", "run2", "run3", "run4", "run5", "run6"]
    assert ours.runs["state"].tolist() == ["done"] * 4 + ["failed", "stopped"]
    for name, frame in frames(theirs).items():
        pd.testing.assert_frame_equal(getattr(ours, name), frame)
    assert ours.name == theirs.name == "rates.v2"
    assert [problem.path.relative_to(tmp_path / "rates.v2.h5") for problem in ours.problems] == [
        problem.path.relative_to(folder.path) for problem in theirs.problems
    ]
    lost, damaged = ours.problems
    assert lost.got == theirs.problems[0].got == "no record; status.json says: failed (no data)"
    assert damaged.got.startswith("left out when it was collected: record.h5 cannot be read (")


@pytest.mark.slow
def test_a_report_of_the_file_is_that_of_the_folder(folder, tmp_path, load) -> None:
    pytest.importorskip("matplotlib")
    from analysis.report import report

    (folder.run_dir("run7") / "status.json").unlink()
    collect(folder.path, tmp_path / "rates.v2.h5", as_json=False)
    ours = report(tmp_path / "rates.v2.h5", tmp_path / "ours").parent
    theirs = report(folder.path, tmp_path / "theirs").parent
    assert sorted(path.name for path in ours.iterdir()) == sorted(path.name for path in theirs.iterdir())
    for path in theirs.iterdir():
        if path.suffix != ".pdf":
            assert (ours / path.name).read_bytes() == path.read_bytes(), path.name


def test_files_and_folders_are_loaded_together(folder, tmp_path, load, monkeypatch) -> None:
    other = SweepFolder(tmp_path / "other")
    run = Run("run1", "", replace(validate({}), run_dir=str(other.run_dir("run1")), seed=9), Resources())
    freeze(run.config)
    write_record(other.run_dir("run1") / "record.h5", run, 2)
    (folder.run_dir("run8") / "record.h5").unlink()
    collect(folder.path, tmp_path / "rates.h5", as_json=False)
    monkeypatch.chdir(tmp_path)
    both = load(["rates.h5", tmp_path / "other"])
    assert both.name == tmp_path.name
    assert both.runs["run"].tolist() == [*[f"rates.h5/run{number}" for number in range(1, 7)], "other/run1"]
    assert both.epochs.groupby("run")["epoch"].count()["other/run1"] == 2
    twice = load(["rates.h5", folder.path])  # the same runs again
    assert len(twice.runs) == 6
    assert next(problem.got for problem in twice.problems if "a copy of" in problem.got).endswith("run1/record.h5")
    alone = load([tmp_path / "other"])
    assert alone.runs["run"].tolist() == ["run1"]


def test_files_that_analysis_does_not_take(folder, tmp_path, load) -> None:
    from analysis import RecordError

    out = tmp_path / "all.h5"
    collect(folder.path, out, as_json=False)
    with pytest.raises(RecordError, match=r"all\.h5/run7/record\.h5: no record; status\.json says: failed \(no data\)"):
        load(out, strict=True)
    with h5py.File(out, "r+") as file:
        file.attrs["collected_version"] = 2
    with pytest.raises(RecordError, match="collected_version 2; allowed: 1; read it with the version"):
        load(out)
    empty = SweepFolder(tmp_path / "empty")
    empty.add([Run("a", "", validate({}), Resources())])
    collect(empty.path, None, as_json=False)
    with pytest.raises(RecordError, match="a collected file without any record; its table names 1 runs"):
        load(tmp_path / "empty.h5")
    cut(out)
    with pytest.raises(RecordError, match="not readable as HDF5"):
        load(out)


@pytest.mark.slow
def test_a_damaged_file_is_refused_and_never_read_wrong(folder, tmp_path, load) -> None:
    from analysis import RecordError

    out = tmp_path / "all.h5"
    collect(folder.path, out, as_json=False)
    content, whole = out.read_bytes(), load(out)
    refused = 0
    for place in range(0, len(content), 997):
        damaged = bytearray(content)
        damaged[place] ^= 1 << place % 8
        out.write_bytes(damaged)
        try:
            found = load(out)
        except RecordError:
            refused += 1
            continue
        bad = {problem.path.parent.name for problem in found.problems}
        refused += len(bad) > 1
        for name, frame in frames(found).items():  # a byte that nothing hangs on
            expected = frames(whole)[name]
            expected = expected[~expected["run"].isin(bad)].reset_index(drop=True)
            assert frame.astype(object).equals(expected.astype(object)), (place, name)
    assert refused > len(content) / 997 / 4


def test_writer_and_reader_agree_on_names() -> None:
    pytest.importorskip("pandas")
    from analysis import schema
    from hpc.config.folder import RECORD, STATUS

    assert (collected.MARK, RECORD, STATUS) == (schema.COLLECTED, schema.RECORD, schema.STATUS)
    assert collected.VERSION in schema.COLLECTED_VERSIONS
