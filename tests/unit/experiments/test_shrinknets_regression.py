"""The regressions with switches and with group sparsity: what is fitted, against theory; a small run of all."""

import csv
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

HERE = Path(__file__).parents[3] / "experiments" / "shrinknets_regression"
PLAN = """
seeds: 2
descent: {steps: 12, batch: 16, momentum: 0.9}
rate: 0.1
strengths: [0.1, 0.9]
sides:
  "ShrinkNets, p = 2": {method: shrinknets, p: 2, weight_ratio: 0.1}
  "group sparsity, proximal": {method: group_sparsity, proximal: true}
search: {set: wine, sides: ["ShrinkNets, p = 2"], rates: [0.3], weight_ratios: [1.0]}
removal:
  side: "ShrinkNets, p = 2"
  seeds: 3
  strengths: [0.1]
  sets: [own]
  rules: {sign change: {rule: sign_change}}
sets:
  wine: {embedded: wine}
  own: {file: OWN, task: linear, alike: false}
"""
SWITCHES = {"method": "shrinknets", "p": 2, "weight_ratio": 0.1}


@pytest.fixture(scope="module")
def parts():
    pytest.importorskip("sklearn")
    pytest.importorskip("pandas")
    names = ["sets", "fits", "figure"]
    sys.path.insert(0, str(HERE))
    modules = {name: __import__(name) for name in names}
    yield type("Parts", (), modules)
    sys.path.remove(str(HERE))
    for name in names:
        del sys.modules[name]


def own(rows=60, seed=0):
    """Inputs of five columns; two targets that depend on the first two."""
    generator = np.random.default_rng(seed)
    inputs = generator.normal(size=(rows, 5))
    targets = inputs[:, :2] @ [[2.0, 1.0], [0.5, -1.0]] + 0.1 * generator.normal(size=(rows, 2))
    return inputs.astype(np.float32), targets.astype(np.float32)


def whole(parts, inputs, targets):
    """A split whose three parts are all of the rows."""
    return parts.sets.Split(*[parts.sets.Part(torch.as_tensor(inputs), torch.as_tensor(targets))] * 3)


@pytest.mark.parametrize("task", ["linear", "logistic"])
def test_group_sparsity_leaves_no_column_from_the_steepest_strength_on(parts, task):
    inputs, targets = own()
    inputs -= inputs.mean(0)
    scaled = (targets - targets.mean(0)) / targets.std(0)
    targets = scaled if task == "linear" else (targets[:, 0] > 0).astype(np.int64)
    split = whole(parts, inputs, targets)
    descent = parts.fits.Descent(300, 60, 0.9)
    side = {"method": "group_sparsity", "proximal": True}
    [above] = parts.fits.train([split], parts.fits.Setting(side, 1.02, 0.1, removal=False), descent)
    [below] = parts.fits.train([split], parts.fits.Setting(side, 0.95, 0.1, removal=False), descent)
    assert above.dead == 1
    assert parts.fits.loss(above, split.test) == pytest.approx(1, abs=0.02)  # the classes are not quite equally many
    assert below.dead == pytest.approx(0.8)
    assert parts.fits.loss(below, split.test) < parts.fits.loss(above, split.test)


def test_switches_are_a_penalty_of_the_power_two_thirds(parts):
    """min over theta a = c of l theta + m a^2 is 1.5 l (2 m / l)^(1/3) |c|^(2/3)."""
    x = np.array([[1, 1], [1, -1], [-1, 1], [-1, -1]], dtype=np.float32)
    split = whole(parts, x, x @ np.array([[3.0], [-1.5]], dtype=np.float32))
    [fit] = parts.fits.train(
        [split], parts.fits.Setting(SWITCHES, 0.1, 0.1, removal=False), parts.fits.Descent(600, 4, 0.9)
    )
    steepness = parts.fits.steepness(split.train)
    assert steepness == pytest.approx(6)
    c = fit.weights[0].numpy()
    slopes = 2 / 3 * 1.5 * 0.1 * steepness * (2 * 0.1) ** (1 / 3) * np.abs(c) ** (-1 / 3)
    np.testing.assert_allclose(2 * (np.array([3.0, -1.5]) - c), slopes * np.sign(c), rtol=1e-3)


def test_columns_that_are_cut_cost_nothing_more_and_are_zero(parts):
    inputs, targets = own()
    split = whole(parts, inputs - inputs.mean(0), targets - targets.mean(0))
    descent = parts.fits.Descent(400, 20, 0.9)
    [kept] = parts.fits.train([split], parts.fits.Setting(SWITCHES, 0.1, 0.1, removal=False), descent)
    [cut] = parts.fits.train([split], parts.fits.Setting(SWITCHES, 0.1, 0.1, removal=True), descent)
    assert kept.epochs == cut.epochs == 134  # of three batches
    assert kept.cost == 5 * 134
    assert 2 * 134 <= cut.cost < 4 * 134
    assert cut.living.tolist() == [True, True, False, False, False]
    assert not cut.weights[:, 2:].any()


def test_columns_are_fitted_again_by_least_squares(parts):
    inputs, targets = own()
    part = parts.sets.Part(torch.as_tensor(inputs), torch.as_tensor(targets))
    weights = torch.tensor([[1.0, 0.0, 5e-4, 3.0, 0.0], [1.0, 0.0, 5e-4, 3.0, 0.0]])
    again = parts.fits.refit(parts.fits.Fit(weights, torch.zeros(2), 0, 1), part)
    chosen = np.column_stack([inputs[:, [0, 3]], np.ones(len(inputs))])
    expected = np.linalg.lstsq(chosen, targets, rcond=None)[0]
    np.testing.assert_allclose(again.weights[:, [0, 3]].T, expected[:2], atol=1e-5)
    np.testing.assert_allclose(again.bias, expected[2], atol=1e-5)
    assert again.living.tolist() == [True, False, False, True, False]


def test_the_best_of_a_share_is_chosen_by_validation(parts):
    import pandas as pd

    runs = pd.DataFrame(
        {
            "seed": [0, 0, 0, 1, 1, 1],
            "dead": [0.0, 0.5, 0.75, 0.0, 0.25, 0.5],
            "valid_loss": [0.1, 0.3, 0.2, 0.5, 0.4, 0.6],
            "test_loss": [0.2, 0.1, 0.4, 0.7, 0.8, 0.9],
        }
    )
    found = parts.figure.best_of(runs, "test_loss", (0.0, 0.5, 0.75))
    np.testing.assert_array_equal(found, [[0.2, 0.4, 0.4], [0.8, 0.9, np.nan]])


@pytest.mark.slow
def test_the_experiment_runs_resumes_and_is_drawn(tmp_path, environment):
    pytest.importorskip("sklearn")
    pytest.importorskip("pandas")
    inputs, targets = own()
    np.savez(tmp_path / "own.npz", x=inputs, y=targets)
    (tmp_path / "tiny.yaml").write_text(PLAN.replace("OWN", str(tmp_path / "own.npz")))

    def start(script, *arguments):
        command = [sys.executable, str(HERE / script), *arguments, "--results", str(tmp_path)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    start("run.py", str(tmp_path / "tiny.yaml"))
    with (tmp_path / "runs.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * (2 * 2 * 2 + 2 * 2)  # seeds; strengths of both sides on two sets, and in the search
    assert all((row["refit_test_loss"] == "") == (row["set"] == "wine") for row in rows)
    with (tmp_path / "removal.csv").open() as file:
        assert [row["rule"] for row in csv.DictReader(file)] == ["none"] * 3 + ["sign change"] * 3
    assert start("run.py", str(tmp_path / "tiny.yaml")) == ""
    start("figure.py", "--out", str(tmp_path / "out"))
    assert {path.name for path in (tmp_path / "out").glob("*.png")} == {"figure.png", "refit.png", "removal.png"}
