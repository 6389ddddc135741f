"""Frames in, frames out; and one function that writes a frame as csv, markdown and TeX."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

from analysis import formats
from analysis.groups import SEED, differing, finished, grouped, keys, ordered, settings, title, value_text
from analysis.schema import PHASES

if TYPE_CHECKING:
    from pathlib import Path

_MEANS = ("test_accuracy", "test_loss", "valid_accuracy", "valid_loss", "parameters", "epochs", "seconds")


def run_table(runs: pd.DataFrame) -> pd.DataFrame:
    """One row a run: what sets it apart, how it ended, what it reached."""
    frame = grouped(runs)
    chosen = keys(runs)
    first = ["run", *(name for name in chosen if name != "world_size"), "world_size", "seed"]
    late = (frame["test_epoch"] < frame["epochs"]).any()
    last = ["best_epoch", "seconds", "samples_per_second", "parameters"]
    # The validation loss stands in where there is no accuracy; both would make the table too wide to read.
    valid = "valid_loss" if frame["valid_accuracy"].isna().all() else "valid_accuracy"
    results = ["test_accuracy", "test_loss", valid]
    columns = [*first, "state", "ended_by", "epochs", *results, *(["test_epoch"] if late else []), *last]
    return frame[columns]


def group_table(runs: pd.DataFrame) -> pd.DataFrame:
    """One row for each setting: mean and sample standard deviation over its finished runs."""
    frame = grouped(runs)
    chosen = keys(runs)
    rows = []
    for group, members in frame.groupby("group", sort=False):
        whole = members[finished(members)]
        row = {name: members[name].iloc[0] for name in chosen} if chosen else {"group": group}
        row |= {"runs": len(members), "finished": len(whole)}
        for name in _MEANS:
            row |= {name: whole[name].mean(skipna=False), f"{name}_std": whole[name].std(skipna=False)}
        rows.append(row)
    return pd.DataFrame(rows)


def exchange_table(exchange: pd.DataFrame, runs: pd.DataFrame) -> pd.DataFrame:
    """One row for each run and rank, in the order of the runs' table."""
    order = {run: place for place, run in enumerate(grouped(runs)["run"])}
    return exchange.sort_values(["run", "rank"], key=lambda part: part.map(order) if part.name == "run" else part)


def exchange_sums(exchange: pd.DataFrame, runs: pd.DataFrame) -> pd.DataFrame:
    """One row a run: the sums over its ranks, and the longest that any rank was blocked."""
    sums = exchange.groupby("run")[["sent", "received", "skipped", "bytes_sent", "mass"]].sum()
    sums["seconds_blocked"] = exchange.groupby("run")["seconds_blocked"].max()
    frame = grouped(runs)[["run", "world_size"]]
    return frame.merge(sums, left_on="run", right_index=True).reset_index(drop=True)


def profile_table(profile: pd.DataFrame, runs: pd.DataFrame) -> pd.DataFrame:
    """One row a run: seconds in each phase, over all epochs, on rank 0."""
    sums = profile.groupby("run")[list(PHASES)].sum()
    frame = grouped(runs)[["run"]].merge(sums, left_on="run", right_index=True)
    return frame.assign(total=frame[list(PHASES)].sum(axis=1)).reset_index(drop=True)


def shared_table(runs: pd.DataFrame) -> pd.DataFrame:
    """The settings that all runs share."""
    apart = set(differing(runs))
    rows = [(title(name), value_text(runs[name].iloc[0])) for name in settings(runs) if name not in apart]
    return pd.DataFrame(rows, columns=["key", "value"])


def differing_table(runs: pd.DataFrame) -> pd.DataFrame:
    """The settings that differ, with the number of runs that has each value."""
    names = differing(runs)
    if SEED in runs and len(ordered(runs[SEED])) > 1:
        names.append(SEED)
    rows = []
    for name in names:
        texts = [value_text(value) for value in runs[name]]
        values = dict.fromkeys(value_text(value) for value in ordered(runs[name]))
        rows.append((title(name), ", ".join(f"{value} ({texts.count(value)})" for value in values)))
    return pd.DataFrame(rows, columns=["key", "value"])


def write_table(frame: pd.DataFrame, out_dir: Path, name: str) -> list[Path]:
    """Writes a frame as `name.csv`, `name.md` and `name.tex`, the same bytes for the same frame.

    The csv holds the numbers, to ten digits; the other two hold what a person reads.
    """
    shown = formats.formatted(frame)
    right = [formats.column(str(column)).write is not None for column in frame.columns]
    numeric = dict(zip((formats.column(str(column)).heading for column in frame.columns), right, strict=True))
    texts = {
        "csv": frame.to_csv(index=False, float_format="%.10g", lineterminator="\n"),
        "md": _markdown(shown, numeric),
        "tex": _tex(shown, numeric),
    }
    out_dir.mkdir(parents=True, exist_ok=True)
    paths = []
    for ending, text in texts.items():
        paths.append(out_dir / f"{name}.{ending}")
        paths[-1].write_text(text, encoding="utf-8", newline="\n")
    return paths


def _markdown(shown: pd.DataFrame, numeric: dict[str, bool]) -> str:
    """A table as markdown."""

    def line(cells: list[str]) -> str:
        return "| " + " | ".join(cells) + " |"

    def escape(text: str) -> str:
        return " ".join(text.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;").split())

    heads = [str(name) for name in shown.columns]
    rule = ["---:" if numeric[head] else ":---" for head in heads]
    rows = [[escape(str(value)) for value in row] for row in shown.to_numpy()]
    return "\n".join(line(cells) for cells in [[escape(head) for head in heads], rule, *rows]) + "\n"


_TEX = {
    "\\": r"\textbackslash{}",
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "–": "--",
    "−": "$-$",
    "±": r"$\pm$",
    "∞": r"$\infty$",
}


def _tex(shown: pd.DataFrame, numeric: dict[str, bool]) -> str:
    """A table as TeX, with the rules of the package booktabs."""

    def line(cells: list[str]) -> str:
        return " & ".join("".join(_TEX.get(sign, sign) for sign in " ".join(cell.split())) for cell in cells) + r" \\"

    heads = [str(name) for name in shown.columns]
    align = "".join("r" if numeric[head] else "l" for head in heads)
    rows = [line([str(value) for value in row]) for row in shown.to_numpy()]
    parts = [rf"\begin{{tabular}}{{{align}}}", r"\toprule", line(heads), r"\midrule", *rows]
    return "\n".join([*parts, r"\bottomrule", r"\end{tabular}"]) + "\n"
