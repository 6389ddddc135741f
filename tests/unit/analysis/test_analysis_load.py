"""Reading: what comes out of good files, and what is said about bad ones."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
import pandas as pd
import pytest

from analysis import RecordError, load
from analysis.load import flatten
from analysis.places import natural
from analysis.schema import OPTIONAL, REQUIRED

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Make = Callable[..., Any]


def test_one_run_can_be_given_as_folder_file_or_parent(tmp_path: Path, write_run: Make) -> None:
    file = write_run(tmp_path / "sweep" / "a")
    assert load(file).runs["run"].tolist() == ["a"]
    assert load(file.parent).runs["run"].tolist() == ["a"]
    assert load(str(tmp_path)).runs["run"].tolist() == ["sweep/a"]
    assert load(tmp_path).runs["path"].tolist() == ["sweep/a"]


def test_a_run_is_one_row_with_its_last_and_best_values(
    tmp_path: Path,
    write_run: Make,
    columns_of: Make,
) -> None:
    columns = columns_of(5, 0, 0.4, 2)
    columns["epochs"]["valid_accuracy"] = np.array([0.5, 0.9, 0.7, 0.8, 0.6])
    columns["epochs"]["test_accuracy"] = np.array([0.4, np.nan, 0.8, np.nan, np.nan])
    columns["epochs"]["test_loss"] = np.array([1.4, np.nan, 0.3, np.nan, np.nan])
    write_run(tmp_path / "a", columns=columns)
    run = load(tmp_path / "a").runs.iloc[0]
    assert (run["run_id"], run["state"], run["ended_by"], run["world_size"]) == ("id-a", "done", "epochs", 2)
    assert (run["epochs"], run["steps"], run["parameters"]) == (5, 200, 6570)
    assert (run["valid_accuracy"], run["best_epoch"]) == (0.6, 2)
    assert (run["test_accuracy"], run["test_loss"], run["test_epoch"]) == (0.8, 0.3, 3)
    assert run["samples_per_second"] == pytest.approx(200 * 32 * 2 / (5 * 1.25))


def test_the_best_epoch_of_a_regression_is_that_of_the_lowest_loss(
    tmp_path: Path,
    write_run: Make,
    columns_of: Make,
) -> None:
    columns = columns_of(4, 0, 0.4, 1)
    columns["epochs"]["valid_accuracy"][:] = np.nan
    columns["epochs"]["valid_loss"] = np.array([3.0, np.nan, 1.0, np.inf])
    write_run(tmp_path / "a", columns=columns, world=1)
    assert load(tmp_path / "a").runs["best_epoch"].tolist() == [3]


def test_config_is_flattened_and_keeps_null_apart_from_absent(tmp_path: Path, write_run: Make, config_of: Make) -> None:
    write_run(tmp_path / "a", config=config_of())
    write_run(tmp_path / "b", config=config_of(optimizer={"name": "adam", "lr": 1}))
    runs = load(tmp_path).runs.set_index("run")
    assert runs["config.model.name"].tolist() == ["mlp", "mlp"]
    assert runs.loc["a", "config.model.widths"] == "[64, 32]"
    assert runs.loc["a", "config.data.train_size"] is None
    assert np.isnan(runs.loc["b", "config.optimizer.momentum"])
    assert isinstance(runs.loc["b", "config.optimizer.lr"], int)


def test_lists_of_mappings_are_flattened_by_place() -> None:
    config = {"penalties": [{"name": "l1", "strength": 0.1}, {"name": "l2"}], "rest": []}
    assert flatten(config) == {
        "penalties.0.name": "l1",
        "penalties.0.strength": 0.1,
        "penalties.1.name": "l2",
        "rest": "[]",
    }


def test_frames_are_tidy_typed_and_in_natural_order(tmp_path: Path, write_run: Make) -> None:
    for number in (10, 2, 1):
        write_run(tmp_path / f"run{number}", epochs=number)
    records = load(tmp_path)
    assert records.runs["run"].tolist() == ["run1", "run2", "run10"]
    assert records.epochs.groupby("run")["epoch"].max().to_dict() == {"run1": 1, "run2": 2, "run10": 10}
    assert records.exchange.columns.tolist() == ["run", *REQUIRED["exchange"]]
    assert records.epochs["epoch"].dtype == "int64"
    assert records.profile["epoch"].tolist() == records.epochs["epoch"].tolist()
    assert records.steps.columns.tolist() == ["run", *OPTIONAL["steps"]]
    assert len(records.steps) == 0
    assert natural("run10") > natural("run2")


def test_optional_groups_are_read_where_they_are(tmp_path: Path, write_run: Make) -> None:
    file = write_run(tmp_path / "a", epochs=2)
    write_run(tmp_path / "b", epochs=2)
    with h5py.File(file, "a") as handle:
        handle["steps/step"], handle["steps/loss"] = np.arange(3), np.ones(3)
        handle["consensus/step"], handle["consensus/error"] = np.arange(2), np.zeros(2)
        handle["structure/widths"] = np.array([[8, 4], [6, 3]])
        handle["structure/layers"] = ["hidden.0", "hidden.1"]
        handle["alrao/posterior"], handle["alrao/step"] = np.array([[0.25, 0.75]]), np.array([7])
        handle["alrao/heads_lost"], handle["alrao/units_lost"] = np.array([1]), np.array([3])
        handle["alrao/rates/hidden.0"] = np.array([0.1, 0.2, 0.3])
    records = load(tmp_path)
    assert records.steps["run"].tolist() == ["a"] * 3
    assert records.consensus["error"].tolist() == [0, 0]
    widths = records.structure.set_index(["epoch", "layer"])["width"]
    assert widths[(2, "hidden.1")] == 3
    assert records.alrao[["step", "head", "probability"]].to_numpy().tolist() == [[7, 0, 0.25], [7, 1, 0.75]]
    assert records.heads_and_units[["step", "heads_lost", "units_lost"]].to_numpy().tolist() == [[7, 1, 3]]
    assert records.rates["rate"].tolist() == [0.1, 0.2, 0.3]


def test_groups_and_columns_of_a_later_writer_are_left_alone(tmp_path: Path, write_run: Make) -> None:
    file = write_run(tmp_path / "a")
    with h5py.File(file, "a") as handle:
        handle["novelty/x"] = np.arange(3)
        handle["epochs/novelty"] = np.arange(7)
    assert "novelty" not in load(file).epochs


def test_a_run_without_an_epoch_is_a_row(tmp_path: Path, write_run: Make) -> None:
    write_run(tmp_path / "a", epochs=0, state="running", ended_by="")
    run = load(tmp_path / "a").runs.iloc[0]
    assert (run["epochs"], run["steps"]) == (0, 0)
    assert run[["parameters", "test_loss", "best_epoch", "seconds", "samples_per_second"]].isna().all()


def _set(key: str, value: Any) -> Callable[[h5py.File], Any]:
    return lambda handle: handle.attrs.__setitem__(key, value)


def _put(key: str, value: Any) -> Callable[[h5py.File], Any]:
    def change(handle: h5py.File) -> None:
        del handle[key]
        if value is not None:
            handle[key] = value

    return change


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (_set("schema_version", 9), "schema_version 9; allowed: 1"),
        (lambda handle: handle.attrs.pop("schema_version"), "without the attribute schema_version"),
        (lambda handle: handle.attrs.pop("world_size"), "attribute world_size: nothing"),
        (_set("run_id", 3), "attribute run_id: int 3; allowed: a value of type str"),
        (_set("state", "asleep"), "'asleep'; allowed: running, done, stopped, failed"),
        (_set("config", "a: [1"), "attribute config does not parse"),
        (_set("config", "[1]"), "attribute config holds list; allowed: a mapping"),
        (_set("versions", "{"), "attribute versions does not parse"),
        (_put("epochs/lr", None), "no dataset /epochs/lr"),
        (_put("exchange", None), "no group /exchange"),
        (_put("epochs/step", np.ones(3)), "/epochs/step of shape (3,) and type float64"),
        (_put("epochs/lr", np.ones((3, 1))), "/epochs/lr of shape (3, 1)"),
        (_put("epochs/lr", np.ones(2)), "unequal length"),
        (_put("epochs/epoch", np.array([1, 2, 2])), "does not increase"),
    ],
)
def test_a_bad_record_is_named_with_what_is_wrong_and_what_to_do(
    tmp_path: Path, write_run: Make, change: Callable[[h5py.File], Any], expected: str
) -> None:
    file = write_run(tmp_path / "a")
    with h5py.File(file, "a") as handle:
        change(handle)
    with pytest.raises(RecordError) as caught:
        load(tmp_path / "a")
    text = str(caught.value)
    assert text.startswith(f"{file}: ")
    assert expected in text
    assert "\n" not in text
    assert text.count(";") >= 2
    assert caught.value.path == file


def test_more_profile_rows_than_epochs_are_refused_and_fewer_are_not(
    tmp_path: Path,
    write_run: Make,
    columns_of: Make,
) -> None:
    long, short = columns_of(3, 0, 0.4, 1), columns_of(3, 0, 0.4, 1)
    long["profile"] = columns_of(4, 0, 0.4, 1)["profile"]
    short["profile"] = columns_of(2, 0, 0.4, 1)["profile"]
    write_run(tmp_path / "long", columns=long, world=1)
    write_run(tmp_path / "short", columns=short, world=1)
    assert load(tmp_path / "short").profile["epoch"].tolist() == [1, 2]
    with pytest.raises(RecordError, match="/profile has more rows than the 3"):
        load(tmp_path / "long")


def test_widths_that_fit_no_layer_are_refused(tmp_path: Path, write_run: Make) -> None:
    file = write_run(tmp_path / "a")
    with h5py.File(file, "a") as handle:
        handle["structure/widths"], handle["structure/layers"] = np.ones((3, 2), int), ["one"]
    with pytest.raises(RecordError, match="one name for each layer"):
        load(file)


def test_a_posterior_without_its_steps_is_refused(tmp_path: Path, write_run: Make) -> None:
    file = write_run(tmp_path / "a")
    with h5py.File(file, "a") as handle:
        handle["alrao/posterior"], handle["alrao/step"] = np.ones((3, 2)), np.arange(2)
        handle["alrao/heads_lost"], handle["alrao/units_lost"] = np.arange(3), np.arange(3)
    with pytest.raises(RecordError, match="/alrao/posterior has 3 rows"):
        load(file)


def test_a_foreign_file_is_an_error_of_ours(tmp_path: Path, write_run: Make) -> None:
    file = write_run(tmp_path / "a")
    file.write_text("no HDF5 at all")
    with pytest.raises(RecordError, match="not readable"):
        load(file)


def test_a_file_cut_anywhere_is_an_error_of_ours(tmp_path: Path, write_run: Make) -> None:
    file = write_run(tmp_path / "a")
    good = file.read_bytes()
    for length in range(0, len(good), 97):
        file.write_bytes(good[:length])
        with pytest.raises(RecordError):
            load(file)


def test_one_bad_run_does_not_hide_the_others_unless_asked(tmp_path: Path, write_run: Make) -> None:
    write_run(tmp_path / "good")
    bad = write_run(tmp_path / "bad")
    bad.write_bytes(b"")
    records = load(tmp_path)
    assert records.runs["run"].tolist() == ["good"]
    assert [problem.path for problem in records.problems] == [bad]
    with pytest.raises(RecordError, match="bad"):
        load(tmp_path, strict=True)
    shutil.rmtree(tmp_path / "good")
    write_run(tmp_path / "worse").write_bytes(b"")
    with pytest.raises(RecordError, match="2 runs, none of which can be read"):
        load(tmp_path)


def test_a_copy_of_a_record_is_not_counted_twice(tmp_path: Path, write_run: Make) -> None:
    write_run(tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    records = load(tmp_path)
    assert len(records.runs) == 1
    assert "a copy of" in str(records.problems[0])


def test_a_run_that_left_no_record_is_a_problem_that_says_its_state(tmp_path: Path, write_run: Make) -> None:
    write_run(tmp_path / "a")
    write_run(tmp_path / "b").unlink()
    (tmp_path / "b" / "status.json").write_text(json.dumps({"state": "failed"}))
    records = load(tmp_path)
    assert "status.json says: failed" in str(records.problems[0])
    with pytest.raises(RecordError, match="no record; status"):
        load(tmp_path / "b")


@pytest.mark.parametrize(("name", "expected"), [("", "without any record"), ("nowhere", "no such file or folder")])
def test_nothing_to_read_is_said_clearly(tmp_path: Path, name: str, expected: str) -> None:
    with pytest.raises(RecordError, match=expected):
        load(tmp_path / name)


@pytest.mark.parametrize(
    ("recorded", "status", "expected"),
    [
        ("running", {"state": "failed", "error": "rank 1: out of\nmemory"}, ("failed", "rank 1: out of memory")),
        ("running", {"state": "running"}, ("running", "")),
        ("stopped", {"state": "running"}, ("running", "")),
        ("running", {"state": "baking"}, ("running", "")),
        ("done", {"state": "failed", "error": "the folder is taken"}, ("done", "")),
        ("running", [], ("running", "")),
    ],
)
def test_what_ended_a_run_after_its_last_epoch_is_in_its_status(
    tmp_path: Path, write_run: Make, recorded: str, status: Any, expected: tuple[str, str]
) -> None:
    write_run(tmp_path / "a", state=recorded)
    (tmp_path / "a" / "status.json").write_text(json.dumps(status))
    run = load(tmp_path / "a").runs.iloc[0]
    assert (run["state"], run["error"]) == expected


def test_sources_name_file_hash_and_versions(tmp_path: Path, write_run: Make) -> None:
    file = write_run(tmp_path / "a")
    source = load(tmp_path).sources.iloc[0]
    assert source["file"] == "a/record.h5"
    assert source["bytes"] == file.stat().st_size
    assert len(source["sha256"]) == 64
    assert json.loads(source["versions"])["torch"] == "2.4.0"


def test_a_record_that_is_being_written_can_be_read(tmp_path: Path, write_run: Make) -> None:
    file = write_run(tmp_path / "a")
    with h5py.File(file, "a"):
        assert isinstance(load(file).epochs, pd.DataFrame)
