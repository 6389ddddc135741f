"""YAML text and plain values: reading with line numbers in errors, writing in a stable order."""

import re
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from hpc.errors import ConfigError


class _Loader(yaml.SafeLoader):
    """YAML's safe loader with two differences: ``1e-3`` is a number, and a key given twice is an error."""


_Fast: Any = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
"""In C, where PyYAML was built with it: a sweep of a thousand runs writes as many files."""


class _Dumper(_Fast):  # type: ignore[misc]
    """YAML's safe writer; text with unusual line breaks is escaped, which PyYAML else writes but does not read back."""


# YAML 1.1, which PyYAML speaks, takes 1e-3 for text because it has no dot. This is the float of YAML 1.2, for both:
# the writer must know what the reader takes for a number, to quote text that looks like one.
for _kind in (_Loader, _Dumper):
    _kind.add_implicit_resolver(
        "tag:yaml.org,2002:float",
        re.compile(r"^[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)$"),
        list("-+0123456789."),
    )


def _mapping(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    loader.flatten_mapping(node)
    found: dict[Any, Any] = {}
    for key_node, value_node in node.value:
        key = loader.construct_object(key_node, deep=True)
        mark = key_node.start_mark
        if not isinstance(key, Hashable):
            raise ConfigError(f"{mark.name}, line {mark.line + 1}: got {key!r} as a key; a key is a word")
        if key in found:
            raise ConfigError(f"{mark.name}, line {mark.line + 1}: {key} is given for the second time; keep one")
        found[key] = loader.construct_object(value_node, deep=True)
    return found


_Loader.add_constructor("tag:yaml.org,2002:map", _mapping)


def parse(text: str, source: str) -> Any:
    """The value of YAML text. ``source`` names it in errors. Raises ConfigError with the line."""
    try:
        loader = _Loader(text)  # refuses control characters at once
        loader.name = source
        return loader.get_single_data()
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{source}, line {mark.line + 1}, column {mark.column + 1}" if mark else source
        problem = getattr(error, "problem", None) or str(error)
        raise ConfigError(f"{where}: not valid YAML ({problem})") from None
    except (ValueError, RecursionError) as error:  # a date that no calendar has; a thousand brackets
        raise ConfigError(f"{source}: not understood ({error})") from None


def load(path: Path) -> Any:
    """The value of a file. Raises ConfigError with the line, and OSError or UnicodeDecodeError if it is no text."""
    return parse(path.read_text(encoding="utf-8"), str(path))


def _text(dumper: _Dumper, value: str) -> yaml.ScalarNode:
    style = '"' if any(mark in value for mark in "\x85\u2028\u2029") else None
    node: yaml.ScalarNode = dumper.represent_scalar("tag:yaml.org,2002:str", value, style=style)
    return node


_Dumper.add_representer(str, _text)


def dump(values: Any) -> str:
    """YAML text of plain values, keys in the order given."""
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)
