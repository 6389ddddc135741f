"""The record's tables and their file."""

import errno
import json
import math

import h5py
import numpy as np
import pytest
import torch

from hpc import record as module
from hpc.record import COLUMNS, OPTIONAL, Record, Table

ATTRIBUTES = {
    "run_id": "abc", "config": "epochs: 3\n", "versions": "{}", "world_size": 2, "state": "running", "ended_by": "",
}  # fmt: skip


def row(table: str, number: float) -> dict[str, float]:
    return {
        column: number + place if kind is int else number + place / 8
        for place, (column, kind) in enumerate(COLUMNS[table].items())
    }


def filled(rows: int = 3) -> Record:
    record = Record()
    for number in range(rows):
        for table in COLUMNS:
            record[table].append(**row(table, number))
    return record


def contents(path) -> dict[str, list]:
    with h5py.File(path) as file:
        return {f"{name}/{column}": file[name][column][()].tolist() for name in file for column in file[name]}


# --- tables ------------------------------------------------------------------------------------------------


def test_rows_are_kept_in_order_and_in_their_columns_types():
    table = Table({"step": int, "loss": float})
    table.append(step=1, loss=0.5)
    table.append(loss=1, step=2.0)
    assert table.columns == {"step": [1, 2], "loss": [0.5, 1.0]}
    assert [type(value) for value in (table.columns["step"][1], table.columns["loss"][1])] == [int, float]
    assert len(table) == 2


@pytest.mark.parametrize("bad", [{"step": 1}, {"step": 1, "loss": 2.0, "extra": 3}, {"steps": 1, "loss": 2.0}, {}])
def test_wrong_columns_are_refused_and_named(bad):
    table = Table({"step": int, "loss": float})
    with pytest.raises(KeyError, match=r"the table has \['loss', 'step'\]"):
        table.append(**bad)
    assert len(table) == 0


def test_a_value_that_does_not_fit_leaves_no_half_of_a_row():
    table = Table({"loss": float, "step": int})
    table.append(loss=1.0, step=1)
    with pytest.raises(ValueError, match="NaN"):
        table.append(loss=2.0, step=math.nan)
    assert table.columns == {"loss": [1.0], "step": [1]}


def test_the_last_row_is_empty_where_there_is_none():
    table = Table({"step": int, "loss": float})
    assert table.last() == {}
    table.append(step=1, loss=0.5)
    table.append(step=2, loss=0.25)
    assert table.last() == {"step": 2, "loss": 0.25}


def test_a_cleared_table_is_empty_and_can_be_filled_again():
    table = Table({"step": int})
    table.append(step=1)
    table.clear()
    assert len(table) == 0
    table.append(step=2)
    assert table.columns == {"step": [2]}


@pytest.mark.parametrize("rows", [0, 2])
def test_arrays_are_eight_bytes_wide_however_many_rows(rows):
    for table in filled(rows).tables.values():
        for column, array in table.arrays().items():
            assert array.dtype == (np.int64 if table._types[column] is int else np.float64)
            assert array.shape == (rows,)


# --- state -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [0, 1, 4])
def test_the_state_brings_back_every_row_exactly(rows):
    record = filled(rows)
    if rows:
        record["epochs"].columns["valid_loss"][-1] = math.nan
        record["epochs"].columns["train_loss"][-1] = 0.1 + 0.2
        record["exchange"].columns["bytes_sent"][-1] = 2**60 + 1
    other = filled(2)  # whatever was there before goes
    other.load_state_dict({name: dict(arrays) for name, arrays in record.state_dict().items()})
    for name, table in record.tables.items():
        assert repr(other[name].columns) == repr(table.columns)


def test_the_state_is_tensors():
    for arrays in filled().state_dict().values():
        assert all(isinstance(values, torch.Tensor) for values in arrays.values())


def test_a_state_is_no_window_into_the_record():
    record = filled(1)
    state = record.state_dict()
    record["steps"].append(step=9, loss=9.0)
    assert len(state["steps"]["step"]) == 1


# --- the file ----------------------------------------------------------------------------------------------


@pytest.fixture
def path(tmp_path):
    return tmp_path / "record.h5"


def test_the_file_holds_every_column_with_its_type_and_order(path):
    filled().write(path, ATTRIBUTES)
    with h5py.File(path) as file:
        assert set(file) == set(COLUMNS)
        for name, columns in COLUMNS.items():
            assert set(file[name]) == set(columns)
            for place, (column, kind) in enumerate(columns.items()):
                dataset = file[name][column]
                assert dataset.dtype == (np.int64 if kind is int else np.float64)
                step = 1 if kind is int else 1 / 8
                assert dataset[()].tolist() == [number + place * step for number in range(3)]


def test_the_file_says_what_it_is(path):
    Record().write(path, ATTRIBUTES)
    with h5py.File(path) as file:
        texts = {name: value.encode() if isinstance(value, str) else value for name, value in ATTRIBUTES.items()}
        assert dict(file.attrs) == {"schema_version": 1, "answer_epoch": 0, **texts}


def test_the_answer_is_the_last_epochs_unless_another_was_chosen(path):
    record = filled(3)
    assert record.answer() == record["epochs"].last()
    epochs = record["epochs"].columns
    record.answer_epoch = epochs["epoch"][1]
    again = Record()
    again.load_state_dict(record.state_dict())
    for each in (record, again):
        assert each.answer() == {name: values[1] for name, values in epochs.items()}
    record.write(path, ATTRIBUTES)
    with h5py.File(path) as file:
        assert file.attrs["answer_epoch"] == epochs["epoch"][1]


# --- /structure --------------------------------------------------------------------------------------------


def test_widths_come_back_from_the_state_and_the_file(path):
    record, again = Record(), Record()
    record.structure.append({"features.0": 5, "größer": 7}, "pruning", "0123456789abcdef", 0)
    record.structure.append({"features.0": 1, "größer": 6}, "fine_tuning", "fedcba9876543210", 1)
    again.load_state_dict(record.state_dict())
    assert len(again.structure) == 2
    again.write(path, ATTRIBUTES)
    with h5py.File(path) as file:
        found = {name: node[()].tolist() for name, node in file["structure"].items()}
        assert file["structure/widths"].dtype == np.int64
    assert found == {
        "widths": [[5, 7], [1, 6]],
        "layers": [b"features.0", "größer".encode()],
        "phase": [b"pruning", b"fine_tuning"],
        "digest": [b"0123456789abcdef", b"fedcba9876543210"],
        "floor": [0, 1],
    }


def test_a_run_that_is_not_pruned_has_no_structure(path):
    record, again = filled(), Record()
    again.load_state_dict(record.state_dict())
    again.write(path, ATTRIBUTES)
    with h5py.File(path) as file:
        assert "structure" not in file


def test_columns_stand_as_the_interface_states_them():
    """Readers written elsewhere rely on these names."""
    assert " ".join(COLUMNS["epochs"]) == (
        "epoch step seconds train_loss valid_loss valid_accuracy test_loss test_accuracy parameters lr"
    )
    assert " ".join(COLUMNS["exchange"]) == "rank sent received skipped bytes_sent mass seconds_blocked"
    assert set(COLUMNS["profile"]) >= {"data", "forward", "backward", "optimizer", "exchange", "checkpoint"}


def test_an_empty_record_has_empty_tables_and_no_optional_ones(path):
    Record().write(path, ATTRIBUTES)
    found = contents(path)
    assert {name.split("/")[0] for name in found} == set(COLUMNS) - OPTIONAL
    assert all(values == [] for values in found.values())


def test_the_file_is_replaced_in_one_step(path, monkeypatch):
    """Until the new one is complete a reader sees the old one, whole."""
    filled(1).write(path, ATTRIBUTES)
    before = path.read_bytes()
    seen = []
    replace = module.Path.replace

    def noted(self, target):
        seen.append((path.read_bytes() == before, len(contents(self)["epochs/epoch"])))
        return replace(self, target)

    monkeypatch.setattr(module.Path, "replace", noted)
    filled(3).write(path, ATTRIBUTES)
    assert seen == [(True, 3)]
    assert contents(path)["epochs/epoch"] == [0, 1, 2]
    assert [file.name for file in path.parent.iterdir()] == ["record.h5"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
def test_what_cannot_be_written_leaves_the_old_file(path, monkeypatch, number):
    filled(1).write(path, ATTRIBUTES)
    before = path.read_bytes()

    def fail(_):
        raise OSError(number, "broken")

    monkeypatch.setattr(module.Path, "replace", lambda *_: fail(0))
    with pytest.raises(OSError, match="broken"):
        filled(2).write(path, ATTRIBUTES)
    monkeypatch.undo()
    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match="broken"):
        filled(2).write(path, ATTRIBUTES)
    monkeypatch.undo()
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == ["record.h5"]


def test_an_attribute_that_cannot_be_written_leaves_the_old_file(path):
    filled(1).write(path, ATTRIBUTES)
    before = path.read_bytes()
    with pytest.raises(TypeError):
        filled(2).write(path, {**ATTRIBUTES, "state": object()})
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == ["record.h5"]


def test_what_a_killed_writer_left_is_no_hindrance(path):
    path.with_name(".record.h5.tmp").write_bytes(b"half a file")
    filled(2).write(path, ATTRIBUTES)
    assert contents(path)["steps/step"] == [0, 1]
    assert [file.name for file in path.parent.iterdir()] == ["record.h5"]


def test_the_config_may_be_long_and_hold_any_letter(path):
    text = "# größe: ä\n" + "a: 1\n" * 20_000
    Record().write(path, {**ATTRIBUTES, "config": text, "versions": json.dumps({"torch": "2"})})
    with h5py.File(path) as file:
        assert file.attrs["config"].decode() == text


def test_a_flipped_bit_is_an_error_and_never_a_wrong_figure(path):
    filled().write(path, ATTRIBUTES)
    content, whole = path.read_bytes(), contents(path)
    errors = 0
    for place in range(0, len(content), 29):
        damaged = bytearray(content)
        damaged[place] ^= 1 << place % 8
        path.write_bytes(damaged)
        try:
            assert contents(path) == whole  # a byte that nothing hangs on
        except (OSError, RuntimeError, KeyError):
            errors += 1
    assert errors > len(content) / 29 / 2
