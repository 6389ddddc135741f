"""Any configuration reads back from its text as itself; any text at all is understood or refused."""

from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import annotated_types
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic.fields import FieldInfo

from hpc.config import yamls
from hpc.config.model import Custom
from hpc.config.read import differences, flatten, identity, run_id, to_values, to_yaml, validate
from hpc.config.root import Config
from hpc.errors import ConfigError

PLAIN = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
JSON = st.recursive(
    PLAIN, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3), max_leaves=5
)
WORDS = st.from_regex(r"[a-z]{1,8}", fullmatch=True)


def values_of(hint: Any, limits: tuple[Any, ...] = ()) -> st.SearchStrategy[Any]:
    """Every value that a field of the configuration may take, from its type."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Annotated:
        made = values_of(inner[0], (*limits, *inner[1:]))
    elif origin is Literal:
        made = st.sampled_from(inner)
    elif origin in {Union, UnionType}:
        made = st.one_of([values_of(choice) for choice in inner])
    elif hint == tuple[()]:
        made = st.just(())
    elif origin is tuple and inner[-1] is Ellipsis:
        least = [limit.min_length for limit in flat_limits(limits) if isinstance(limit, annotated_types.MinLen)]
        made = st.lists(values_of(inner[0]), min_size=sum(least), max_size=4).map(tuple)
    elif origin is dict:
        made = st.dictionaries(values_of(inner[0]), values_of(inner[1]), min_size=1, max_size=3)
    elif origin is tuple:
        made = st.tuples(*map(values_of, inner))
    else:
        made = section(hint) if is_dataclass(hint) else scalar(hint, list(flat_limits(limits)))
    return made


def flat_limits(limits: tuple[Any, ...]) -> Iterator[Any]:
    for limit in limits:
        yield from limit.metadata if isinstance(limit, FieldInfo) else (limit,)


def scalar(kind: Any, limits: list[Any]) -> st.SearchStrategy[Any]:
    low = next((limit.ge for limit in limits if isinstance(limit, annotated_types.Ge)), None)
    above = next((limit.gt for limit in limits if isinstance(limit, annotated_types.Gt)), None)
    top = next((limit.le for limit in limits if isinstance(limit, annotated_types.Le)), None)
    below = next((limit.lt for limit in limits if isinstance(limit, annotated_types.Lt)), None)
    if kind is int:
        return st.integers(min_value=low, max_value=top)
    if kind is float:
        return st.floats(
            min_value=above if low is None else low,
            max_value=below if top is None else top,
            exclude_min=above is not None,
            exclude_max=below is not None,
            allow_nan=False,
            allow_infinity=False,
        )
    if kind is str:
        pattern = next((limit.pattern for limit in limits if hasattr(limit, "pattern")), None)
        return st.from_regex(r"[a-z]{1,5}\.[a-z]{1,5}:[a-z]{1,5}", fullmatch=True) if pattern else st.text()
    return {bool: st.booleans(), NoneType: st.none()}[kind]


def section(kind: Any) -> st.SearchStrategy[Any]:
    hints = get_type_hints(kind, include_extras=True)
    made = {field.name: values_of(hints[field.name]) for field in fields(kind) if field.name != "options"}
    if kind is Custom:
        made["options"] = st.dictionaries(WORDS.filter(lambda word: word not in {"name", "options"}), JSON, max_size=3)
    return st.fixed_dictionaries(made).map(lambda values: kind(**values))


CONFIGS = section(Config)


def refused(values: dict[str, Any]) -> tuple[str, ...]:
    """The problems with values; none where they are a configuration."""
    try:
        validate(values)
    except ConfigError as error:
        return error.problems
    return ()


@given(CONFIGS)
@settings(deadline=None, max_examples=200)
def test_values_and_text_come_back(config: Config) -> None:
    assert validate(to_values(config)) == config
    assert validate(yamls.parse(to_yaml(config), "text")) == config


@given(CONFIGS, CONFIGS)
@settings(deadline=None, max_examples=100)
def test_equal_identity_and_only_that_means_no_difference(one: Config, other: Config) -> None:
    assert differences(one, one) == []
    assert (differences(one, other) == []) == (identity(one) == identity(other)) == (run_id(one) == run_id(other))
    assert [line.partition(":")[0] for line in differences(one, other)] == [
        line.partition(":")[0] for line in differences(other, one)
    ]


@given(CONFIGS, JSON, st.randoms(use_true_random=False))
@settings(deadline=None, max_examples=300)
def test_any_value_in_any_place_is_taken_or_refused_by_its_key(config: Config, value: Any, chance: Any) -> None:
    """Not one crash, and the message names the place (or a section around it, where its kind is wrong)."""
    values = to_values(config)
    place = chance.choice(sorted(flatten(values)))
    *path, last = place.split(".")
    node = values
    for part in path:
        node = node[part]
    node[last] = value
    for problem in refused(values):
        assert problem.startswith(place.partition(".")[0])
        assert not any(word in problem for word in ("\n", "pydantic", "ArgsKwargs", "tuple["))


@given(st.text(alphabet="ab:-[]{},\n '\"#&*!|>%@`\t1e.0~?\x00é", max_size=40))
@settings(deadline=None, max_examples=500)
def test_any_text_is_understood_or_refused(text: str) -> None:
    try:
        values = yamls.parse(text, "text")
    except ConfigError:
        return
    if isinstance(values, dict):
        assert all(refused(values))


@pytest.mark.parametrize("values", [{}, {"data": {}}, {"model": {}, "optimizer": {}}])
def test_left_out_means_default(values: dict[str, Any]) -> None:
    assert validate(values) == Config()
