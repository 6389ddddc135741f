"""Every choice that the configuration offers is one that the program has, with the same options and defaults."""

import inspect
from dataclasses import fields
from typing import Any, get_args, get_origin, get_type_hints

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")

# ruff: noqa: E402 - what follows needs torch
from hpc.config import data, files, model, training
from hpc.config import penalties as penalties_config
from hpc.config import pruning as pruning_config
from hpc.config import regularizers as regularizers_config
from hpc.config.read import validate
from structlearn.models import ACTIVATIONS, MODELS
from structlearn.models.checks import Stem
from structlearn.models.pooling import Pooling


def sections(union: Any) -> dict[str, Any]:
    """The sections of a union by each name that they serve."""
    found: dict[str, Any] = {}
    for kind in get_args(get_args(union)[0]):
        section = get_args(kind)[0]
        name = get_type_hints(section)["name"]
        names = get_args(name) if get_args(name) and get_origin(name) is not None else ()
        found |= dict.fromkeys(names, section)
    return found


NETWORKS = {name: kind for name, kind in sections(model.ModelConfig).items() if kind is not model.Custom}


def test_every_network_can_be_chosen_and_nothing_else() -> None:
    assert set(NETWORKS) == set(MODELS)


@pytest.mark.parametrize("name", sorted(MODELS))
def test_a_network_takes_the_options_of_its_section_with_the_same_defaults(name: str) -> None:
    parameters = inspect.signature(MODELS[name]).parameters.values()
    built = {each.name: each.default for each in parameters if each.kind is each.KEYWORD_ONLY}
    chosen = validate({"model": {"name": name}}).model
    given = {field.name: getattr(chosen, field.name) for field in fields(chosen) if field.name != "name"}
    assert given == built


def test_names_of_activations_stems_and_poolings_are_those_of_the_networks() -> None:
    assert set(get_args(model.Activation)) == set(ACTIVATIONS)
    assert set(get_args(model.Stem)) == set(get_args(Stem))
    assert set(get_args(model.Pooling)) == set(get_args(Pooling))


def test_every_image_set_has_a_published_form() -> None:
    names = get_args(get_type_hints(data.ImageFiles)["name"])
    assert set(names) == set(data.IMAGE_FILES) == set(files.PUBLISHED)


@pytest.mark.parametrize("name", sorted(sections(training.OptimizerConfig)))
def test_every_optimizer_can_be_built(name: str) -> None:
    from hpc import optimizer

    own = {} if name.startswith("alrao") else {"lr": 0.25}  # there it is a factor on all rates
    chosen = validate({"optimizer": {"name": name, **own, "weight_decay": 0.125}}).optimizer
    made = optimizer.build(chosen, torch.nn.Linear(3, 1))
    (group,) = made.param_groups
    assert (group["lr"], group["weight_decay"]) == (own.get("lr", 1.0), 0.125)
    same = {field.name for field in fields(chosen)} & group.keys() - {"rates"}
    assert same >= {*own, "weight_decay"}
    assert all(group[key] == getattr(chosen, key) for key in same)


@pytest.mark.parametrize("name", sorted(sections(training.ExchangeConfig)))
def test_every_exchange_can_be_built(name: str) -> None:
    from hpc import exchange
    from hpc.alone import Alone

    network = torch.nn.Linear(2, 2)
    stepper = torch.optim.SGD(network.parameters(), lr=0.1)
    needed = {"gossip": {"rho": 0.5}} | {key: {"tau": 4} for key in ("persyn", "easgd", "downpour")}
    config = validate({"exchange": {"name": name, **needed.get(name, {})}})
    assert exchange.build(config, Alone(), network, stepper, exchange.Agenda(1, None, 1)) is not None


@pytest.mark.parametrize("name", sorted(sections(training.ScheduleConfig)))
def test_every_schedule_gives_a_rate(name: str) -> None:
    from hpc.schedule import Schedule

    needed = {"milestones": [1]} if name == "step" else {}
    chosen = validate({"schedule": {"name": name, **needed}}).schedule
    assert Schedule(chosen, 10, 5).factor(0, 0) == pytest.approx(1.0)


METHODS = {
    name: section
    for name, section in sections(pruning_config.PruningConfig).items()
    if issubclass(section, pruning_config.Cutting)
}


@pytest.mark.parametrize("name", sorted(METHODS))
def test_every_pruning_can_be_built_with_the_defaults_of_its_method(name: str) -> None:
    from hpc import cutting

    whole = validate({"pruning": {"name": name}})
    config = whole.pruning
    network = torch.nn.Sequential(
        torch.nn.Linear(3, 8), torch.nn.BatchNorm1d(8), torch.nn.ReLU(), torch.nn.Linear(8, 2)
    )
    example = torch.rand(4, 3)
    network = cutting.wrap(config, network, example, 0)
    pruner = cutting.build(config, whole.optimizer, network, example, lambda: example, 8)._pruner
    assert type(pruner).__name__.lower() == name.replace("_", "")
    defaults = {
        each.name: each.default
        for each in inspect.signature(type(pruner)).parameters.values()
        if each.default is not each.empty
    }
    renamed = {"gamma": "memory", "power": "p"}
    for field in fields(config):
        key, value = renamed.get(field.name, field.name), getattr(config, field.name)
        assert key not in defaults or value in {None, defaults[key]}, field.name  # None: the method's own


PENALTIES = sections(penalties_config.PenaltyConfig)


def test_every_penalty_can_be_chosen_and_nothing_else() -> None:
    from structlearn.penalties.network import NAMES

    assert set(PENALTIES) == set(NAMES)


@pytest.mark.parametrize("name", sorted(PENALTIES))
def test_every_penalty_can_be_built_with_the_defaults_of_penalise(name: str) -> None:
    from hpc import penalties
    from structlearn.penalties import penalise

    network = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.BatchNorm1d(8), torch.nn.Linear(8, 2))
    chosen = validate({"penalties": [{"name": name}]}).penalties
    (made,) = penalties.build(chosen, network, 50)._penalties
    alone = penalise(network, name, strength=1 / 50)
    assert made.value() == alone.value()
    assert (made.strength, made.proximal, made.layers) == (0.02, alone.proximal, alone.layers)


REGULARIZERS = sections(regularizers_config.RegularizerConfig)


@pytest.mark.parametrize("name", sorted(REGULARIZERS))
def test_every_regularizer_can_be_built_with_the_defaults_of_its_method(name: str) -> None:
    from hpc import regularizers

    network = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    (config,) = validate({"regularizers": [{"name": name}]}).regularizers
    attached = regularizers.attach([config], network, torch.rand(4, 3), "classification", 50)
    (made,) = attached._regularizers
    assert type(made).__name__.lower() == name.replace("_", "")
    given = inspect.signature(type(made)).parameters
    defaults = {each.name: each.default for each in given.values() if each.default is not each.empty}
    for field in fields(config):
        value = getattr(config, field.name)
        if field.name in defaults and value is not None:
            assert value == defaults[field.name], field.name
    attached.remove()
    assert not any(each._forward_pre_hooks or each._forward_hooks for each in network.modules())
