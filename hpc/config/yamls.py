"""YAML text and plain values: reading with line numbers in errors, writing in a stable order."""

import re
from typing import Any

import yaml

from hpc.errors import ConfigError


class _Loader(yaml.SafeLoader):
    """YAML's safe loader with two differences: ``1e-3`` is a number, and a key given twice is an error."""


# YAML 1.1, which PyYAML speaks, takes 1e-3 for text because it has no dot. This is the float of YAML 1.2.
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)$"),
    list("-+0123456789."),
)


def _mapping(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    loader.flatten_mapping(node)
    found: dict[Any, Any] = {}
    for key_node, value_node in node.value:
        key = loader.construct_object(key_node, deep=True)
        if key in found:
            raise ConfigError(f"{key}: given twice, the second time in line {key_node.start_mark.line + 1}; keep one")
        found[key] = loader.construct_object(value_node, deep=True)
    return found


_Loader.add_constructor("tag:yaml.org,2002:map", _mapping)


def parse(text: str, source: str) -> Any:
    """The value of YAML text. ``source`` names it in errors. Raises ConfigError with the line."""
    try:
        return yaml.load(text, Loader=_Loader)  # noqa: S506 - a SafeLoader
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{source}, line {mark.line + 1}, column {mark.column + 1}" if mark else source
        problem = getattr(error, "problem", None) or str(error)
        raise ConfigError(f"{where}: not valid YAML ({problem})") from None


def dump(values: Any) -> str:
    """YAML text of plain values, keys in the order given."""
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=100)
