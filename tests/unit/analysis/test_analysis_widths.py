"""How wide layers are: what is drawn of it, and what a record says of pruning."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
import pytest

from analysis.groups import grouped
from analysis.load import load
from analysis.report import report
from analysis.schema import RecordError
from analysis.widths import PANELS, layer_widths, widths

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Make = Callable[..., Any]


def prune(file: Path, table: list[list[int]], layers: list[str]) -> None:
    """What a run writes that prunes."""
    rows = len(table)
    with h5py.File(file, "a") as handle:
        handle["structure/widths"] = np.array(table)
        handle["structure/layers"] = np.array([layer.encode() for layer in layers])
        handle["structure/phase"] = np.array([b"pruning"] * (rows - 1) + [b"fine_tuning"])
        handle["structure/digest"] = np.array([f"{row:016x}".encode() for row in range(rows)])
        handle["structure/floor"] = np.arange(rows)
        handle.attrs["answer_epoch"] = rows


@pytest.fixture
def pruned(tmp_path: Path, write_run: Make, config_of: Make) -> Path:
    """Two settings; the first has two finished runs and one that broke off."""
    for seed, first in enumerate((8, 6, 100)):
        config = config_of(seed=seed, pruning={"name": "norm"})
        file = write_run(tmp_path / f"n{seed}", config=config, state="failed" if seed == 2 else "done")
        prune(file, [[first, 4], [6, 3], [2, 2]][: 3 - (seed == 1)], ["one", "two"])
    prune(write_run(tmp_path / "s", config=config_of(pruning={"name": "scalp"})), [[9], [5], [5]], ["other"])
    write_run(tmp_path / "whole", config=config_of(pruning={"name": "none"}))
    return tmp_path


def test_a_setting_has_the_mean_widths_of_its_finished_runs_as_far_as_all_go(pruned: Path) -> None:
    records = load(pruned)
    members = dict(list(grouped(records.runs).groupby("group")))
    found = widths(records.structure, members["pruning.name=norm"])
    assert found.index.tolist() == [1, 2]
    assert found.columns.tolist() == ["one", "two"]
    assert found.to_numpy().tolist() == [[7, 4], [6, 3]]
    assert widths(records.structure, members["pruning.name=scalp"])["other"].tolist() == [9, 5, 5]


def test_each_setting_has_a_panel_and_each_layer_a_line(pruned: Path) -> None:
    records = load(pruned)
    figure = layer_widths(records.structure, records.runs)
    panels = [axes for axes in figure.axes if axes.axison]
    assert [axes.get_title(loc="left") for axes in panels] == ["pruning.name=norm", "pruning.name=scalp"]
    assert [[line.get_label() for line in axes.lines] for axes in panels] == [["one", "two"], ["other"]]
    assert all(axes.get_legend() is not None for axes in panels)  # the layers are not the same
    assert panels[0].get_ylim()[0] == 0


def test_many_layers_are_told_apart_by_a_scale_of_colours(tmp_path: Path, write_run: Make) -> None:
    prune(write_run(tmp_path / "a"), [list(range(100, 120))] * 3, [f"layer.{place}" for place in range(20)])
    records = load(tmp_path)
    figure = layer_widths(records.structure, records.runs)
    panel, bar = figure.axes
    assert len({line.get_color() for line in panel.lines}) == 20
    assert [tick.get_text() for tick in bar.get_yticklabels()] == ["first", "last"]


def test_widths_over_many_sizes_are_on_a_logarithmic_scale(tmp_path: Path, write_run: Make) -> None:
    prune(write_run(tmp_path / "a"), [[1000, 4], [500, 4], [100, 4]], ["one", "two"])
    records = load(tmp_path)
    assert layer_widths(records.structure, records.runs).axes[0].get_yscale() == "log"


def test_of_very_many_settings_the_first_are_drawn(tmp_path: Path, write_run: Make, config_of: Make) -> None:
    for number in range(PANELS + 2):
        config = config_of(pruning={"name": "norm", "strength": 0.1 * number})
        prune(write_run(tmp_path / f"r{number}", config=config), [[5], [4], [3]], ["one"])
    records = load(tmp_path)
    assert len(layer_widths(records.structure, records.runs).axes) == PANELS


def test_a_report_has_the_figure_and_its_numbers_where_something_was_pruned(
    pruned: Path, tmp_path: Path, write_run: Make
) -> None:
    page = report(pruned, tmp_path / "out")
    assert 'id="layer_widths"' in page.read_text()
    lines = (tmp_path / "out" / "widths.csv").read_text().splitlines()
    assert lines[0] == "run,epoch,layer,width"
    assert "n0,1,one,8" in lines
    write_run(tmp_path / "alone")
    other = report(tmp_path / "alone", tmp_path / "bare")
    assert "layer_widths" not in other.read_text()
    assert not (tmp_path / "bare" / "widths.csv").exists()


def test_phases_digests_and_floors_come_with_each_epoch(pruned: Path) -> None:
    own = load(pruned).pruning.query("run == 'n0'")
    assert own["epoch"].tolist() == [1, 2, 3]
    assert own["phase"].tolist() == ["pruning", "pruning", "fine_tuning"]
    assert own["digest"].tolist() == [f"{row:016x}" for row in range(3)]
    assert own["floor"].tolist() == [0, 1, 2]


def test_a_run_is_shown_with_the_network_that_it_answers_with(tmp_path: Path, write_run: Make) -> None:
    file = write_run(tmp_path / "a", epochs=4)
    epochs = load(file).epochs
    for answer in (0, 2):
        with h5py.File(file, "a") as handle:
            handle.attrs["answer_epoch"] = answer
            handle["epochs/parameters"][...] = [9, 7, 5, 3]
        (run,) = load(file).runs.to_dict("records")
        row = epochs.iloc[(answer or 4) - 1]
        assert run["answer_epoch"] == run["test_epoch"] == (answer or 4)
        for name in ("test_accuracy", "test_loss", "valid_accuracy"):
            assert run[name] == row[name]
        assert run["parameters"] == (7 if answer else 3)
        assert run["epochs"] == 4


@pytest.mark.parametrize("answer", [-1, "two"])
def test_an_answer_that_is_no_epoch_is_refused(answer: object, tmp_path: Path, write_run: Make) -> None:
    file = write_run(tmp_path / "a")
    with h5py.File(file, "a") as handle:
        handle.attrs["answer_epoch"] = answer
    with pytest.raises(RecordError, match="answer_epoch"):
        load(file)


def test_phases_of_other_length_than_the_floors_are_refused(tmp_path: Path, write_run: Make) -> None:
    file = write_run(tmp_path / "a")
    prune(file, [[5], [4], [3]], ["one"])
    with h5py.File(file, "a") as handle:
        del handle["structure/floor"]
        handle["structure/floor"] = np.arange(2)
    with pytest.raises(RecordError, match="/structure/floor has 2 rows, /structure/phase has 3 rows"):
        load(file)
