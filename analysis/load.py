"""Run folders in, tidy frames out.

records = load("runs/")  # or what structlearn collect has made of it
records.epochs.groupby("run")["test_accuracy"].max()
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from analysis.places import find, is_collection
from analysis.schema import ANSWER, OPTIONAL, PHASES, REQUIRED, STATES, RecordError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from analysis.places import Place
    from analysis.read import Columns, Run

_FRAMES: dict[str, dict[str, str]] = {
    name: {column: "int64" if kind == "integer" else "float64" for column, kind in kinds.items()}
    for name, kinds in {**REQUIRED, **OPTIONAL}.items()
} | {
    "profile": {"epoch": "int64", **dict.fromkeys(PHASES, "float64")},
    "structure": {"epoch": "int64", "layer": "object", "width": "int64"},
    "pruning": {"epoch": "int64", "phase": "object", "digest": "object", "floor": "int64"},
    "alrao": {"step": "int64", "head": "int64", "probability": "float64"},
    "heads_and_units": {"step": "int64", "heads_lost": "int64", "units_lost": "int64"},
    "rates": {"layer": "object", "unit": "int64", "rate": "float64"},
}


@dataclass(frozen=True)
class Records:
    """Everything that a set of runs has recorded, as tidy frames.

    Each frame has a column `run`: the folder of the run relative to the one that was loaded; a collected file counts as
    the folder that it was made of. Frames of groups that no run has are there and empty.

    Attributes:
        name: The name of the folder that was loaded; of several sources, of the folder that they have in common.
        runs: One row a run: identity, state, last and best values, and the config, flattened, in columns
            such as `config.model.name`; None is a null in the config, NaN a key that this run does not have.
            Values are of the network that the run answers with, `answer_epoch`: of the last, unless pruning has chosen
            another. A run that broke off says so in its status file, not in its record: `state` is then what that
            file says, and `error` its message.
        epochs: One row for each run and epoch.
        exchange: One row for each run and rank.
        profile: One row for each run and epoch: seconds by phase.
        steps: One row for each recorded step.
        consensus: One row for each time the distance between ranks was measured.
        ranks: One row for each run and rank: what the rank's own network reaches at the end.
        resized: One row for each time a run went on with another number of ranks.
        lost: One row for each rank that was lost while the others went on.
        structure: One row for each run, epoch and layer of a run that prunes: how many units it had.
        pruning: One row for each run and epoch of a run that prunes: the phase, the digest of all that was cut, and how
            many layers were held at one unit.
        alrao: One row for each run, record and output layer.
        heads_and_units: One row for each run and record of its output layers: how many of them, and of its units, are
            lost.
        rates: One row for each run, layer and unit.
        sources: One row a run: file, size, hash and the versions it was written with.
        problems: What could not be read, with the reason.
    """

    name: str
    runs: pd.DataFrame
    epochs: pd.DataFrame
    exchange: pd.DataFrame
    profile: pd.DataFrame
    steps: pd.DataFrame
    consensus: pd.DataFrame
    ranks: pd.DataFrame
    resized: pd.DataFrame
    lost: pd.DataFrame
    structure: pd.DataFrame
    pruning: pd.DataFrame
    alrao: pd.DataFrame
    heads_and_units: pd.DataFrame
    rates: pd.DataFrame
    sources: pd.DataFrame
    problems: list[RecordError] = field(default_factory=list)


def load(source: Path | str | Sequence[Path | str], *, strict: bool = False) -> Records:
    """Loads a run, every run below a folder, or all runs of a collected file.

    Args:
        source: A run folder, a record file, a folder that holds run folders at any depth, or a file that
            `structlearn collect` has written; or several of these, whose runs are then named by their place in the
            folder that they have in common.
        strict: Whether one unreadable run among many is an error. If not, it is listed in `problems`. A
            single run that is asked for by name is an error either way, and so are many of which none can
            be read.

    Raises:
        RecordError: If there is nothing to read, or something cannot be read and that matters.
    """
    given = [source] if isinstance(source, str | Path) else list(source)
    sources = [Path(each) for each in given]
    if len(sources) > 1:  # what they have in common shows only in whole paths
        sources = [path.absolute() for path in sources]
    root = _root(sources)
    found: dict[str, Run] = {}
    problems: list[RecordError] = []
    places = {place.file: place for path in sources for place in find(path)}
    for file, place in places.items():
        name = file.parent.relative_to(root).as_posix()
        try:
            run = _read_once(place, found.values())
        except RecordError as error:
            if strict or len(places) == 1:
                raise
            problems.append(error)
        else:
            found[name if name != "." else _name(root)] = run
    if not found:
        raise RecordError(
            root,
            f"{len(places)} runs, none of which can be read; the first: {problems[0]}",
            "at least one readable record",
            "see the reason",
        )
    return _assemble(root, found, problems)


def _root(sources: Sequence[Path]) -> Path:
    """What the names of runs are relative to: what was loaded, or what several sources have in common."""
    roots = [source.parent if source.is_file() and not is_collection(source) else source for source in sources]
    return roots[0] if len(roots) == 1 else Path(os.path.commonpath(roots))


def _name(root: Path) -> str:
    """The name of what was loaded; of a collected file as that of the folder it was made of."""
    return root.stem if root.is_file() else root.resolve().name


def _read_once(place: Place, before: Iterable[Run]) -> Run:
    """Reads a run; a copy of one that was read before is refused, for it would count a run twice."""
    run = place.read()
    for other in before:
        if other.sha256 == run.sha256:
            raise RecordError(place.file, f"a copy of {other.file}", "each run once", "remove one of the two")
    return run


def _state(run: Run) -> tuple[str, str]:
    """State and error of a run.

    A record is written at the end of an epoch. What has ended a run since, or that it has been started again,
    stands in the status file; a record that is done has nothing to come after it.
    """
    recorded = str(run.attributes["state"])
    state, error = run.status
    if recorded == "done" or state not in STATES or state == "done":
        return recorded, ""
    return state, error if state in ("failed", "stopped") else ""


def _assemble(root: Path, found: dict[str, Run], problems: list[RecordError]) -> Records:
    """The frames of all runs."""
    return Records(
        name=_name(root),
        runs=_runs(root, found),
        sources=pd.DataFrame([_source(root, name, run) for name, run in found.items()]),
        problems=problems,
        **{group: _frame(found, group, dtypes) for group, dtypes in _FRAMES.items()},
    )


def _frame(found: dict[str, Run], group: str, dtypes: dict[str, str]) -> pd.DataFrame:
    """One group of all runs, with a column that says whose each row is."""
    parts: dict[str, Columns] = {name: run.groups[group] for name, run in found.items() if group in run.groups}
    lengths = [len(next(iter(columns.values()))) for columns in parts.values()]
    names = np.repeat(np.array(list(parts), dtype=object), lengths)
    columns = {"run": pd.Series(names, dtype="str" if len(names) else "object")}
    for column, dtype in dtypes.items():
        arrays = [part[column] for part in parts.values()]
        columns[column] = pd.Series(np.concatenate([*arrays, np.zeros(0, dtype=dtype)]).astype(dtype))
    return pd.DataFrame(columns)


def _runs(root: Path, found: dict[str, Run]) -> pd.DataFrame:
    """One row a run."""
    frame = pd.DataFrame([_row(root, name, run) for name, run in found.items()])
    configs = [flatten(run.config) for run in found.values()]
    keys = list(dict.fromkeys(key for config in configs for key in config))
    # Objects, so that an integer stays one and a null stays apart from a key that is not there.
    columns = {
        f"config.{key}": pd.Series([config.get(key, np.nan) for config in configs], dtype="object") for key in keys
    }
    return pd.concat([frame, pd.DataFrame(columns)], axis=1)


def _row(root: Path, name: str, run: Run) -> dict[str, Any]:
    """A run's identity, state, and last and best values."""
    epochs = pd.DataFrame(run.groups["epochs"])
    last = epochs.iloc[-1] if len(epochs) else pd.Series(np.nan, index=epochs.columns)
    until = epochs[epochs["epoch"] <= (run.attributes[ANSWER] or np.inf)]
    valid = _last(until, ["valid_loss", "valid_accuracy"])
    test = _last(until, ["test_loss", "test_accuracy"])
    batch = run.config.get("data", {}).get("batch_size") if isinstance(run.config.get("data"), dict) else None
    samples = last["step"] * batch * run.attributes["world_size"] if isinstance(batch, int) else np.nan
    state, error = _state(run)
    return {
        "run": name,
        "run_id": run.attributes["run_id"],
        "path": run.file.parent.relative_to(root).as_posix(),
        "state": state,
        "ended_by": run.attributes["ended_by"],
        "error": error,
        "world_size": run.attributes["world_size"],
        "epochs": int(last["epoch"]) if len(epochs) else 0,
        "steps": int(last["step"]) if len(epochs) else 0,
        "answer_epoch": run.attributes[ANSWER] or (int(last["epoch"]) if len(epochs) else 0),
        "parameters": until["parameters"].iloc[-1] if len(until) else np.nan,
        "train_loss": last["train_loss"],
        "valid_loss": valid["valid_loss"],
        "valid_accuracy": valid["valid_accuracy"],
        "best_epoch": _best_epoch(epochs),
        "test_loss": test["test_loss"],
        "test_accuracy": test["test_accuracy"],
        "test_epoch": test["epoch"],
        "seconds": last["seconds"],
        "samples_per_second": samples / last["seconds"] if last["seconds"] > 0 else np.nan,
    }


def _last(epochs: pd.DataFrame, columns: list[str]) -> pd.Series[float]:
    """The last epoch in which any of the columns was measured: a test need not be made at each."""
    measured = epochs[epochs[columns].notna().any(axis=1)]
    return measured.iloc[-1] if len(measured) else pd.Series(np.nan, index=epochs.columns)


def _best_epoch(epochs: pd.DataFrame) -> float:
    """The epoch of the highest validation accuracy, or of the lowest loss where there is no accuracy."""
    for column, sign in (("valid_accuracy", 1.0), ("valid_loss", -1.0)):
        values = sign * epochs[column].to_numpy(dtype="float64")
        if np.isfinite(values).any():
            return float(epochs["epoch"].iloc[int(np.argmax(np.where(np.isfinite(values), values, -np.inf)))])
    return float("nan")


def flatten(config: object, prefix: str = "") -> dict[str, Any]:
    """Nested mappings, and lists of them, as one flat mapping with dotted keys.

    A list of plain values stays one value, as text: `[64, 32]` is one choice and not two.
    """
    items: list[tuple[Any, Any]]
    if isinstance(config, dict):
        items = list(config.items())
    elif isinstance(config, list) and any(isinstance(item, dict) for item in config):
        items = list(enumerate(config))
    else:
        return {prefix: json.dumps(config, default=str) if isinstance(config, list) else config}
    flat: dict[str, Any] = {}
    for key, value in items:
        flat |= flatten(value, f"{prefix}.{key}" if prefix else str(key))
    return flat


def _source(root: Path, name: str, run: Run) -> dict[str, Any]:
    """Where a run's numbers come from."""
    return {
        "run": name,
        "run_id": run.attributes["run_id"],
        "file": run.file.relative_to(root).as_posix(),
        "bytes": run.size,
        "sha256": run.sha256,
        "config": run.attributes["config"],
        "versions": json.dumps(run.versions, sort_keys=True),
    }
