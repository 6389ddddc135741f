"""A sweep file as runs: which, in which order, under which names; and what is said of mistakes."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpc.config import yamls
from hpc.config.read import to_values, validate
from hpc.errors import ConfigError
from jobs.resources import Resources
from jobs.sweep import Sweep, combinations, read

BASE: dict[str, Any] = {"run_dir": "runs/s", "epochs": 2, "data": {"name": "digits"}, "exchange": {"name": "sync"}}


def sweep(folder: Path, *overrides: str, **sections: Any):
    """Read a sweep file made of these sections."""
    path = folder / "sweep.yaml"
    path.write_text(yamls.dump({**BASE, **sections}))
    return read(path, overrides)


def told(folder: Path, *overrides: str, **sections: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        sweep(folder, *overrides, **sections)
    return str(caught.value)


def test_a_grid_is_every_combination_seed_by_seed(tmp_path) -> None:
    found = sweep(tmp_path, sweep={"grid": {"optimizer.lr": [0.1, 0.2], "epochs": [1, 2]}, "seeds": 2})
    assert [(run.config.seed, run.config.optimizer.lr, run.config.epochs) for run in found.runs] == [
        (seed, lr, epochs) for seed in (0, 1) for lr in (0.1, 0.2) for epochs in (1, 2)
    ]
    assert found.runs[1].label == "lr=0.1 epochs=2 seed=0"
    assert found.folder == Path("runs/s")
    assert found.repeated == 0


def test_zip_goes_together_and_null_leaves_what_the_file_has(tmp_path) -> None:
    columns = {"exchange.name": [None, "persyn"], "exchange.tau": [None, 4], "resources.ranks": [1, 2]}
    found = sweep(tmp_path, sweep={"zip": columns}, resources={"timeout_min": 7})
    assert [run.config.exchange.name for run in found.runs] == ["sync", "persyn"]
    assert found.runs[1].config.exchange.tau == 4
    assert [run.resources for run in found.runs] == [Resources(timeout_min=7), Resources(timeout_min=7, ranks=2)]
    assert [run.label for run in found.runs] == ["ranks=1", "exchange=persyn tau=4 ranks=2"]


def test_what_is_excluded_is_left_out(tmp_path) -> None:
    grid = {"optimizer.lr": [0.1, 0.2, 0.3], "epochs": [1, 2]}
    rules = [{"optimizer.lr": 0.1, "epochs": 1}, {"optimizer.lr": 0.3}]
    found = sweep(tmp_path, sweep={"grid": grid, "exclude": rules})
    assert [(run.config.optimizer.lr, run.config.epochs) for run in found.runs] == [(0.1, 2), (0.2, 1), (0.2, 2)]


def test_overrides_reach_all_three_parts_of_the_file(tmp_path) -> None:
    found = sweep(tmp_path, "--epochs", "9", "--sweep.seeds", "[4, 5]", "--resources.partition", "low")
    assert [(run.config.seed, run.config.epochs, run.resources.partition) for run in found.runs] == [
        (4, 9, "low"), (5, 9, "low"),
    ]  # fmt: skip


def test_each_run_has_a_folder_of_its_own_named_by_all_that_decides_its_result(tmp_path) -> None:
    def ids(*overrides: str, **more: Any) -> list[str]:
        return [run.id for run in sweep(tmp_path, *overrides, sweep={"grid": {"epochs": [1, 2]}}, **more).runs]

    first = ids()
    found = sweep(tmp_path, sweep={"grid": {"epochs": [1, 2]}})
    assert [run.config.run_dir for run in found.runs] == [f"runs/s/{each}" for each in first]
    assert ids("--run_dir", "elsewhere") == first
    assert ids("--checkpoint.keep", "5") == first
    assert ids("--resources.timeout_min", "5") == first
    for change in ("--resources.ranks", "2"), ("--seed", "1"), ("--optimizer.lr", "0.3"):
        assert not set(ids(*change)) & set(first)


def test_sections_of_one_name_are_told_apart(tmp_path) -> None:
    grid = {
        "exchange": [{"name": "gossip", "rho": 0.1}, {"name": "gossip", "rho": 0.2}, {"name": "sync"}],
        "model.widths": [[8, 10]],
    }
    found = sweep(tmp_path, sweep={"grid": grid})
    assert [run.label for run in found.runs] == [
        "exchange=gossip(rho=0.1) widths=8,10", "exchange=gossip(rho=0.2) widths=8,10", "exchange=sync widths=8,10",
    ]  # fmt: skip


def test_combinations_that_are_one_run_are_one_run(tmp_path) -> None:
    found = sweep(tmp_path, sweep={"grid": {"optimizer.lr": [0.1, 0.10, 1e-1], "checkpoint.keep": [2, 3]}})
    assert len(found.runs) == 1
    assert found.repeated == 5


def test_a_file_without_a_sweep_is_one_run(tmp_path) -> None:
    (run,) = sweep(tmp_path).runs
    assert run.label == "the only run"
    assert to_values(run.config) == to_values(validate({**BASE, "run_dir": f"runs/s/{run.id}"}))


@settings(max_examples=50, deadline=None)
@given(
    grid=st.dictionaries(st.sampled_from("abc"), st.lists(st.integers(0, 2), min_size=1, max_size=3), max_size=3),
    rows=st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), max_size=3),
    seeds=st.one_of(st.none(), st.integers(1, 3), st.lists(st.integers(0, 5), min_size=1, max_size=3)),
    rule=st.dictionaries(st.sampled_from("abc"), st.integers(0, 2), min_size=1, max_size=2),
)
def test_combinations_are_those_of_the_product(grid, rows, seeds, rule) -> None:
    rule = {key: value for key, value in rule.items() if key in grid}
    columns = {"d": [one for one, _ in rows], "e": [other for _, other in rows]} if rows else {}
    made = Sweep(grid=grid, zip=columns, seeds=seeds, exclude=[rule] if rule else [])
    values = [None] if seeds is None else range(seeds) if isinstance(seeds, int) else seeds
    wanted = []
    for seed, point, row in itertools.product(values, itertools.product(*grid.values()), rows or [None]):
        chosen = dict(zip(grid, point, strict=True))
        chosen |= {} if row is None else {"d": row[0], "e": row[1]}
        chosen |= {} if seed is None else {"seed": seed}
        if not rule or any(chosen[key] != value for key, value in rule.items()):
            wanted.append(chosen)
    assert list(combinations(made)) == wanted


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        ({"sweep": {"grid": {"optimizer.lrr": [1]}}}, "optimizer.lrr: unknown key; did you mean lr?"),
        ({"sweep": {"grid": {"optimizer.lr": []}}}, "sweep.grid.optimizer.lr: got []"),
        ({"sweep": {"grid": {"optimizer.lr": 0.1}}}, "sweep.grid.optimizer.lr: got 0.1"),
        ({"sweep": {"grid": {"epochs": [1, 0]}}}, "input should be greater than or equal to 1 (in epochs=0)"),
        ({"sweep": {"zip": {"epochs": [1, 2], "seed": [1]}}}, "sweep.zip: its lists go together"),
        ({"sweep": {"grid": {"epochs": [1]}, "zip": {"epochs": [1]}}}, "sweep: epochs stands in grid and in zip"),
        ({"sweep": {"grid": {"seed": [1]}, "seeds": 2}}, "sweep: seed stands in grid or zip, and there is sweep.seeds"),
        ({"sweep": {"grid": {"run_dir": ["a", "b"]}}}, "sweep: run_dir cannot vary"),
        ({"sweep": {"grid": {"epochs": [1]}, "exclude": [{"seed": 1}]}}, "sweep.exclude: seed does not vary"),
        ({"sweep": {"grid": {"epochs": [1]}, "exclude": [{}]}}, "sweep.exclude: an empty rule"),
        ({"sweep": {"grid": {"epochs": [1]}, "exclude": [{"epochs": 1}]}}, "sweep.exclude: it leaves no run"),
        ({"sweep": {"seeds": 0}}, "sweep.seeds: got 0"),
        ({"sweep": {"gird": {"epochs": [1]}}}, "sweep.gird: unknown key; did you mean grid?"),
        ({"resources": {"rank": 2}}, "resources.rank: unknown key; did you mean ranks?"),
        ({"resources": {"ranks": 0}}, "resources.ranks: got 0"),
        ({"resources": {"ranks": 3, "nodes": 2}}, "resources.nodes: got 2, but 3 rank(s) cannot be spread evenly"),
        ({"resources": {"mem_gb": "8G"}}, "resources.mem_gb: got '8G'"),
        ({"sweep": [1]}, "sweep: got [1], but it is a section"),
        ({"run_dir": None}, "run_dir"),
        ({"data": {"name": "fashion-mnist", "root": "/nowhere"}}, "/nowhere"),
    ],
)  # fmt: skip
def test_a_mistake_is_told_with_its_key(sections, words, tmp_path) -> None:
    assert words in told(tmp_path, **sections)


def test_a_problem_of_many_runs_is_told_once(tmp_path) -> None:
    text = told(tmp_path, sweep={"grid": {"optimizer.lr": [-1.0], "epochs": [1, 2, 3, 4, 5]}})
    assert text.count("optimizer.lr") == 1
    assert "(in lr=-1 epochs=1; lr=-1 epochs=2; lr=-1 epochs=3, and 2 more)" in text


def test_a_file_that_is_none(tmp_path) -> None:
    with pytest.raises(ConfigError, match=r"no\.yaml: cannot be read"):
        read(tmp_path / "no.yaml")
    (tmp_path / "list.yaml").write_text("[1]")
    with pytest.raises(ConfigError, match="is a mapping of keys to values"):
        read(tmp_path / "list.yaml")
    (tmp_path / "none.yaml").write_text("epochs: 1")
    with pytest.raises(ConfigError, match="run_dir: missing; give the folder"):
        read(tmp_path / "none.yaml")


def test_an_empty_list_has_a_label(tmp_path) -> None:
    found = sweep(tmp_path, sweep={"grid": {"regularizers": [[], [{"name": "shade"}]]}})
    assert [run.label for run in found.runs] == ["regularizers=none", "regularizers=shade"]
