"""One page of results from run folders, with its tables and figures beside it."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2

from analysis import tables
from analysis.curves import averaged
from analysis.figures import folds, learning_curves, time_profile
from analysis.groups import diverged, grouped
from analysis.load import load
from analysis.page import context
from analysis.provenance import write_provenance
from analysis.style import save
from analysis.widths import layer_widths

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd
    from matplotlib.figure import Figure

    from analysis.load import Records

_PROFILE = "Time in each phase on rank 0, over all epochs: in absolute terms and as a share of the sum."

_WIDTHS = (
    "Units of each layer after each epoch, in a panel for each setting: the mean over its finished runs, or one run"
    " where fewer than two have finished. Layers that are cut together are one line, with the name of the first."
)


class OutputError(OSError):
    """The report cannot be written: says where, why, and what to do."""

    def __init__(self, out: Path, error: OSError) -> None:
        where = "" if error.filename is None else f": {error.filename}"
        reason = f"{error.strerror or error}{where}"
        if isinstance(error, FileExistsError | NotADirectoryError):
            reason = f"{error.filename} is no folder"
        super().__init__(f"--out: {out} cannot be written to ({reason}); choose another folder, or make room there")


def report(source: Path | str | Sequence[Path | str], out: Path | str, *, strict: bool = False) -> Path:
    """Writes `index.html`, and beside it each table, each figure and where they come from.

    The page needs nothing else: figures and style are in it. The same records give the same bytes.

    Args:
        source: What `load` takes: a run folder, a record, a folder of run folders, a collected file, or several of
            these.
        out: The folder to write to; made if need be, files of the same name are replaced.
        strict: Whether one unreadable run among many is an error.

    Returns:
        The page.

    Raises:
        RecordError: If there is nothing to read.
        OutputError: If the folder cannot be written to.
    """
    records = load(source, strict=strict)
    out = Path(out)
    page = out / "index.html"
    try:
        out.mkdir(parents=True, exist_ok=True)
        _write_tables(records, out)
        write_provenance(records, out / "provenance.json")
        page.write_text(_render(records, _figures(records, out)), encoding="utf-8", newline="\n")
    except OSError as error:
        raise OutputError(out, error) from error
    return page


def _write_tables(records: Records, out: Path) -> None:
    """Each table in its three formats, and the epochs of all runs as csv for one's own figures."""
    runs = records.runs
    frames = {
        "runs": tables.run_table(runs),
        "settings": tables.group_table(runs),
        "exchange": tables.exchange_table(records.exchange, runs),
        "exchange_sums": tables.exchange_sums(records.exchange, runs),
        "profile": tables.profile_table(records.profile, runs),
        "config_shared": tables.shared_table(runs),
        "config_differing": tables.differing_table(runs),
    }
    for name, frame in frames.items():
        tables.write_table(frame, out, name)
    text = records.epochs.to_csv(index=False, float_format="%.10g", lineterminator="\n")
    (out / "epochs.csv").write_text(text, encoding="utf-8", newline="\n")
    if len(records.structure):
        text = records.structure.to_csv(index=False, lineterminator="\n")
        (out / "widths.csv").write_text(text, encoding="utf-8", newline="\n")


def _figures(records: Records, out: Path) -> list[dict[str, Any]]:
    """Draws and saves the figures; gives back what the page shows of each."""
    if not len(records.epochs):
        return []
    curves = learning_curves(records.epochs, records.runs)
    drawn: list[tuple[str, str, str, Figure]] = [
        ("learning_curves", "Learning curves", curves_caption(records.runs), curves)
    ]
    if len(records.structure):
        drawn.append(("layer_widths", "Units of each layer", _WIDTHS, layer_widths(records.structure, records.runs)))
    if len(records.profile):
        text = _PROFILE
        if folds(grouped(records.runs[records.runs["run"].isin(records.profile["run"])])):
            text += " Each bar is the mean over the finished runs of a setting."
        bars = time_profile(records.profile, records.runs)
        drawn.append(("time_profile", "Where the time went", text, bars))
    shown = []
    for name, title, caption, figure in drawn:
        png, _ = save(figure, out, name)
        data = base64.b64encode(png.read_bytes()).decode("ascii")
        shown.append({"name": name, "title": title, "caption": caption, "data": data})
    return shown


def curves_caption(runs: pd.DataFrame) -> str:
    """What has to be said about the lines of these runs."""
    text = "Loss and accuracy after each epoch."
    if any(averaged(members) for _, members in grouped(runs).groupby("group")):
        text += (
            " Lines with n are means over n finished runs that differ in the seed only; bands reach from the"
            " lowest to the highest of them. Runs that have not finished are thin lines of their own."
        )
    if ((runs["state"] == "failed") | diverged(runs)).any():
        text += " A cross marks where a run failed or diverged."
    return text


def _render(records: Records, figures: list[dict[str, Any]]) -> str:
    """The page as text."""
    template = Path(__file__).with_name("report.html").read_text(encoding="utf-8")
    # Names and configs are written by others: what they hold is text, never markup.
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.from_string(template).render(**context(records), figures=figures)
