"""From text and command line to a configuration, and back."""

from pathlib import Path

import pytest

from hpc.config.data import Digits, ImageFiles
from hpc.config.model import Custom, Mlp
from hpc.config.penalties import L1Penalty
from hpc.config.read import (
    NOT_IDENTITY,
    differences,
    flatten,
    identity,
    parse_overrides,
    read,
    run_id,
    schema,
    to_values,
    to_yaml,
    validate,
)
from hpc.config.root import Config
from hpc.config.training import Adam, Cosine, PerSyn, Sgd
from hpc.errors import ConfigError


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text(text, encoding="utf-8")
    return path


# --- reading -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["", "# nothing\n", "{}", "null"])
def test_an_empty_file_is_all_defaults(text: str, tmp_path: Path) -> None:
    assert read(written(tmp_path, text)) == read(None) == Config()


def test_a_file_is_read(tmp_path: Path) -> None:
    config = read(written(tmp_path, "seed: 3\noptimizer: {name: adam, lr: 1e-3}\nschedule: {name: cosine}"))
    assert config.seed == 3
    assert config.optimizer == Adam(lr=1e-3)
    assert config.schedule == Cosine()


def test_a_section_without_a_name_is_the_default_choice() -> None:
    assert validate({"optimizer": {"lr": 0.2}, "data": {"batch_size": 8}}) == Config(
        optimizer=Sgd(lr=0.2), data=Digits(batch_size=8)
    )


def test_a_model_of_ones_own_takes_any_option() -> None:
    model = validate({"model": {"name": "mine:build", "depth": 3, "options": {"wide": True}}}).model
    assert model == Custom(name="mine:build", options={"wide": True, "depth": 3})


def test_overrides_win_over_the_file(tmp_path: Path) -> None:
    path = written(tmp_path, "epochs: 3\ndata: {name: digits, batch_size: 8}")
    config = read(path, ["--epochs", "5", "--data.batch_size=16", "--model.widths", "[4, 4]"])
    assert (config.epochs, config.data.batch_size, config.model) == (5, 16, Mlp(widths=(4, 4)))


def test_another_name_starts_the_section_anew(tmp_path: Path) -> None:
    """The file's momentum means nothing to Adam."""
    path = written(tmp_path, "optimizer: {name: sgd, lr: 0.5, momentum: 0.8}")
    assert read(path, ["--optimizer.name", "adam"]).optimizer == Adam()
    assert read(path, ["--optimizer.name", "sgd"]).optimizer == Sgd(lr=0.5, momentum=0.8)
    assert read(path, ["--optimizer.name", "adam", "--optimizer.lr", "0.1"]).optimizer == Adam(lr=0.1)


def test_a_section_can_be_given_whole(tmp_path: Path) -> None:
    path = written(tmp_path, "early_stopping: {patience: 3}")
    assert read(path, ["--early_stopping", "null"]).early_stopping is None
    assert read(None, ["--exchange", "{name: persyn, tau: 4}"]).exchange == PerSyn(tau=4)


def test_a_list_of_sections_is_given_whole(tmp_path: Path) -> None:
    path = written(tmp_path, "penalties: [{name: l2, strength: 1}, {name: bn_lasso}]")
    assert [penalty.name for penalty in read(path).penalties] == ["l2", "bn_lasso"]
    assert read(path, ["--penalties", "[{name: l1}]"]).penalties == (L1Penalty(name="l1"),)
    given = read(None, ["--penalties=[{name: l1, factors: {head: 2}, strength: 0.1}]"]).penalties
    assert given == (L1Penalty(name="l1", factors={"head": 2.0}, strength=0.1),)
    assert read(path, ["--penalties", "[]"]).penalties == ()


@pytest.mark.parametrize(
    ("arguments", "pairs"),
    [
        ([], []),
        (["--seed", "3"], [("seed", 3)]),
        (["--seed=3"], [("seed", 3)]),
        (["--optimizer.lr", "1e-3"], [("optimizer.lr", 1e-3)]),
        (["--optimizer.lr", "-1"], [("optimizer.lr", -1)]),
        (["--data.root", "a=b"], [("data.root", "a=b")]),
        (["--data.root=a=b"], [("data.root", "a=b")]),
        (["--data.root", ""], [("data.root", None)]),
        (["--model.widths", "[1, 2]"], [("model.widths", [1, 2])]),
        (["--seed", "1", "--seed", "2"], [("seed", 1), ("seed", 2)]),
    ],
)
def test_overrides_are_pairs(arguments: list[str], pairs: list[tuple[str, object]]) -> None:
    assert parse_overrides(arguments) == pairs


@pytest.mark.parametrize(
    "arguments", [["seed", "3"], ["-s", "3"], ["--"], ["--seed"], ["--seed", "--epochs"], ["--.a=1"]]
)
def test_what_is_no_override_is_refused(arguments: list[str]) -> None:
    with pytest.raises(ConfigError, match=r"--KEY\.SUBKEY VALUE"):
        parse_overrides(arguments)


def test_an_override_does_not_go_below_a_value(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--data\.name\.x: data\.name is 'digits'"):
        read(written(tmp_path, "data: {name: digits}"), ["--data.name.x", "1"])


def test_all_problems_are_told_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        validate({"epochs": 0, "data": {"batch_size": "many"}, "sed": 1})
    assert [problem.partition(":")[0] for problem in caught.value.problems] == ["epochs", "data.batch_size", "sed"]


# --- and back ------------------------------------------------------------------------------------------


def test_the_text_says_every_key_and_the_choice_first() -> None:
    text = to_yaml(Config())
    assert text.splitlines()[:2] == ["seed: 0", "run_dir: runs/example"]
    assert "optimizer:\n  name: sgd\n" in text
    assert set(flatten(to_values(Config()))) >= {"compute.deadline_s", "model.widths", "early_stopping", "penalties"}


def test_flatten() -> None:
    nested = {"a": 1, "b": {"c": [1, 2], "d": {"e": None}}, "f": {}}
    assert flatten(nested) == {"a": 1, "b.c": [1, 2], "b.d.e": None, "f": {}}


def test_the_schema_describes_every_key() -> None:
    found = schema()
    assert found["$schema"].endswith("2020-12/schema")
    assert set(found["properties"]) == set(to_values(Config()))
    assert found["additionalProperties"] is False
    for value in found["properties"].values():  # a text that section and key share stands at the section only
        assert value.get("description") or found["$defs"][value["$ref"].rpartition("/")[2]]["description"]


# --- identity ------------------------------------------------------------------------------------------


FREE = {
    "run_dir": "elsewhere",
    "data.root": "moved",
    "data.placement": "host",
    "data.prefetch": 5,
    "checkpoint.every_epochs": 3,
    "checkpoint.every_steps": 7,
    "checkpoint.keep": 9,
    "compute.share_devices": True,
    "compute.deadline_s": 5.0,
    "compute.device_pointers": "never",
}
"""Another value for each key that is free."""


def test_where_and_how_a_run_is_kept_does_not_make_it_another() -> None:
    assert FREE.keys() == NOT_IDENTITY | {"data.root"}
    here = read(None, ["--data.name", "mnist"])
    values = flatten(to_values(here))
    assert all(values[key] != value for key, value in FREE.items()), "each is another value of a key that exists"
    moved = read(None, ["--data.name", "mnist", *(f"--{key}={value}" for key, value in FREE.items())])
    assert run_id(moved) == run_id(here)
    assert differences(here, moved) == []
    assert not NOT_IDENTITY & identity(here).keys()


@pytest.mark.parametrize("name", ["text", "tabular"])
def test_a_file_of_the_users_own_may_move_but_not_become_another(name: str) -> None:
    def at(root: str) -> Config:
        return validate({"data": {"name": name, "root": root}})

    assert run_id(at("elsewhere/one")) == run_id(at("one"))
    assert differences(at("one"), at("other")) == ["data.root: 'one' in the folder, 'other' given"]


@pytest.mark.parametrize("key", ["compute.threads", "record.every_steps", "data.batch_size", "epochs"])
def test_what_changes_a_number_does(key: str) -> None:
    assert differences(Config(), read(None, [f"--{key}=3"])) != []


def test_what_decides_the_result_makes_it_another() -> None:
    other = validate({"seed": 1, "optimizer": {"name": "adam"}})
    assert run_id(other) != run_id(Config())
    told = differences(Config(), other)
    assert "seed: 0 in the folder, 1 given" in told
    assert "optimizer.name: 'sgd' in the folder, 'adam' given" in told
    assert "optimizer.momentum: 0.9 in the folder, '(not set)' given" in told


def test_a_run_id_is_twelve_digits_and_stays_the_same() -> None:
    assert run_id(Config()) == run_id(validate(to_values(Config())))
    assert len(run_id(Config())) == 12
    assert int(run_id(Config()), 16) >= 0


def test_a_frozen_configuration_cannot_be_changed() -> None:
    with pytest.raises(AttributeError):
        Config().seed = 1  # type: ignore[misc]


def test_image_sets_share_a_section() -> None:
    assert validate({"data": {"name": "svhn"}}).data == ImageFiles(name="svhn")


@pytest.mark.parametrize(
    ("override", "example"),
    [
        ("--regularizers.0.strength=3", "regularizers: [{name: ..., strength: 3}]"),
        ("--penalties.1.name=l1", "penalties: [{name: l1}]"),
        ("--model.widths.0=64", "model.widths: [64]"),
    ],
)
def test_a_list_is_given_whole(override: str, example: str, tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("regularizers: [{name: shade}]\npenalties: [{name: l2}]")
    for path in (None, tmp_path / "run.yaml"):
        with pytest.raises(ConfigError) as caught:
            read(path, [override])
        assert str(caught.value).endswith(f"is a list, and a list is given whole, for example {example}")
