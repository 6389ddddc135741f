"""The table of rules: by an operator's name, what it does to channels."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

    from structlearn.structure.tracker import Axes, Call, Tracker

    Rule = Callable[[Tracker, Call], list[Axes]]
    """What is known of the results of a call, of which the tracker knows the arguments."""

RULES: Final[dict[str, Rule]] = {}


def handles(*names: str) -> Callable[[Rule], Rule]:
    """A function is the rule of these operators of ATen."""

    def register(function: Rule) -> Rule:
        RULES.update(dict.fromkeys((f"aten.{name}" for name in names), function))
        return function

    return register
