"""``structlearn status``: a table of a sweep's runs."""

import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Final

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from hpc.output import Unfailing, say
from jobs.clusters import states_of, why_waiting
from jobs.states import Kind, State, counts
from jobs.sweepfolder import SweepFolder

COLOURS: Final[dict[Kind, str]] = {
    "new": "dim", "pending": "yellow", "running": "cyan", "stopped": "yellow", "lost": "red", "failed": "red",
    "done": "green",
}  # fmt: skip
SHOWN: Final = 40
"""Runs in the table, unless all are asked for: those that somebody has to look after come first."""
WORDS: Final = 10
"""Different errors that are told, and of each the names of so many runs:"""
NAMED: Final = 3
_COLUMNS: Final = ("run", "label", "state", "epoch", "samples/s", "left", "test", "stops")
_ALWAYS: Final = frozenset({"run", "label", "state"})
_NUMBERS: Final = frozenset({"epoch", "samples/s", "left", "test", "stops"})
_FIRST: Final[tuple[Kind, ...]] = ("failed", "lost", "running", "stopped", "pending", "new", "done")


def status(path: Path, *, everything: bool, as_json: bool) -> int:
    """Show how the runs of a sweep are doing; 0.

    Raises:
        ConfigError: the folder holds no sweep.
    """
    folder = SweepFolder.existing(path)
    states = states_of(folder)
    if as_json:
        why = why_waiting(folder, states)
        runs = [asdict(each) | {"waits": why.get(each.id, "")} for each in states]
        say(json.dumps({"folder": str(path), "counts": counts(states), "runs": runs}), sys.stdout)
    elif sys.stdout is not None:
        console = Console(file=Unfailing(sys.stdout), highlight=False)  # type: ignore[arg-type]
        console.print(_headline(path, states))
        most = None if everything else SHOWN
        console.print(table(states, most, console.width))
        if most is not None and len(states) > most:
            console.print(Text(f"and {len(states) - most:,} more; --all shows them", "dim"))
        console.print(told({state.id: _error(state) for state in states if state.error}, "red"), end="")
        console.print(told(why_waiting(folder, states), COLOURS["pending"]), end="")
        console.print(Text(_advice(path, states)), end="", soft_wrap=True)
    return 0


def table(states: Sequence[State], most: int | None, width: int) -> Table:
    """The runs, those first that somebody has to look after. Columns without a value are left out.

    Args:
        states: of all runs.
        most: so many are shown; None: all.
        width: of the terminal. On a narrow one the labels go on in the next line: cut off, they would look alike.
    """
    ordered = sorted(states, key=lambda state: _FIRST.index(state.kind))[:most]
    cells = [_cells(state) for state in ordered]
    shown = [name for name in _COLUMNS if name in _ALWAYS or any(row[name] for row in cells)]
    widest = {name: max([len(name), *(len(row[name]) for row in cells)]) for name in shown}
    others = sum(size for name, size in widest.items() if name != "label") + 2 * len(shown) + 2  # between columns
    widest["label"] = max(8, min(widest["label"], width - others))
    made = Table(box=box.SIMPLE, pad_edge=False, padding=(0, 1, 0, 0))
    for name in shown:
        folds = name == "label"
        made.add_column(
            "" if folds else name, justify="right" if name in _NUMBERS else "left",
            overflow="fold" if folds else "ellipsis", no_wrap=not folds, width=widest[name],
            style="dim" if name == "run" else "",
        )  # fmt: skip
    for state, row in zip(ordered, cells, strict=True):
        made.add_row(*[Text(row[name], COLOURS[state.kind] if name == "state" else "") for name in shown])
    return made


def _cells(state: State) -> dict[str, str]:
    rate, left, accuracy = state.samples_per_second, state.seconds_left, state.accuracy
    return {
        "run": state.id,
        "label": state.label,
        "state": state.kind,
        "epoch": f"{state.epoch}/{state.epochs}" if state.epochs else "",
        "samples/s": f"{rate:,.0f}" if rate is not None else "",
        "left": _duration(left) if left is not None else "",
        "test": f"{100 * accuracy:.2f} %" if accuracy is not None else "",
        "stops": str(state.stops) if state.stops else "",
    }


def told(words: Mapping[str, str], style: str) -> Text:
    """What is said of runs, by their ids: each once, with the runs that it is said of."""
    runs: dict[str, list[str]] = {}
    for run, word in words.items():
        runs.setdefault(word, []).append(run)
    made = Text()
    for word, names in sorted(runs.items(), key=lambda item: -len(item[1]))[:WORDS]:
        more = f" and {len(names) - NAMED:,} more" if len(names) > NAMED else ""
        made.append(f"{', '.join(names[:NAMED])}{more}: ", "dim").append(f"{word}\n", style)
    if len(runs) > WORDS:
        made.append(f"and {len(runs) - WORDS:,} others; --json has them all\n", "dim")
    return made


def _error(state: State) -> str:
    return f"{state.error} (on {state.host})" if state.host else state.error


def _headline(path: Path, states: Sequence[State]) -> Text:
    parts = Text(f"{path}: {len(states):,} runs: ")
    for number, (kind, count) in enumerate(counts(states).items()):
        parts.append(", " if number else "")
        parts.append(f"{count:,} {kind}", style=COLOURS[kind])  # type: ignore[index]
    return parts


def _advice(path: Path, states: Sequence[State]) -> str:
    """What to do about those that nobody looks after."""
    found, name = counts(states), shlex.quote(str(path))
    lines = []
    if "failed" in found:
        lines.append(f"structlearn retry --failed {name}   starts what failed again")
    if {"stopped", "lost", "new"} & found.keys():
        lines.append(f"structlearn retry {name}   goes on with what is stopped, lost or new")
    return "".join(f"{line}\n" for line in lines)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
