"""Every complaint is a sentence: the key, what was given, what is allowed, what to do."""

from typing import Any

import pytest

from hpc.config.read import validate
from hpc.errors import ConfigError


def told(values: dict[str, Any]) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as caught:
        validate(values)
    return caught.value.problems


@pytest.mark.parametrize(
    ("values", "start"),
    [
        ({"epohcs": 3}, "epohcs: unknown key; did you mean epochs? (allowed: seed, run_dir, "),
        ({"xyz": 3}, "xyz: unknown key; allowed: seed, run_dir, "),
        ({1: 3}, "1: got 1; keys should be strings"),
        ({"data": {"augment": {"pda": 1}}}, "data.augment.pda: unknown key; did you mean pad? (allowed: pad, flip)"),
        ({"model": {"name": "cnn", "widths": [3]}}, "model.widths: unknown key; did you mean width? (allowed: "),
        ({"model": {"name": "vgg61"}}, "model.name: got 'vgg61'; did you mean vgg1"),
        ({"optimizer": {"name": "sdg"}}, "optimizer.name: got 'sdg'; did you mean sgd? (allowed: adagrad, adam, "),
        ({"optimizer": {"name": 3}}, "optimizer.name: got 3; allowed: adagrad, adam, alrao, alrao-adam, rmsprop, sgd"),
        ({"optimizer": {"name": None}}, "optimizer.name: got null; allowed: adagrad, adam, "),
        ({"optimizer": "adam"}, "optimizer: got 'adam', but it is a section; write optimizer: {name: adam}"),
        ({"optimizer": 3}, "optimizer: got 3, but it is a section; write optimizer: {name: ...}"),
        ({"optimizer": None}, "optimizer: got null, but it is a section; write optimizer: {name: ...}"),
        ({"compute": 3}, "compute: got 3, but it is a section with the keys device, "),
        ({"compute": {"device": "gpu"}}, "compute.device: got 'gpu'; did you mean cpu? (allowed: auto, cpu, cuda)"),
        ({"compute": {"device": True}}, "compute.device: got true; allowed: auto, cpu, cuda"),
        ({"exchange": {"name": "persyn"}}, "exchange.tau: missing, and it has no default (persyn needs it)"),
        ({"data": {"name": "tabular"}}, "data.root: missing, and it has no default (tabular needs it)"),
        ({"penalties": [{"name": "l3"}]}, "penalties.0.name: got 'l3'; allowed: bn_lasso, group_lasso, l1, l2, "),
        ({"penalties": [{"name": "l1"}, {}]}, "penalties.1.name: got null; allowed: bn_lasso, group_lasso, l1, l2, "),
        ({"penalties": [{"name": "l1", "strenght": 1}]}, "penalties.0.strenght: unknown key; did you mean strength?"),
        ({"penalties": [{"name": "l2", "proximal": True}]}, "penalties.0.proximal: unknown key; allowed: strength, "),
        ({"penalties": [{"name": "l2", "strength": -1}]}, "penalties.0.strength: got -1; input should be greater than"),
        (
            {"penalties": [{"name": "l2", "factors": "baysian"}]},
            "penalties.0.factors: got 'baysian'; did you mean bayesian? (allowed: bayesian, usual), or {LAYER: factor",
        ),
        ({"penalties": [{"name": "l2", "factors": {}}]}, "penalties.0.factors: got {}; allowed: bayesian, usual, or {"),
        ({"penalties": [{"name": "l2", "factors": {"a": -1}}]}, "penalties.0.factors.a: got -1; input should be"),
        ({"penalties": ["l1"]}, "penalties.0: got 'l1', but it is a section; write {name: l1}"),
        ({"penalties": {"name": "l1"}}, "penalties: got {'name': 'l1'}, but it is a list of sections; write penalties"),
        ({"penalties": "l1"}, "penalties: got 'l1'; input should be a list"),
        ({"regularizers": [{"name": "shadow"}]}, "regularizers.0.name: got 'shadow'; did you mean shade?"),
        ({"model": {"name": "a.b:"}}, "model.name: got 'a.b:'; a model of your own is written package.module:function"),
        ({"model": {"widths": [8, 0]}}, "model.widths.1: got 0; input should be greater than or equal to 1"),
        ({"model": {"widths": 8}}, "model.widths: got 8; input should be a list"),
        ({"optimizer": {"name": "adam", "betas": [0.1] * 3}}, "optimizer.betas: got [0.1, 0.1, 0.1]; list should have"),
        ({"data": {"name": "tabular", "root": "x", "target": 3}}, "data.target: got 3, but this is text; put it"),
        ({"data": {"name": "tabular", "root": "x", "target": ["a", 3]}}, "data.target.1: got 3, but this is text"),
        (
            {"data": {"name": "tabular", "root": "x", "target": {}}},
            "data.target: got {}; input should be a valid string",
        ),
        ({"epochs": 2.0}, "epochs: got 2.0; input should be a valid integer"),
        ({"epochs": None}, "epochs: got null; input should be a valid integer"),
        ({"seed": "x" * 100}, f"seed: got '{'x' * 56}...; input should be"),
        ({"compute": {"compile": "yes"}}, "compute.compile: got 'yes'; input should be a valid boolean"),
        ({"run_dir": 2026}, "run_dir: got 2026, but this is text; put it in quotes"),
        ({"early_stopping": {"patience": 0}}, "early_stopping.patience: got 0; input should be greater than"),
    ],
)
def test_a_problem_is_one_sentence(values: dict[str, Any], start: str) -> None:
    (problem,) = told(values)
    assert problem.startswith(start)


def test_a_date_is_shown_as_it_was_written() -> None:
    from hpc.config import yamls

    (problem,) = told(yamls.parse("run_dir: 2026-11-03", "file"))
    assert problem == "run_dir: got 2026-11-03, but this is text; put it in quotes"


def test_options_of_ones_own_model_are_plain_values() -> None:
    (problem,) = told({"model": {"name": "a:b", "when": {1, 2}}})
    assert problem.startswith("model.options.when: got {1, 2}; input was not a valid JSON value")
