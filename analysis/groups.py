"""Which runs belong together, and the shortest names that tell them apart."""

from __future__ import annotations

import json
import math
from collections import Counter
from typing import TYPE_CHECKING, Any

from analysis.places import natural

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import pandas as pd

SEED = "config.seed"
_OWN = {  # what may differ between runs that are repetitions of each other: the seed, and what changes no number
    SEED,
    *(f"config.{key}" for key in ("run_dir", "data.placement", "data.prefetch")),
    *(f"config.checkpoint.{key}" for key in ("every_epochs", "every_steps", "keep")),
    *(f"config.compute.{key}" for key in ("share_devices", "deadline_s", "device_pointers")),
}


def settings(runs: pd.DataFrame) -> list[str]:
    """The columns of `runs` that say how a run was set up, apart from its seed and folder."""
    config = [str(name) for name in runs.columns if str(name).startswith("config.") and name not in _OWN]
    return [*config, "world_size"]


def differing(runs: pd.DataFrame) -> list[str]:
    """The settings that are not the same in all runs."""
    return [name for name in settings(runs) if len(set(map(_token, runs[name]))) > 1]


def keys(runs: pd.DataFrame) -> list[str]:
    """The fewest settings, as far as a greedy choice finds them, that tell all different runs apart.

    Choices by name come first, then the number of ranks, then the rest in the order of the config. So with
    two optimisers, each with its own rate, the runs are told apart by the optimiser alone.
    """

    def rank(name: str) -> int:
        return 0 if name.endswith(".name") else 1 if name == "world_size" else 2

    chosen: list[str] = []
    parts = 1
    for name in sorted(differing(runs), key=rank):
        more = len(set(_tuples(runs, [*chosen, name])))
        if more > parts:
            chosen, parts = [*chosen, name], more
    return chosen


def grouped(runs: pd.DataFrame) -> pd.DataFrame:
    """The runs, ordered by setting and seed, with the columns `group`, `seed` and `label`.

    Runs of one `group` differ only in the seed. A `label` names a single run and is given once.
    """
    chosen = keys(runs)
    frame = runs.copy()
    frame["group"] = [_label(row, chosen) for _, row in runs.iterrows()]
    frame["seed"] = runs.get(SEED, math.nan)
    places = [_order(row, [*chosen, "seed", "run"]) for _, row in frame.iterrows()]
    frame = frame.iloc[sorted(range(len(frame)), key=places.__getitem__)].reset_index(drop=True)
    frame["label"] = _unique(frame)
    return frame


def diverged(runs: pd.DataFrame) -> pd.Series[bool]:
    """The runs whose loss stopped being a number: these are done, and yet have come to nothing."""
    return (runs["state"] == "done") & (runs["ended_by"] == "diverged")


def finished(runs: pd.DataFrame) -> pd.Series[bool]:
    """The runs that went to their end: only these are averaged."""
    return (runs["state"] == "done") & ~diverged(runs)


def compact(runs: pd.DataFrame) -> tuple[str, list[str]]:
    """For runs as `grouped` gives them: names of settings as one heading, and each run's values alone."""
    names = [*keys(runs), *(["seed"] if runs["group"].duplicated().any() else [])]
    values = [", ".join(value_text(run[name]) for name in names) for _, run in runs.iterrows()]
    return ", ".join(title(name) for name in names), values


def title(name: str) -> str:
    """A column of `runs` as a reader knows it: `config.model.name` is `model.name`."""
    return {"world_size": "world"}.get(name, name.removeprefix("config."))


def value_text(value: Any) -> str:
    """A config's value as short text; a key that is not there is a dash."""
    if value is None:
        return "null"
    if _missing(value):
        return "–"
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)


def ordered(values: Iterable[Any]) -> list[Any]:
    """The distinct values, numbers by size, texts naturally, missing ones last."""
    distinct = {_token(value): value for value in values}
    return sorted(distinct.values(), key=_value_order)


def _tuples(runs: pd.DataFrame, names: Sequence[str]) -> list[tuple[str, ...]]:
    return list(zip(*(map(_token, runs[name]) for name in names), strict=True))


def _missing(value: Any) -> bool:
    return isinstance(value, float) and math.isnan(value)


def _token(value: Any) -> str:
    """A text that is the same exactly for the same value: 1 and True are two, NaN is one."""
    if _missing(value):
        return ""
    return json.dumps(value, default=str) if not hasattr(value, "item") else json.dumps(value.item())


def _unique(frame: pd.DataFrame) -> list[str]:
    """A label for each run: its setting, with as much more as it takes to be the only one."""
    groups = Counter(frame["group"])
    labels = [
        f"{group}, seed {value_text(seed)}" if groups[group] > 1 else str(group)
        for group, seed in zip(frame["group"], frame["seed"], strict=True)
    ]
    times = Counter(labels)
    return [f"{label} ({run})" if times[label] > 1 else label for label, run in zip(labels, frame["run"], strict=True)]


def _label(run: pd.Series[Any], chosen: Sequence[str]) -> str:
    """The chosen settings of a run as text."""
    if not chosen:
        names = [run.get("config.model.name"), run.get("config.data.name")]
        return " on ".join(str(name) for name in names if isinstance(name, str)) or "all runs"
    present = [name for name in chosen if not _missing(run[name])]
    if not present:
        return ", ".join(f"no {title(name)}" for name in chosen)
    return ", ".join(f"{title(name)}{' ' if name == 'world_size' else '='}{value_text(run[name])}" for name in present)


def _order(run: pd.Series[Any], names: Sequence[str]) -> list[Any]:
    return [_value_order(run[name]) for name in names]


def _value_order(value: Any) -> tuple[int, float, list[tuple[int, int, str]]]:
    if value is None or _missing(value):
        return (2, 0.0, [])
    if isinstance(value, int | float) or hasattr(value, "item"):
        return (0, float(value), [])
    return (1, 0.0, natural(value))
