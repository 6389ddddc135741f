"""``structlearn status``: a table of a sweep's runs."""

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Final

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from hpc.output import Unfailing, say
from jobs.clusters import states_of
from jobs.states import Kind, State, counts
from jobs.sweepfolder import SweepFolder

COLOURS: Final[dict[Kind, str]] = {
    "new": "dim", "pending": "yellow", "running": "cyan", "stopped": "yellow", "lost": "red", "failed": "red",
    "done": "green",
}  # fmt: skip
SHOWN: Final = 40
"""Runs in the table, unless all are asked for: those that somebody has to look after come first."""
_FIRST: Final[tuple[Kind, ...]] = ("failed", "lost", "running", "stopped", "pending", "new", "done")


def status(path: Path, *, everything: bool, as_json: bool) -> int:
    """Show how the runs of a sweep are doing; 0.

    Raises:
        ConfigError: the folder holds no sweep.
    """
    folder = SweepFolder.existing(path)
    states = states_of(folder)
    if as_json:
        say(
            json.dumps({"folder": str(path), "counts": counts(states), "runs": [asdict(each) for each in states]}),
            sys.stdout,
        )
    elif sys.stdout is not None:
        console = Console(file=Unfailing(sys.stdout), highlight=False)  # type: ignore[arg-type]
        console.print(_headline(path, states))
        console.print(table(states, None if everything else SHOWN))
        console.print(_advice(path, states), end="")
    return 0


def table(states: Sequence[State], most: int | None) -> Table:
    """The runs, those first that somebody has to look after; at most so many."""
    made = Table(box=box.SIMPLE, pad_edge=False)
    for name in ("run", "", "state", "epoch", "samples/s", "left", "test", "stops"):
        made.add_column(name, justify="right" if name in {"epoch", "samples/s", "left", "test", "stops"} else "left",
                        overflow="ellipsis", no_wrap=True)  # fmt: skip
    ordered = sorted(states, key=lambda state: _FIRST.index(state.kind))
    for state in ordered[:most]:
        made.add_row(
            Text(state.id, style="dim"),
            state.label,
            Text(state.kind, style=COLOURS[state.kind]),
            f"{state.epoch}/{state.epochs}" if state.epochs else "",
            f"{state.samples_per_second:,.0f}" if state.samples_per_second is not None else "",
            _duration(state.seconds_left) if state.seconds_left is not None else "",
            f"{100 * state.accuracy:.2f} %" if state.accuracy is not None else "",
            str(state.stops) if state.stops else "",
        )
        if state.error:
            made.add_row("", Text(f"  {state.error}", style="red"))
    if most is not None and len(ordered) > most:
        made.add_row("", Text(f"and {len(ordered) - most:,} more; --all shows them", style="dim"))
    return made


def _headline(path: Path, states: Sequence[State]) -> Text:
    parts = Text(f"{path}: {len(states):,} runs: ")
    for number, (kind, count) in enumerate(counts(states).items()):
        parts.append(", " if number else "")
        parts.append(f"{count:,} {kind}", style=COLOURS[kind])  # type: ignore[index]
    return parts


def _advice(path: Path, states: Sequence[State]) -> str:
    """What to do about those that nobody looks after."""
    found = counts(states)
    lines = []
    if "failed" in found:
        lines.append(f"structlearn retry --failed {path}   starts what failed again")
    if {"stopped", "lost", "new"} & found.keys():
        lines.append(f"structlearn retry {path}   goes on with what is stopped, lost or new")
    return "".join(f"{line}\n" for line in lines)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
