"""What the scripts of an experiment share: their options, the frames that they keep, what they publish."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from analysis.tables import write_table

if TYPE_CHECKING:
    from collections.abc import Mapping

    import pandas as pd
    from matplotlib.figure import Figure


def parser(doc: str | None, here: Path) -> argparse.ArgumentParser:
    """Of a script that makes runs: which FILE.yaml, and where their results go (``--results``).

    Args:
        doc: the script's docstring, for ``--help``.
        here: the experiment's folder, of which ``small.yaml`` and ``results`` are the defaults.
    """
    made = _plain(doc)
    made.add_argument("file", type=Path, nargs="?", default=here / "small.yaml")
    made.add_argument("--results", type=Path, default=here / "results")
    return made


def folders(doc: str | None, here: Path) -> tuple[Path, Path]:
    """Where a script that draws reads from (``--results``) and writes to (``--out``), of this process's arguments.

    Args:
        doc: the script's docstring, for ``--help``.
        here: the experiment's folder, of which ``results`` is the default of both.
    """
    made = _plain(doc)
    made.add_argument("--results", type=Path, default=here / "results")
    made.add_argument("--out", type=Path, default=here / "results")
    given = made.parse_args()
    return given.results, given.out


def keep(frames: Mapping[str, pd.DataFrame], results: Path) -> None:
    """Writes what was measured, each frame as `name.csv`, numbers to six digits."""
    results.mkdir(parents=True, exist_ok=True)
    for name, frame in frames.items():
        frame.to_csv(results / f"{name}.csv", index=False, float_format="%.6g", lineterminator="\n")


def publish(tables: Mapping[str, pd.DataFrame], figures: Mapping[str, Figure], out: Path) -> None:
    """Writes tables (csv, markdown, TeX) and figures (png, pdf) under their names; prints the tables."""
    for name, table in tables.items():
        write_table(table, out, name)
        print((out / f"{name}.md").read_text(encoding="utf-8"))  # noqa: T201 - what a script shows
    from analysis.style import save  # here, so that a script that makes runs does not wait for matplotlib

    for name, figure in figures.items():
        save(figure, out, name)


def _plain(doc: str | None) -> argparse.ArgumentParser:
    return argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
