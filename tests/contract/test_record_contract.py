"""What a run writes is what the analysis reads: the two state the record's form apart from each other."""

import math

import pytest

from analysis import load, schema
from hpc import record as written
from hpc.config.read import to_yaml
from hpc.config.root import Config
from hpc.record import Record


@pytest.fixture
def run_dir(tmp_path):
    """A run of two ranks and three epochs that never trained."""
    record = Record()
    record.answer_epoch = 2
    for epoch in (1, 2, 3):
        record["epochs"].append(
            epoch=epoch, step=10 * epoch, seconds=1.5 * epoch, train_loss=1 / epoch, valid_loss=2 / epoch,
            valid_accuracy=math.nan, test_loss=3 / epoch, test_accuracy=0.1 * epoch, parameters=100, lr=0.05,
        )  # fmt: skip
        widths = {"features.0": 9 - epoch, "features.3": 4}
        record.structure.append(widths, "pruning", f"{epoch:016x}", int(epoch == 3))
        record["profile"].append(**{phase: epoch + place / 4 for place, phase in enumerate(written.COLUMNS["profile"])})
        record["steps"].append(step=10 * epoch, loss=1 / epoch)
    for rank in (0, 1):
        record["exchange"].append(
            rank=rank, sent=5, received=6, skipped=7, bytes_sent=2**40, mass=0.5, seconds_blocked=0.25
        )
    attributes = {
        "run_id": "abc", "config": to_yaml(Config()), "versions": '{"python": "3"}', "world_size": 2,
        "state": "done", "ended_by": "epochs",
    }  # fmt: skip
    folder = tmp_path / "run"
    folder.mkdir()
    record.write(folder / schema.RECORD, attributes)
    return folder


def test_the_analysis_reads_every_number_that_was_written(run_dir):
    records = load(run_dir)
    assert not records.problems
    assert records.epochs["epoch"].tolist() == [1, 2, 3]
    assert records.epochs["test_accuracy"].tolist() == [0.1 * epoch for epoch in (1, 2, 3)]
    assert records.epochs["valid_accuracy"].isna().all()
    assert records.exchange["rank"].tolist() == [0, 1]
    assert records.exchange["bytes_sent"].tolist() == [2**40] * 2
    assert records.profile["checkpoint"].tolist() == [
        epoch + list(written.COLUMNS["profile"]).index("checkpoint") / 4 for epoch in (1, 2, 3)
    ]
    assert records.steps["loss"].tolist() == [1 / epoch for epoch in (1, 2, 3)]
    assert records.structure["width"].tolist() == [8, 4, 7, 4, 6, 4]
    assert records.structure["layer"].tolist() == ["features.0", "features.3"] * 3
    assert records.pruning["phase"].tolist() == ["pruning"] * 3
    assert records.pruning["digest"].tolist() == [f"{epoch:016x}" for epoch in (1, 2, 3)]
    assert records.pruning["floor"].tolist() == [0, 0, 1]
    (run,) = records.runs.to_dict("records")
    assert run["answer_epoch"] == 2
    assert run["test_accuracy"] == 0.1 * 2
    assert run["run_id"] == "abc"
    assert run["state"] == "done"
    assert run["world_size"] == 2
    assert run["config.model.name"] == Config().model.name


def test_every_column_of_the_reader_is_one_of_the_writer_with_its_type():
    kinds = {int: "integer", float: "float"}
    ours = {
        name: {column: kinds[kind] for column, kind in columns.items()} for name, columns in written.COLUMNS.items()
    }
    theirs = {**schema.REQUIRED, **{name: schema.OPTIONAL[name] for name in written.OPTIONAL}}
    assert ours == theirs


def test_version_and_name_of_the_file_agree():
    from hpc.config.folder import RECORD

    assert written.SCHEMA_VERSION in schema.VERSIONS
    assert RECORD == schema.RECORD


def test_a_record_without_an_epoch_can_be_read(tmp_path):
    """A run may be stopped before its first epoch ends."""
    folder = tmp_path / "run"
    folder.mkdir()
    attributes = {
        "run_id": "abc", "config": to_yaml(Config()), "versions": "{}", "world_size": 1,
        "state": "stopped", "ended_by": "signal",
    }  # fmt: skip
    Record().write(folder / schema.RECORD, attributes)
    records = load(folder)
    assert len(records.epochs) == 0
    assert records.runs["state"].tolist() == ["stopped"]


def test_a_damaged_record_is_refused_and_never_read_wrong(run_dir):
    file = run_dir / schema.RECORD
    content, whole = file.read_bytes(), load(run_dir)
    refused = 0
    for place in range(0, len(content), 101):
        damaged = bytearray(content)
        damaged[place] ^= 1 << place % 8
        file.write_bytes(damaged)
        try:
            found = load(run_dir)
        except schema.RecordError:
            refused += 1
            continue
        for name in ("epochs", "exchange", "profile", "steps", "runs"):  # a byte that nothing hangs on
            assert getattr(found, name).equals(getattr(whole, name))
    assert refused > len(content) / 101 / 2


def test_analysis_takes_runs_that_differ_in_free_keys_for_repetitions():
    from analysis.groups import _OWN, SEED
    from hpc.config.read import NOT_IDENTITY

    assert {f"config.{key}" for key in NOT_IDENTITY} | {SEED} == _OWN
