"""The building blocks of the configuration: strict numbers and the frozen, closed dataclass."""

import inspect
from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, Any, Literal, TypeVar, dataclass_transform

from pydantic import BeforeValidator, ConfigDict, Discriminator, Field, Strict
from pydantic.dataclasses import dataclass
from pydantic_core import PydanticKnownError

T = TypeVar("T")

# Strict: `epochs: true` and `epochs: "10"` are mistakes, not numbers. (A float field still takes `lr: 1`.)
Int = Annotated[int, Strict()]
Count = Annotated[int, Strict(), Field(ge=1)]
Natural = Annotated[int, Strict(), Field(ge=0)]
Positive = Annotated[float, Strict(), Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Strict(), Field(ge=0, allow_inf_nan=False)]
Fraction = Annotated[float, Strict(), Field(ge=0, lt=1)]
"""A share in [0, 1)."""
Flag = Annotated[bool, Strict()]
Text = Annotated[str, Strict()]


def _no_flag(value: Any) -> Any:
    """Pydantic takes true for 1 where a literal may be 1."""
    if isinstance(value, bool):
        raise PydanticKnownError("literal_error", {"expected": "1 or 2"})
    return value


OneOrTwo = Annotated[Literal[1, 2], BeforeValidator(_no_flag)]


@dataclass_transform(kw_only_default=True, frozen_default=True)
def section(cls: type[T]) -> type[T]:
    """Make a class a section of the configuration: frozen, keyword-only, closed to unknown keys.

    The docstring under each field becomes its description in the JSON schema.
    """
    own = inspect.get_annotations(cls)
    for base in cls.__mro__[1:]:  # pydantic reads the docstrings of a class's own fields alone
        for name, info in getattr(base, "__pydantic_fields__", {}).items():
            if info.description and name not in own:
                own[name] = Annotated[base.__annotations__[name], Field(description=info.description)]
    cls.__annotations__ = own
    config = ConfigDict(extra="forbid", use_attribute_docstrings=True)
    made: Any = dataclass(config=config, frozen=True, kw_only=True)(cls)
    return made  # type: ignore[no-any-return]


def by_name(default: str, families: Mapping[str, str] = MappingProxyType({})) -> Discriminator:
    """A discriminator that reads ``name`` (``default`` where it is left out).

    ``families`` maps names to the tag of the section that serves them, where one section serves several.
    """

    def choose(value: Any) -> str:
        name = value.get("name", default) if isinstance(value, dict) else getattr(value, "name", value)
        return families.get(name, name) if isinstance(name, str) else repr(name)

    return Discriminator(choose)
