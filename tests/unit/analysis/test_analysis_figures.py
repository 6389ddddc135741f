"""Figures, read back from their axes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import numpy as np
import pytest

from analysis import load
from analysis.curves import FEW, looks
from analysis.figures import learning_curves, time_profile
from analysis.groups import grouped
from analysis.style import image

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    from analysis import Records

    Make = Callable[..., Any]


def _panel(figure: Figure, title: str) -> Axes:
    return next(axes for axes in figure.axes if axes.get_title(loc="left") == title)


def _line(axes: Axes, label: str) -> Line2D:
    return next(line for line in axes.lines if line.get_label() == label)


def _curves(source: Path) -> tuple[Records, Figure]:
    records = load(source)
    return records, learning_curves(records.epochs, records.runs)


def test_one_run_shows_its_data_sets_together(tmp_path: Path, write_run: Make) -> None:
    write_run(tmp_path / "a", epochs=10)
    records, figure = _curves(tmp_path)
    loss, accuracy = _panel(figure, "loss"), _panel(figure, "accuracy (%)")
    assert [line.get_label() for line in loss.lines] == ["training", "validation", "test"]
    np.testing.assert_allclose(_line(loss, "training").get_ydata(), records.epochs["train_loss"])
    np.testing.assert_allclose(_line(accuracy, "test").get_ydata(), 100 * records.epochs["test_accuracy"])
    assert len({str(line.get_linestyle()) + line.get_marker() for line in loss.lines}) == 3


def test_a_single_epoch_is_a_point_that_can_be_seen(tmp_path: Path, write_run: Make) -> None:
    write_run(tmp_path / "a", epochs=1)
    _, figure = _curves(tmp_path)
    axes = _panel(figure, "loss")
    assert all(line.get_marker() not in ("", "None") for line in axes.lines)
    assert axes.get_xticks().tolist() == [1]


def test_seeds_are_a_mean_line_and_a_band_from_lowest_to_highest(sweep: Path) -> None:
    records, figure = _curves(sweep)
    axes = _panel(figure, "test accuracy (%)")
    label = "exchange.name=sync, world 2"
    wanted = records.epochs[records.epochs["run"].str.startswith("sync")]
    by_epoch = 100 * wanted.groupby("epoch")["test_accuracy"].agg(["mean", "min", "max"])
    np.testing.assert_allclose(_line(axes, label).get_ydata(), by_epoch["mean"])
    assert len(axes.lines) == 4
    bands = [band.get_paths()[0].vertices[:, 1] for band in axes.collections]
    assert any(np.isclose(band.max(), by_epoch["max"].max()) for band in bands)
    assert any(np.isclose(band.min(), by_epoch["min"].min()) for band in bands)


def test_each_setting_is_told_apart_without_colour(sweep: Path) -> None:
    _, figure = _curves(sweep)
    lines = _panel(figure, "training loss").lines
    assert len({(str(line.get_linestyle()), line.get_marker()) for line in lines}) == len(lines) == 4
    legend = figure.legends or [axes.get_legend() for axes in figure.axes if axes.get_legend()]
    texts = [text.get_text().replace("\n", " ") for text in legend[0].get_texts()]
    assert texts[0] == "exchange.name=easgd, world 2 (n = 3)"


def test_a_failed_run_is_a_thin_line_with_a_cross_and_not_in_the_mean(
    tmp_path: Path,
    write_run: Make,
    config_of: Make,
    columns_of: Make,
) -> None:
    for seed in range(3):
        columns = columns_of(8, seed, 0.3, 2)
        state = "failed" if seed == 2 else "done"
        if seed == 2:
            columns["epochs"]["train_loss"][5:] = np.nan
        write_run(tmp_path / f"s{seed}", columns=columns, config=config_of(seed=seed), state=state)
    records, figure = _curves(tmp_path)
    axes = _panel(figure, "training loss")
    mean, failed, cross = axes.lines
    kept = records.epochs[records.epochs["run"] != "s2"].groupby("epoch")["train_loss"].mean()
    np.testing.assert_allclose(mean.get_ydata(), kept)
    assert failed.get_xdata().tolist() == [1, 2, 3, 4, 5]
    assert failed.get_linewidth() < mean.get_linewidth()
    assert (cross.get_marker(), cross.get_xdata().tolist()) == ("x", [5])


def test_a_mean_goes_as_far_as_all_its_runs(tmp_path: Path, write_run: Make, config_of: Make) -> None:
    for seed, epochs in enumerate((4, 7)):
        write_run(tmp_path / f"s{seed}", epochs=epochs, config=config_of(seed=seed))
    _, figure = _curves(tmp_path)
    assert _panel(figure, "test loss").lines[0].get_xdata().tolist() == [1, 2, 3, 4]


def test_a_regression_has_no_panel_of_accuracy_and_pruning_one_of_parameters(
    tmp_path: Path,
    write_run: Make,
    columns_of: Make,
    config_of: Make,
) -> None:
    for seed, name in enumerate(("none", "scalp")):
        columns = columns_of(6, seed, 0.3, 1)
        columns["epochs"]["valid_accuracy"][:] = columns["epochs"]["test_accuracy"][:] = np.nan
        if name == "scalp":
            columns["epochs"]["parameters"] = np.arange(600, 0, -100)
        write_run(tmp_path / name, columns=columns, world=1, config=config_of(pruning={"name": name}))
    _, figure = _curves(tmp_path)
    titles = [axes.get_title(loc="left") for axes in figure.axes if axes.axison]
    assert titles == ["training loss", "validation loss", "test loss", "parameters"]
    assert _panel(figure, "parameters").lines[1].get_ydata()[-1] == 100


def test_losses_over_many_decades_are_on_a_logarithmic_scale(
    tmp_path: Path,
    write_run: Make,
    columns_of: Make,
) -> None:
    columns = columns_of(4, 0, 0.3, 1)
    columns["epochs"]["train_loss"] = np.array([1e6, 10, 1, 0.1])
    write_run(tmp_path / "a", columns=columns, world=1)
    assert _panel(_curves(tmp_path)[1], "loss").get_yscale() == "log"


@pytest.fixture
def many(tmp_path: Path, write_run: Make, config_of: Make) -> Path:
    for number in range(24):
        config = config_of(
            exchange__name=["sync", "gossip", "persyn"][number % 3], optimizer__lr=0.01 * (1 + number // 3)
        )
        write_run(tmp_path / f"r{number}", epochs=2, config=config)
    return tmp_path


def test_many_settings_are_coloured_by_one_key(many: Path) -> None:
    records, figure = _curves(many)
    appearance = looks(grouped(records.runs))
    assert len(appearance.of) > FEW
    assert appearance.heading == "exchange.name"
    assert [label for label, _ in appearance.legend] == ["gossip", "persyn", "sync"]
    lines = _panel(figure, "test loss").lines
    assert len(lines) == 24
    assert len({line.get_color() for line in lines}) == 3


def test_many_values_of_one_number_are_a_scale_of_colours(tmp_path: Path, write_run: Make, config_of: Make) -> None:
    for number in range(10):
        write_run(tmp_path / f"r{number}", epochs=2, config=config_of(optimizer__lr=10.0**-number))
    records, figure = _curves(tmp_path)
    appearance = looks(grouped(records.runs))
    assert (appearance.scale, appearance.log) == ((1e-9, 1.0), True)
    assert any(axes.get_ylabel() == "optimizer.lr" for axes in figure.axes)


def test_many_names_keep_the_first_and_grey_the_rest(tmp_path: Path, write_run: Make, config_of: Make) -> None:
    for number in range(12):
        write_run(tmp_path / f"r{number}", epochs=2, config=config_of(model__name=f"net{number}"))
    appearance = looks(grouped(load(tmp_path).runs))
    assert [label for label, _ in appearance.legend][-2:] == ["net6", "other"]
    assert len(set(appearance.of.values())) == FEW


def test_the_profile_is_a_bar_a_run_of_seconds_and_shares(sweep: Path) -> None:
    records = load(sweep)
    figure = time_profile(records.profile, records.runs)
    left, right = figure.axes
    phases = [container.get_label() for container in left.containers]
    assert phases == ["data", "forward", "backward", "optimizer", "exchange", "evaluate", "checkpoint"]
    backward = left.containers[2]
    assert len(backward) == 12
    assert backward[0].get_width() == pytest.approx(5.0)
    assert sum(container[0].get_width() for container in right.containers) == pytest.approx(100)
    assert [tick.get_text() for tick in left.get_yticklabels()][:2] == ["easgd, 2, 0", "easgd, 2, 1"]


def test_the_profile_of_many_runs_is_a_bar_a_setting(tmp_path: Path, write_run: Make, config_of: Make) -> None:
    for number in range(30):
        config = config_of(seed=number % 10, exchange__name=["sync", "gossip", "persyn"][number // 10])
        write_run(tmp_path / f"r{number}", epochs=2, config=config, state="done" if number % 10 else "failed")
    records = load(tmp_path)
    left = time_profile(records.profile, records.runs).axes[0]
    assert [tick.get_text() for tick in left.get_yticklabels()] == [
        f"exchange.name={name}" for name in ("gossip", "persyn", "sync")
    ]
    assert left.containers[2][0].get_width() == pytest.approx(1.0)


def test_long_times_are_in_larger_units(
    tmp_path: Path,
    write_run: Make,
    columns_of: Make,
) -> None:
    columns = columns_of(2, 0, 0.3, 1)
    columns["profile"]["backward"][:] = 7200.0
    write_run(tmp_path / "a", columns=columns, world=1)
    records = load(tmp_path)
    left = time_profile(records.profile, records.runs).axes[0]
    assert left.get_xlabel() == "hours"
    assert left.containers[2][0].get_width() == pytest.approx(4.0)


def test_no_epoch_at_all_is_said_in_words(tmp_path: Path, write_run: Make) -> None:
    write_run(tmp_path / "a", epochs=0)
    records = load(tmp_path)
    for figure in (
        learning_curves(records.epochs, records.runs),
        time_profile(records.profile, records.runs),
    ):
        assert [text.get_text() for text in figure.texts] == ["no epoch has finished"]


@pytest.mark.parametrize("kind", ["png", "pdf"])
def test_figures_are_the_same_bytes_twice_and_leave_the_settings_alone(sweep: Path, kind: str) -> None:
    before = dict(mpl.rcParams)
    first, second = (image(_curves(sweep)[1], kind) for _ in range(2))
    assert first == second
    assert b"CreationDate" not in first
    assert dict(mpl.rcParams) == before


def test_a_dollar_in_a_name_is_no_formula(tmp_path: Path, write_run: Make, config_of: Make) -> None:
    for name in ("$a^$", "b"):
        write_run(tmp_path / name.strip("$^"), config=config_of(model__name=name))
    records, figure = _curves(tmp_path)
    image(figure, "png")
    image(time_profile(records.profile, records.runs), "png")
