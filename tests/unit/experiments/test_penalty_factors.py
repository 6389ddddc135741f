"""Factors of penalties: which runs are made, at which strengths; what is chosen by what."""

import sys
from pathlib import Path

import pytest

pd = pytest.importorskip("pandas", reason="the extra analysis is not installed")
HERE = Path(__file__).parents[3] / "experiments" / "penalty_factors"


@pytest.fixture(scope="module")
def parts():
    names = ["run", "figure"]
    sys.path.insert(0, str(HERE))
    try:
        yield [__import__(name) for name in names]
    finally:
        sys.path.remove(str(HERE))
        for name in names:
            del sys.modules[name]


def test_a_plan_is_all_penalties_with_both_kinds_of_factors(parts):
    run, _ = parts
    from hpc.config import yamls

    plan = yamls.load(HERE / "small.yaml")
    assert yamls.load(HERE / "full.yaml").keys() == plan.keys()
    found = list(run.runs(plan, 2))
    assert len(set(found)) == len(found)
    for penalty in ("l2", "l1", "group_lasso", "reversed_group_lasso"):
        mine = [each for each in found if each.penalty == penalty]
        exponents = {
            side: [float(each.exponent) for each in mine if each.factors == side] for side in ("bayesian", "usual")
        }
        assert exponents["bayesian"] == [-2.5, -2, -1.5, -1, -0.5, 0, 0.5]  # W 4.8.2
        assert exponents["usual"][:8] == [-6, -5.5, -5, -4.5, -4, -3.5, -3, -2.5]
    assert [each.factors for each in found if not each.penalty] == ["none"]


def test_the_best_of_each_side_and_the_source_s_strength_are_run_again(parts):
    run, _ = parts
    row = {"seed": "0", "penalty": "l1", "rate": "0.1", "state": "done"}
    rows = [
        row | {"factors": "bayesian", "exponent": "0", "valid_accuracy": "0.7"},
        row | {"factors": "bayesian", "exponent": "-1", "valid_accuracy": "0.8"},
        row | {"factors": "bayesian", "exponent": "-2", "valid_accuracy": "nan", "state": "not finite"},
        row | {"factors": "usual", "exponent": "0", "valid_accuracy": "0.6"},
        row | {"factors": "usual", "exponent": "-3", "valid_accuracy": "0.9"},
        row | {"factors": "none", "exponent": "", "penalty": "", "valid_accuracy": "1.0"},
        row | {"factors": "usual", "exponent": "0", "valid_accuracy": "1.0", "seed": "1"},  # not of the first seeds
    ]
    found = list(run.best_runs({"seeds": 1, "best_seeds": 3, "baseline_rates": [0.5]}, rows))
    assert [each[1:] for each in found[:4]] == [each[1:] for each in found[4:]]
    assert [(each.seed, each.factors, each.exponent, each.rate) for each in found[:4]] == [
        ("1", "none", "", "0.5"), ("1", "bayesian", "-1", "0.1"), ("1", "bayesian", "0", "0.1"),
        ("1", "usual", "-3", "0.1"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("factors", "exponent", "strength"), [("bayesian", "-0.5", 10**-0.5 / 40), ("usual", "1", 10.0), ("none", "", 0.0)]
)
def test_a_run_has_the_strength_of_its_side(parts, factors, exponent, strength):
    run, _ = parts
    import torch

    from hpc.config.read import validate
    from hpc.data import Feed
    from hpc.data.dataset import DataSet, Part

    torch.manual_seed(0)
    part = Part(torch.randint(256, (40, 1, 16, 16), dtype=torch.uint8), torch.randint(10, (40,)))
    dataset = DataSet(
        "own", "classification", part, part, part, (1, 16, 16), 10, torch.zeros(1, 1, 1), torch.ones(1, 1, 1), ()
    )
    feed = Feed(dataset, validate({"data": {"batch_size": 8}}).data, torch.device("cpu"), seed=0, rank=0, world_size=1)
    plan = {"width": 0.05, "threshold": 0.001, "momentum": 0.9, "patience": 2}
    training = run.Training(
        plan, run.Run("0", "" if factors == "none" else "l1", factors, exponent, "0.01"), dataset, feed
    )
    assert training.pruner.strength == training.strength == pytest.approx(strength)
    assert training.prune(1)
    assert training.fine_tune([[0.1, 1]])
    assert (training.epochs, training.pruner.factors) == (2, "bayesian" if factors == "bayesian" else "usual")
    if factors == "usual":  # so strong that some layer has one unit left
        assert min(training.pruner.structure.widths.values()) == 1


def test_strengths_are_chosen_by_the_validation_set(parts):
    _, figure = parts
    rows = [
        {"seed": seed, "penalty": "l1", "factors": "bayesian", "exponent": exponent, "strength": 10**exponent,
         "rate": 0.1, "valid": valid + seed, "accuracy": test + seed, "parameters": 10, "widths": "1/2"}
        for seed in (0, 1)
        for exponent, valid, test in ((-1.0, 80, 70), (0.0, 79, 75))
    ]  # fmt: skip
    found = figure.points(pd.DataFrame(rows))
    chosen = figure.best(found, "l1", "bayesian")
    assert (chosen.exponent, chosen.accuracy, chosen.runs) == (-1.0, 70.5, 2)
    assert chosen.accuracy_std == pytest.approx(0.5**0.5)
    assert figure.best(found, "l1", "bayesian", "accuracy").exponent == 0.0
