"""Grouping, tables and how numbers are written."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pytest

from analysis import formats, load, tables
from analysis.groups import differing, grouped, keys
from analysis.provenance import provenance

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Make = Callable[..., Any]


def test_runs_are_grouped_over_seeds_and_named_by_what_differs(sweep: Path) -> None:
    runs = load(sweep).runs
    assert differing(runs) == ["config.exchange.name", "config.exchange.rho", "world_size"]
    assert keys(runs) == ["config.exchange.name", "world_size"]
    frame = grouped(runs)
    assert list(dict.fromkeys(frame["group"])) == [
        "exchange.name=easgd, world 2",
        "exchange.name=gossip, world 2",
        "exchange.name=gossip, world 4",
        "exchange.name=sync, world 2",
    ]
    assert frame["seed"].tolist() == [0, 1, 2] * 4
    assert frame["label"].is_unique
    assert frame["label"].iloc[0] == "exchange.name=easgd, world 2, seed 0"


def test_runs_that_differ_in_nothing_still_have_names_of_their_own(
    tmp_path: Path, write_run: Make, config_of: Make
) -> None:
    for name in ("a", "b"):
        write_run(tmp_path / name, config=config_of())
    frame = grouped(load(tmp_path).runs)
    assert set(frame["group"]) == {"mlp on digits"}
    assert frame["label"].tolist() == ["mlp on digits, seed 0 (a)", "mlp on digits, seed 0 (b)"]


def test_settings_are_ordered_as_numbers_and_absent_ones_are_named(
    tmp_path: Path, write_run: Make, config_of: Make
) -> None:
    for rate in (0.1, 0.02, 1, None):
        write_run(tmp_path / str(rate), config=config_of(optimizer={"name": "sgd", "lr": rate}))
    write_run(tmp_path / "x", config=config_of(optimizer={"name": "sgd"}))
    groups = grouped(load(tmp_path).runs)["group"].tolist()
    expected = [f"optimizer.lr={value}" for value in ("0.02", "0.1", "1")]
    assert groups[:3] == expected
    assert set(groups[3:]) == {"optimizer.lr=null", "no optimizer.lr"}


def test_a_group_is_the_mean_and_sample_deviation_of_its_finished_runs(sweep: Path) -> None:
    runs = load(sweep).runs
    failed = (runs["run"] == "sync-w2-s2").to_numpy()
    runs.loc[failed, "state"] = "failed"
    row = tables.group_table(runs).set_index("config.exchange.name").loc["sync"]
    kept = runs.loc[runs["run"].isin(["sync-w2-s0", "sync-w2-s1"]), "test_accuracy"]
    assert (row["runs"], row["finished"]) == (3, 2)
    assert row["test_accuracy"] == pytest.approx(np.mean(kept))
    assert row["test_accuracy_std"] == pytest.approx(np.std(kept, ddof=1))


def test_a_run_that_diverged_is_done_and_yet_not_averaged(sweep: Path) -> None:
    runs = load(sweep).runs
    runs.loc[runs["run"] == "sync-w2-s0", "ended_by"] = "diverged"
    row = tables.group_table(runs).set_index("config.exchange.name").loc["sync"]
    assert (row["runs"], row["finished"]) == (3, 2)
    assert "sync-w2-s0" in tables.run_table(runs)["run"].tolist()


def test_exchange_and_profile_tables_follow_the_order_of_runs(sweep: Path) -> None:
    records = load(sweep)
    exchange = tables.exchange_table(records.exchange, records.runs)
    order = grouped(records.runs)["run"].tolist()
    assert list(dict.fromkeys(exchange["run"])) == order
    assert exchange[exchange["run"] == "gossip-w4-s0"]["rank"].tolist() == [0, 1, 2, 3]
    sums = tables.exchange_sums(records.exchange, records.runs).set_index("run")
    assert sums.loc["gossip-w4-s0", "sent"] == 4 * 400 + 6
    assert sums.loc["gossip-w4-s0", "seconds_blocked"] == pytest.approx(0.2)
    profile = tables.profile_table(records.profile, records.runs).set_index("run")
    assert profile.loc["sync-w2-s0", "backward"] == pytest.approx(5.0)
    assert profile.loc["sync-w2-s0", "total"] == pytest.approx(12.5)


def test_what_is_shared_and_what_differs_are_apart(sweep: Path) -> None:
    runs = load(sweep).runs
    apart = tables.differing_table(runs).set_index("key")["value"]
    assert apart["exchange.name"] == "easgd (3), gossip (6), sync (3)"
    assert apart["seed"] == "0 (4), 1 (4), 2 (4)"
    shared = tables.shared_table(runs).set_index("key")["value"]
    assert shared["model.widths"] == "[64, 32]"
    assert not set(shared.index) & set(apart.index)
    assert "run_dir" not in shared


def test_tables_are_the_same_bytes_twice(sweep: Path, tmp_path: Path) -> None:
    for place in ("one", "two"):
        records = load(sweep)
        for name, frame in (
            ("runs", tables.run_table(records.runs)),
            ("settings", tables.group_table(records.runs)),
        ):
            paths = tables.write_table(frame, tmp_path / place, name)
            assert [path.suffix for path in paths] == [".csv", ".md", ".tex"]
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()


def test_the_csv_reads_back_as_numbers(sweep: Path, tmp_path: Path) -> None:
    frame = tables.run_table(load(sweep).runs)
    csv = pd.read_csv(tables.write_table(frame, tmp_path, "runs")[0])
    np.testing.assert_allclose(csv["test_accuracy"], frame["test_accuracy"], rtol=1e-9)


def test_markdown_and_tex_are_escaped(tmp_path: Path) -> None:
    frame = pd.DataFrame({"key": ["a|b_c", "<i>$x$"], "value": ["50 % & more", "~^\\{}"]})
    _, md, tex = (path.read_text(encoding="utf-8") for path in tables.write_table(frame, tmp_path, "odd"))
    assert "a\\|b_c" in md
    assert "&lt;i>" in md
    assert r"a|b\_c & 50 \% \& more \\" in tex
    assert r"\textless{}i\textgreater{}\$x\$ & \textasciitilde{}\textasciicircum{}\textbackslash{}\{\}" in tex


def test_a_key_of_the_config_does_not_hide_a_result_of_the_same_name(
    tmp_path: Path, write_run: Make, config_of: Make
) -> None:
    for epochs in (3, 5):
        write_run(tmp_path / str(epochs), epochs=epochs, config=config_of(epochs=10 * epochs))
    shown = formats.formatted(tables.run_table(load(tmp_path).runs))
    assert shown["epochs (config)"].tolist() == ["30", "50"]
    assert shown["epochs"].tolist() == ["3", "5"]


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("test_accuracy", 0.98765, "98.77"),
        ("test_loss", 0.01234, "0.0123"),
        ("test_loss", 1.5e-7, "1.50e-07"),
        ("test_loss", math.inf, "∞"),
        ("test_loss", math.nan, "–"),
        ("parameters", 1234567.0, "1,234,567"),
        ("seconds", 0.123, "0.12 s"),
        ("seconds", 59.96, "1 min 00 s"),
        ("seconds", 192.4, "3 min 12 s"),
        ("seconds", 7500.0, "2 h 05 min"),
        ("seconds", 86399.0, "1 d 00 h"),
        ("seconds", 100_000.0, "1 d 03 h"),
        ("bytes_sent", 999, "999 B"),
        ("bytes_sent", 10_512_000, "10.5 MB"),
        ("config.optimizer.lr", 0.1, "0.1"),
        ("config.data.train_size", None, "null"),
        ("config.optimizer.nesterov", True, "true"),
    ],
)
def test_numbers_are_written_for_people(name: str, value: Any, text: str) -> None:
    assert formats.cell(name, value) == text


def test_columns_without_any_number_are_left_out_and_spreads_stand_behind_means() -> None:
    frame = pd.DataFrame({"test_loss": [0.5, math.nan], "test_loss_std": [1e-6, math.nan], "mass": [math.nan] * 2})
    assert formats.formatted(frame).to_dict("list") == {"test loss": ["0.5000 ± 0.0000", "–"]}


def test_provenance_ties_numbers_to_files_and_configs(sweep: Path) -> None:
    records = load(sweep)
    first, second = provenance(records), provenance(load(sweep))
    assert first == second
    runs = {run["run"]: run for run in first["runs"]}
    assert runs["sync-w2-s0"]["settings_sha256"] == runs["sync-w2-s1"]["settings_sha256"]
    assert runs["sync-w2-s0"]["settings_sha256"] != runs["easgd-w2-s0"]["settings_sha256"]
    assert runs["sync-w2-s0"]["config_sha256"] != runs["sync-w2-s1"]["config_sha256"]
    assert runs["sync-w2-s0"]["run_id"] == "id-sync-w2-s0"
    assert {"python", "numpy", "pandas", "matplotlib"} <= set(first["reader"]["tools"])
