"""What the page says, as plain data for the template: no drawing, no files."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from analysis import formats, tables
from analysis.draw import TITLES
from analysis.groups import diverged, grouped
from analysis.provenance import tools

if TYPE_CHECKING:
    from analysis.load import Records

_LONG = 24  # tables with more rows than that are folded, where they are not the main matter
_HIGH = ("test_accuracy", "valid_accuracy")
_LOW = ("test_loss", "valid_loss")


@dataclass(frozen=True)
class Cell:
    """A table's cell: its text, and the class that styles it."""

    text: str
    kind: str = ""


@dataclass(frozen=True)
class Table:
    """A table as the template prints it."""

    name: str
    heads: list[Cell]
    rows: list[list[Cell]]
    caption: str = ""

    @property
    def long(self) -> bool:
        """Whether it is folded."""
        return len(self.rows) > _LONG


def table(frame: pd.DataFrame, name: str, caption: str = "", *, best: bool = False) -> Table:
    """A frame as a table of texts, numbers to the right, the best of each measure marked."""
    shown = formats.formatted(frame)
    kinds = {formats.column(str(n)).heading: _kind(str(n)) for n in frame.columns}
    marked = _best(frame) if best else set()
    rows = [
        [
            Cell(str(text), f"{kinds[str(head)]} best" if (str(head), row) in marked else kinds[str(head)])
            for head, text in zip(shown.columns, cells, strict=True)
        ]
        for row, cells in enumerate(shown.to_numpy())
    ]
    return Table(name, [Cell(str(head), kinds[str(head)]) for head in shown.columns], rows, caption)


def _kind(name: str) -> str:
    """The class of a column's cells."""
    if name in ("run", "state", "key", "value"):
        return name
    return "" if formats.column(name).write is None else "number"


def _best(frame: pd.DataFrame) -> set[tuple[str, int]]:
    """The cells that hold the best value of a measure, if there are two to compare."""
    marked = set()
    for name in (*_HIGH, *_LOW):
        values = frame[name].to_numpy(dtype="float64") if name in frame else np.zeros(0)
        if len(set(values[~pd.isna(values)])) > 1:
            marked.add((formats.column(name).heading, _place(values, name)))
    return marked


def _brief(settings: pd.DataFrame) -> pd.DataFrame:
    """The columns of the settings' table that fit a page; its files have them all."""
    left_out = ["epochs", "epochs_std"]
    if settings["valid_accuracy"].notna().any():
        left_out += ["valid_loss", "valid_loss_std"]
    if (settings["runs"] == settings["finished"]).all():
        left_out.append("finished")
    return settings.drop(columns=left_out)


def _place(values: np.ndarray, name: str) -> int:
    """The row of the best value of a measure; what is no number is never the best."""
    return int(np.nanargmax(values) if name in _HIGH else np.nanargmin(values))


def context(records: Records) -> dict[str, Any]:
    """All that the template needs, apart from the figures."""
    runs = records.runs
    settings = tables.group_table(runs)
    repeated = len(settings) < len(runs)
    exchange = tables.exchange_table(records.exchange, runs)
    talked = exchange["run"].map(exchange.groupby("run")["sent"].sum()) > 0
    exchange = exchange[talked]
    return {
        "name": records.name,
        "summary": summary(records),
        "runs": table(_states(tables.run_table(runs)), "runs"),
        "settings": table(_brief(settings), "settings", best=True) if repeated else None,
        "exchange": table(exchange, "exchange"),
        "sums": table(tables.exchange_sums(exchange, runs), "exchange_sums"),
        "profile": table(tables.profile_table(records.profile, runs), "profile"),
        "shared": sections(tables.shared_table(runs)),
        "differing": table(tables.differing_table(runs), "config_differing"),
        "errors": [(str(run), str(error)) for run, error in zip(runs["run"], runs["error"], strict=True) if error],
        "problems": [(str(p.path), p.got, p.allowed, p.advice) for p in records.problems],
        "tools": ", ".join(f"{name} {version}" for name, version in tools().items()),
        "sources": [
            {"run": run, "run_id": run_id, "sha256": sha, "writers": writers(versions)}
            for run, run_id, sha, versions in records.sources[["run", "run_id", "sha256", "versions"]].itertuples(
                index=False
            )
        ],
    }


def sections(shared: pd.DataFrame) -> list[tuple[str, list[tuple[str, str]]]]:
    """The shared settings by the first part of their key, so that they fill lines and not a page."""
    found: dict[str, list[tuple[str, str]]] = {}
    for key, value in shared[["key", "value"]].itertuples(index=False):
        first, _, rest = str(key).partition(".")
        found.setdefault(first if rest else "run", []).append((rest or first, str(value)))
    return list(found.items())


def writers(versions: str) -> str:
    """The versions that a run was written with, on one line."""
    return ", ".join(f"{name} {version}" for name, version in json.loads(versions).items())


def _states(frame: pd.DataFrame) -> pd.DataFrame:
    """How a run ended, in the same cell as its state."""
    ended = frame["ended_by"].replace({"epochs": "", "early_stopping": "stopped early"})
    state = frame["state"].where(ended == "", frame["state"] + " · " + ended)
    return frame.assign(state=state.where(~diverged(frame), "diverged")).drop(columns="ended_by")


def summary(records: Records) -> str:
    """The one line below the title: how many runs, of what, how they ended, and the best."""
    runs = records.runs
    many = len(tables.group_table(runs))
    states = runs["state"].where(~diverged(runs), "diverged").value_counts()
    ended = ", ".join(
        f"{states[state]} {state}" for state in ("done", "running", "stopped", "failed", "diverged") if state in states
    )
    text = f"{len(runs)} run{'s' * (len(runs) != 1)}"
    if many > 1 or len(runs) > 1:
        text += f" of {many} setting{'s' * (many != 1)}"
    text += f"{_subject(runs)}: {ended if len(runs) > 1 else states.index[0]}."
    if records.problems:
        text += f" {len(records.problems)} more could not be read."
    return text + _winner(runs)


def _subject(runs: pd.DataFrame) -> str:
    """Model and data, where all runs share them."""
    names = []
    for word, name in (("of", "config.model.name"), ("on", "config.data.name")):
        values = set(map(str, runs[name])) if name in runs else set()
        if len(values) == 1 and isinstance(runs[name].iloc[0], str):
            names.append(f"{word} {values.pop()}")
    return f" ({' '.join(names).removeprefix('of ')})" if names else ""


def _winner(runs: pd.DataFrame) -> str:
    """The best setting by the first measure that there is."""
    settings = tables.group_table(runs)
    for name in ("test_accuracy", "test_loss", "valid_accuracy", "valid_loss"):
        values = settings[name].to_numpy(dtype="float64")
        if not np.isnan(values).all():
            place = _place(values, name)
            head = formats.column(name).heading
            value = formats.formatted(settings)[head].iloc[place] + (" %" if name in _HIGH else "")
            measure = TITLES[name].removesuffix(" (%)")
            if len(settings) == 1:
                return f" {measure.capitalize()}: {value}."
            group = list(dict.fromkeys(grouped(runs)["group"]))[place]
            return f" {'Highest' if name in _HIGH else 'Lowest'} {measure}: {value} ({group})."
    return ""
