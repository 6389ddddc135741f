"""How numbers are written for people: one place for headings and formats of page, markdown and TeX."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pandas as pd

from analysis.groups import title, value_text

if TYPE_CHECKING:
    from collections.abc import Callable

MISSING = "–"


def loss(value: float) -> str:
    """Four decimals, or a power of ten where they would say nothing."""
    return f"{value:.4f}" if value == 0 or 1e-3 <= abs(value) < 1e4 else f"{value:.2e}"


def percent(value: float) -> str:
    """A share of one in percent with two decimals; the heading carries the sign."""
    return f"{100 * value:.2f}"


def count(value: float) -> str:
    """A whole number with its thousands set apart."""
    return f"{value:,.0f}"


def duration(seconds: float) -> str:
    """Seconds in the units that a person would use."""
    if seconds < 59.95:
        return f"{seconds:.1f} s" if seconds >= 10 else f"{seconds:.2f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    if hours < 24:
        return f"{hours} h {minutes:02d} min"
    return f"{hours // 24} d {hours % 24:02d} h"


def size(value: float) -> str:
    """Bytes in decimal units."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(value) < 999.5:
            return f"{value:.0f} B" if unit == "B" else f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:,.3g} TB"


def general(value: float) -> str:
    """A number of no known meaning."""
    return f"{value:.4g}"


@dataclass(frozen=True)
class Column:
    """How one column is shown."""

    heading: str
    write: Callable[[float], str] | None = None  # None: text, set to the left


_COLUMNS = {
    "run": Column("run"),
    "state": Column("state"),
    "ended_by": Column("ended by"),
    "group": Column("setting"),
    "seed": Column("seed", general),
    "runs": Column("runs", count),
    "finished": Column("finished", count),
    "world_size": Column("world", count),
    "epochs": Column("epochs", count),
    "steps": Column("steps", count),
    "parameters": Column("parameters", count),
    "train_loss": Column("train loss", loss),
    "valid_loss": Column("valid loss", loss),
    "test_loss": Column("test loss", loss),
    "valid_accuracy": Column("valid acc. (%)", percent),
    "test_accuracy": Column("test acc. (%)", percent),
    "best_epoch": Column("best epoch", count),
    "test_epoch": Column("tested at epoch", count),
    "seconds": Column("time", duration),
    "samples_per_second": Column("samples/s", count),
    "rank": Column("rank", count),
    "sent": Column("sent", count),
    "received": Column("received", count),
    "skipped": Column("skipped", count),
    "bytes_sent": Column("data sent", size),
    "mass": Column("mass", general),
    "seconds_blocked": Column("blocked", duration),
    **{
        phase: Column(phase, duration)
        for phase in ("data", "forward", "backward", "optimizer", "exchange", "evaluate", "checkpoint")
    },
    "total": Column("total", duration),
    "key": Column("key"),
    "value": Column("value"),
}


def column(name: str) -> Column:
    """How a column is shown; those that come from the config under their key, as text."""
    if name in _COLUMNS:
        return _COLUMNS[name]
    # The key `epochs` is what a run was asked for, the column `epochs` what it did.
    heading = title(name)
    return Column(f"{heading} (config)" if heading in _COLUMNS else heading)


def cell(name: str, value: Any) -> str:
    """One value of a column as text."""
    write = column(name).write
    if write is None:
        return value_text(value) if value != "" else MISSING
    if value is None or value is pd.NA or (isinstance(value, float) and math.isnan(value)):
        return MISSING
    if isinstance(value, str):
        return value
    return ("∞" if value > 0 else "−∞") if math.isinf(value) else write(float(value))


def formatted(frame: pd.DataFrame) -> pd.DataFrame:
    """The frame as text under headings; a column `X_std` goes into X as `value ± spread`.

    Columns of numbers that are missing in every row are left out: a regression has no accuracy.
    """
    shown: dict[str, list[str]] = {}
    for name in map(str, frame.columns):
        how = column(name.removesuffix("_std"))
        if name.endswith("_std") or (how.write is not None and len(frame) and frame[name].isna().all()):
            continue
        spread = frame[f"{name}_std"] if f"{name}_std" in frame else [math.nan] * len(frame)
        shown[how.heading] = [
            cell(name, value) + _spread(name, value, std) for value, std in zip(frame[name], spread, strict=True)
        ]
    return pd.DataFrame(shown, dtype="object", index=frame.index)


def _spread(name: str, value: Any, std: float) -> str:
    """The spread behind a mean, to the mean's decimals; nothing where runs cannot but agree."""
    if math.isnan(std) or cell(name, value) == MISSING or (std == 0 and name in ("parameters", "epochs")):
        return ""
    text = cell(name, value)
    if name.endswith("_loss") and "e" not in text:
        return f" ± {std:.4f}"
    return f" ± {cell(name, std)}"
