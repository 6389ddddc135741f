"""Pydantic's complaints as sentences: the dotted key, what was given, what is allowed, what to try."""

import difflib
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from datetime import date
from typing import Any, Final, Literal, get_args, get_origin, get_type_hints

from pydantic import Tag, ValidationError

from hpc.config import yamls
from hpc.config.root import Config

OF_SWEEPS: Final = ("sweep", "resources")
"""The sections that a sweep's file has beside a run's configuration."""


def explain(error: ValidationError, root: Any = Config) -> list[str]:
    """One line for each problem, in the order of the keys of `root`.

    Where a key takes one of several types, pydantic complains for each: the one that got furthest is told.
    """
    told: dict[str, str] = {}
    for problem in error.errors(include_url=False):
        key, owner, leaf = _resolve(problem["loc"], root)
        if any(other.startswith(f"{key}.") for other in told):
            continue
        for shorter in [other for other in told if key.startswith(f"{other}.")]:
            del told[shorter]
        told.setdefault(key, _line(problem, key, owner, leaf))
    return list(told.values())


def _line(problem: Any, key: str, owner: Any, leaf: str) -> str:
    given = _short(problem["input"])
    known = [field.name for field in fields(owner)] if is_dataclass(owner) else []
    match problem["type"]:
        case "unexpected_keyword_argument" | "extra_forbidden":
            of_sweep = owner is Config and leaf in OF_SWEEPS
            hint = "; it belongs to a sweep, which structlearn submit takes" if of_sweep else _suggest(leaf, known)
            says = f"unknown key{hint}"
        case "union_tag_invalid":
            return _bad_choice(key, owner, problem["input"])
        case "literal_error":
            allowed = [word.strip("' ") for word in problem["ctx"]["expected"].replace(" or ", ", ").split(",")]
            or_each = ", or {LAYER: factor, ...}" if leaf == "factors" and key.startswith("penalties") else ""
            says = f"got {given}{_suggest(str(problem['input']), allowed)}{or_each}"
        case "missing" | "missing_argument":
            says = f"missing, and it has no default{_needed_by(owner)}; give it a value"
        case "dataclass_type" | "tuple_type" if (form := _unfolded(problem, key, known)) is not None:
            says = f"got {given}, but it is {form}"
        case "string_type" if isinstance(problem["input"], bool | int | float | date):
            says = f"got {given}, but this is text; put it in quotes"
        case "string_pattern_mismatch" if key == "model.name":
            says = f"got {given}; a model of your own is written package.module:function"
        case _:
            says = f"got {given}; {problem['msg'][0].lower()}{problem['msg'][1:]}"
            says = says.replace("valid tuple", "list").replace("tuple", "list").replace(" after validation", "")
            says = says.replace("valid dictionary", "mapping of keys to values")
    return f"{key}: {says}"


def _unfolded(problem: Any, key: str, known: list[str]) -> str | None:
    """What a section, or a list of them, is to look like, where something simpler was given; None: no hint."""
    given = problem["input"]
    if problem["type"] == "tuple_type":
        of_sections = isinstance(given, dict) and "name" in given
        return f"a list of sections; write {key}: [{{name: {given['name']}, ...}}]" if of_sections else None
    if "name" not in known or not isinstance(given, str):
        return f"a section with the keys {', '.join(known)}"
    in_list = key.rpartition(".")[2].isdigit()
    return f"a section; write {'' if in_list else f'{key}: '}{{name: {given}}}"


def _bad_choice(key: str, owner: Any, given: Any) -> str:
    """The message for a section whose ``name`` is none of the choices, or that is no section at all."""
    if not isinstance(given, dict):
        return f"{key}: got {_short(given)}, but it is a section; write {key}: {{name: ...}}"
    names = sorted(_names(owner))
    extra = ", or package.module:function of your own" if key == "model" else ""
    return f"{key}.name: got {_short(given.get('name'))}{_suggest(str(given.get('name')), names)}{extra}"


def _suggest(word: str, known: list[str]) -> str:
    if not known:
        return ""
    close = difflib.get_close_matches(word, known, n=1)
    hint = f"; did you mean {close[0]}?" if close else ""
    return f"{hint} (allowed: {', '.join(known)})" if hint else f"; allowed: {', '.join(known)}"


def _needed_by(owner: Any) -> str:
    names = list(_names(owner)) if owner else []
    return f" ({names[0]} needs it)" if len(names) == 1 else ""


def _short(value: Any) -> str:
    """A value as the user wrote it: YAML's null and true, not Python's."""
    text = (
        yamls.dump(value).split("\n", maxsplit=1)[0] if value is None or isinstance(value, bool | date) else repr(value)
    )
    return text if len(text) <= 60 else f"{text[:57]}..."


def _resolve(loc: tuple[Any, ...], root: Any) -> tuple[str, Any, str]:
    """Pydantic's location as (dotted key, type that owns or is the last part, last part).

    Pydantic puts the tags and types of unions between the keys; a reader's file has neither.
    """
    here: Any = root
    owner: Any = root
    key: list[str] = []
    for part in loc:
        tagged = dict(_tags(here))
        if part in tagged:
            here = owner = tagged[part]
            continue
        if str(part).partition("[")[0].removeprefix("constrained-").lower() in _labels(here):
            continue
        key.append(str(part))
        if isinstance(part, int) and get_origin(here) in {tuple, list} and _dataclasses(get_args(here)[0]):
            here = owner = get_args(here)[0]
            continue
        sections = [kind for kind in _dataclasses(here) if hasattr(kind, "__dataclass_fields__")]
        hints = get_type_hints(sections[0], include_extras=True) if len(sections) == 1 else {}
        owner, here = (sections[0] if len(sections) == 1 else here), hints.get(str(part))
        if here is None:
            break
    last = here if here is not None and (_dataclasses(here)) else owner
    if len(_dataclasses(last)) == 1:
        last = _dataclasses(last)[0]
    return ".".join(key) or "configuration", last, key[-1] if key else ""


def _members(hint: Any) -> Iterator[tuple[str | None, Any]]:
    """The types inside unions and annotations, with the tag of each."""
    arguments = get_args(hint)
    if hint is None or not arguments:
        yield None, hint
    elif hasattr(hint, "__metadata__"):
        tag = next((item.tag for item in hint.__metadata__ if isinstance(item, Tag)), None)
        for inner_tag, inner in _members(hint.__origin__):
            yield inner_tag or tag, inner
    elif get_origin(hint) is Literal or get_origin(hint) in {tuple, dict, list}:
        yield None, hint
    else:
        for argument in arguments:
            yield from _members(argument)


def _tags(hint: Any) -> Iterator[tuple[str, Any]]:
    return ((tag, kind) for tag, kind in _members(hint) if tag is not None)


def _labels(hint: Any) -> set[str]:
    """What pydantic calls the members of a union of plain types in a location, without what is in brackets."""
    kinds = [kind for tag, kind in _members(hint) if tag is None and kind is not type(None) and not is_dataclass(kind)]
    return {(get_origin(kind) or kind).__name__.lower() for kind in kinds} if len(kinds) > 1 else set()


def _dataclasses(hint: Any) -> list[Any]:
    return [kind for _, kind in _members(hint) if is_dataclass(kind)]


def _names(hint: Any) -> Iterator[str]:
    """Every value of ``name`` that the sections of a union allow."""
    for kind in _dataclasses(hint):
        name = get_type_hints(kind).get("name")
        yield from get_args(name) if get_origin(name) is Literal else ()
