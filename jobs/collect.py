"""``structlearn collect``: all records of a sweep in one file, and what is missing."""

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from hpc.config.folder import RECORD
from hpc.errors import ConfigError
from hpc.output import say
from jobs.clusters import states_of
from jobs.sweepfolder import SweepFolder

SHOWN: Final = 40
"""Runs that are named on the terminal, of those with no record and of those that are not done; the file names all."""


@dataclass(frozen=True)
class Missing:
    """A run that is not done, or has no record that can be read."""

    id: str
    label: str
    state: str
    record: str
    reason: str


def collect(path: Path, out: Path | None, *, as_json: bool) -> int:
    """Write all records of a sweep into one file.

    Args:
        path: the sweep's folder.
        out: the file; one that was collected before is replaced. None: beside the folder, with its name and `.h5`.
        as_json: print one JSON object.

    Returns:
        0: every run is done, and its record is in the file. 1: the file is written, and something is missing.

    Raises:
        ConfigError: the folder holds no sweep, or something else is where the file would be.
        RunError: the file cannot be written.
    """
    from jobs.collected import is_collected, write

    folder = SweepFolder.existing(path)
    file = _beside(path) if out is None else out
    if file.is_dir():
        raise ConfigError(f"--out: {file} is a folder; give the name of a file, such as {file / 'records.h5'}")
    if file.exists() and not (file.is_file() and is_collected(file)):
        raise ConfigError(f"--out: {file} is there and was not written by collect; choose another name, or remove it")
    parts = write(file, folder, states_of(folder))
    missing = [
        Missing(part.state.id, part.state.label, part.state.kind, part.record, part.reason)
        for part in parts
        if part.record != "here" or part.state.kind != "done"
    ]
    size, strays = file.stat().st_size, _strays(folder, {part.state.id for part in parts})
    records = sum(part.record == "here" for part in parts)
    if as_json:
        about = {"file": str(file), "bytes": size, "runs": len(parts), "records": records}
        say(json.dumps(about | {"missing": [asdict(each) for each in missing], "unknown": strays}), sys.stdout)
    else:
        say(f"{file}: {records:,} of {len(parts):,} records, {size:,} bytes", sys.stdout)
        _name("without a record", [each for each in missing if each.record != "here"])
        _name("not done", [each for each in missing if each.record == "here"])
        if strays:
            say(f"left out, for the sweep does not know them: {', '.join(strays[:SHOWN])}", sys.stdout)
    return 1 if missing else 0


def _beside(path: Path) -> Path:
    """A file beside a folder."""
    folder = path if path.name not in {"", ".."} else path.resolve()
    return folder.with_name(f"{folder.name}.h5")


def _strays(folder: SweepFolder, known: set[str]) -> list[str]:
    """Folders of runs that were made there by hand."""
    return sorted(each.parent.name for each in folder.path.glob(f"*/{RECORD}") if each.parent.name not in known)


def _name(what: str, runs: Sequence[Missing]) -> None:
    if runs:
        say(f"{what}: {len(runs):,} run(s)", sys.stdout)
    for run in runs[:SHOWN]:
        say(f"  {run.id}  {run.label}  {run.state}" + (f"  {run.reason}" if run.reason else ""), sys.stdout)
    if len(runs) > SHOWN:
        say(f"  and {len(runs) - SHOWN:,} more; --json and the file's /sweep/runs name them all", sys.stdout)
