"""From a YAML file and command-line overrides to a checked :class:`Config`, and back to text."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from hpc.config import yamls
from hpc.config.data import Tabular, TextFiles
from hpc.config.explain import explain
from hpc.config.root import Config
from hpc.errors import ConfigError


@cache
def _adapter() -> TypeAdapter[Config]:
    return TypeAdapter(Config)


def read(path: Path | None, overrides: Sequence[str] = ()) -> Config:
    """The configuration in a file (None: all defaults), with ``--KEY.SUBKEY VALUE`` overrides.

    Raises:
        ConfigError: one message for every problem found, each with its key.
    """
    return validate(values_in(path, overrides))


def values_in(path: Path | None, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """The plain values of a file (None: none), with overrides, not yet validated. Raises ConfigError."""
    values: Any = {}
    if path is not None:
        try:
            values = yamls.load(path)
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "not a text file in UTF-8"
            raise ConfigError(f"{path}: cannot be read ({reason}); give the path of a YAML file") from None
    values = {} if values is None else values
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: got {type(values).__name__}, but a configuration is a mapping of keys to values")
    for key, value in parse_overrides(overrides):
        put(values, key, value)
    return values


def validate(values: Mapping[str, Any]) -> Config:
    """A :class:`Config` from plain values. Raises ConfigError."""
    if not isinstance(values, Mapping):
        raise ConfigError(f"got {type(values).__name__}, but a configuration is a mapping of keys to values")
    try:
        return _adapter().validate_python(dict(values))
    except ValidationError as error:
        raise ConfigError(explain(error)) from None


def parse_overrides(arguments: Sequence[str]) -> list[tuple[str, Any]]:
    """``["--data.name", "digits", "--seed=3"]`` as pairs of dotted key and value (read as YAML)."""
    pairs: list[tuple[str, Any]] = []
    rest = list(arguments)
    while rest:
        word = rest.pop(0)
        key, equals, value = word[2:].partition("=")
        if not word.startswith("--") or not all(key.split(".")):
            raise ConfigError(f"{word}: not understood; overrides have the form --KEY.SUBKEY VALUE")
        if not equals:
            if not rest or (rest[0].startswith("--")):
                raise ConfigError(f"--{key}: no value follows; overrides have the form --KEY.SUBKEY VALUE")
            value = rest.pop(0)
        pairs.append((key, yamls.parse(value, f"--{key}")))
    return pairs


def put(values: dict[str, Any], dotted: str, value: Any) -> None:
    """Set a dotted key. A section given by another name starts anew: its old keys belong to the old choice."""
    *path, last = dotted.split(".")
    node = values
    for depth, key in enumerate(path, 1):
        inner = node.get(key)
        rest = dotted.split(".")[depth:]
        if isinstance(inner, list) or (not inner and rest[0].isdigit()):
            raise ConfigError(_whole(dotted, ".".join(path[:depth]), rest, value))
        if inner is None:
            inner = node[key] = {}
        elif not isinstance(inner, dict):
            where = ".".join(path[:depth])
            raise ConfigError(f"--{dotted}: {where} is {inner!r} in the file, which has no keys below it")
        node = inner
    if last == "name" and "name" in node and node["name"] != value:
        node.clear()
    node[last] = value


def _whole(dotted: str, where: str, rest: Sequence[str], value: Any) -> str:
    """What is wrong with a key that is below a list."""
    given = _short(value)
    named = "" if rest[-1] == "name" else "name: ..., "
    whole = f"[{{{named}{rest[-1]}: {given}}}]" if len(rest) > 1 or not rest[0].isdigit() else f"[{given}]"
    return f"--{dotted}: {where} is a list, and a list is given whole, for example {where}: {whole}"


def _short(value: Any) -> str:
    return str(value) if isinstance(value, str | int | float) and not isinstance(value, bool) else json.dumps(value)


def to_values(config: Config) -> dict[str, Any]:
    """Plain values (dicts, lists, numbers, text) of the resolved configuration."""
    plain: dict[str, Any] = json.loads(json.dumps(asdict(config)))
    return {section: _choice_first(value) for section, value in plain.items()}


def _choice_first(value: Any) -> Any:
    """A section, or a list of them, with the choice first and its keys after."""
    if isinstance(value, list):
        return [_choice_first(each) for each in value]
    return {"name": value.pop("name"), **value} if isinstance(value, dict) and "name" in value else value


def to_yaml(config: Config) -> str:
    """The resolved configuration as YAML; reading it back gives an equal one."""
    return yamls.dump(to_values(config))


def schema() -> dict[str, Any]:
    """The JSON schema of a configuration file, for editors."""
    made = _adapter().json_schema()
    made["$defs"]["Custom"]["additionalProperties"] = True  # keys beside `name` are options of the user's function
    return {"$schema": "https://json-schema.org/draft/2020-12/schema"} | made


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested values as ``{"data.name": "digits", ...}``."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


NOT_IDENTITY = frozenset(
    {
        "run_dir",
        # How batches reach the device: they are the same, bit for bit.
        "data.placement",
        "data.prefetch",
        # How often the state is written down, and how much of it stays.
        "checkpoint.every_epochs",
        "checkpoint.every_steps",
        "checkpoint.keep",
        # Which rank computes where, and how long it waits for the others.
        "compute.share_devices",
        "compute.deadline_s",
        # Which way sums travel: the same but for rounding on a device. A run must get away from a library that crashes.
        "compute.device_pointers",
    }
)
"""Keys that change no number of a run: with other values it is the same experiment, and is resumed.

``data.root`` is free too, but for the name of a text's or a table's own file. Not free are ``compute.threads``, which
changes the order of sums, and ``record.every_steps``: the record would change its step half-way.
"""


def identity(config: Config) -> dict[str, Any]:
    """The flat values that decide the result of a run."""
    values = {key: value for key, value in flatten(to_values(config)).items() if key not in NOT_IDENTITY}
    # Where the data are is nobody's business; that they are the same, the run's fingerprint of them says. But the name
    # of the user's own file is all that tells one experiment from another.
    if isinstance(config.data, (TextFiles, Tabular)) and config.data.root is not None:
        values["data.root"] = Path(config.data.root).name
    else:
        values.pop("data.root", None)
    return values


def run_id(config: Config) -> str:
    """Twelve hexadecimal digits that name the experiment: a hash of its :func:`identity`."""
    canonical = json.dumps(identity(config), sort_keys=True, separators=(",", ":"))
    return hashlib.blake2b(canonical.encode(), digest_size=6).hexdigest()


def differences(old: Config, new: Config) -> list[str]:
    """One line for each key of :func:`identity` on which two configurations differ."""
    before, after = identity(old), identity(new)
    missing = "(not set)"
    return [
        f"{key}: {before.get(key, missing)!r} in the folder, {after.get(key, missing)!r} given"
        for key in sorted(before.keys() | after.keys())
        if before.get(key, missing) != after.get(key, missing)
    ]
