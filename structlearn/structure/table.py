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
    """A function is the rule of these operators: of ATen, or of another library by its name and a dot."""

    def register(function: Rule) -> Rule:
        full = [name if "." in name else f"aten.{name}" for name in names]
        RULES.update(dict.fromkeys(full, function))
        return function

    return register
