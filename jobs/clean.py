"""``structlearn clean``: checkpoints of runs that are done are removed.

What a run that is done still needs is its newest checkpoint: `structlearn export` reads the network out of it, and
`structlearn train` by it that the run is done. The others, and those that were set aside as damaged, nobody reads.
"""

import json
import os
import shutil
import sys
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from hpc.config.folder import CHECKPOINTS, MANIFEST, complete, held, locked, read_status
from hpc.output import say
from jobs.sweepfolder import Planned, SweepFolder

SHOWN: Final = 40
"""Runs that are named on the terminal because they were left alone; --json names all."""
_AT_ONCE: Final = 16
"""Runs are cleaned by so many threads: on a network file system each waits for a server."""


@dataclass(frozen=True)
class Cleaned:
    """What was removed of a run that is done, or would be.

    Attributes:
        id: of the run.
        label: what varies.
        removed: the names of checkpoints.
        bytes: that were freed.
        kept: the name of the checkpoint that stays; empty: none.
        problem: why more stays than should; empty: nothing does.
    """

    id: str
    label: str
    removed: tuple[str, ...] = ()
    bytes: int = 0
    kept: str = ""
    problem: str = ""


def clean(path: Path, *, everything: bool, dry_run: bool, as_json: bool) -> int:
    """Remove checkpoints of a sweep's runs that are done, all but the newest of each.

    A run that is not done is never touched, nor one whose folder somebody holds. Links are not followed. A clean that
    was broken off is finished by the next one.

    Args:
        path: the sweep's folder.
        everything: the newest, too: the run's network is then gone, its record stays.
        dry_run: say what would be removed, and remove nothing.
        as_json: print one JSON object.

    Returns:
        0; 1 where of a run that is done something was left that should have gone.

    Raises:
        ConfigError: the folder holds no sweep.
    """
    folder = SweepFolder.existing(path)
    runs = list(folder.runs().values())
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        found = list(pool.map(lambda run: _clean(folder, run, everything=everything, dry_run=dry_run), runs))
    done = [each for each in found if each is not None]
    problems = [each for each in done if each.problem]
    if as_json:
        about = {"folder": str(path), "dry_run": dry_run, "bytes": sum(each.bytes for each in done)}
        runs_done = [asdict(each) for each in done]
        say(json.dumps(about | {"runs": runs_done, "not_done": len(found) - len(done)}), sys.stdout)
    else:
        _tell(path, done, problems, len(found) - len(done), everything=everything, dry_run=dry_run)
    return 1 if problems else 0


def _clean(folder: SweepFolder, run: Planned, *, everything: bool, dry_run: bool) -> Cleaned | None:
    """One run; None where it is not done."""
    run_dir = folder.run_dir(run.id)
    if not _done(run_dir):
        return None
    if run_dir.parent != folder.path or run_dir.is_symlink() or (run_dir / CHECKPOINTS).is_symlink():
        return Cleaned(run.id, run.label, problem="its folder, or that of its checkpoints, is a link to elsewhere")
    try:
        with _alone_in(run_dir, dry_run=dry_run) as ours:
            if not ours:
                return Cleaned(run.id, run.label, problem="another process is training in its folder")
            if not _done(run_dir):  # it was started again in between
                return None
            return _remove(run_dir, run, everything=everything, dry_run=dry_run)
    except OSError as error:
        return Cleaned(run.id, run.label, problem=_reason(error))


@contextmanager
def _alone_in(run_dir: Path, *, dry_run: bool) -> Iterator[bool]:
    """Hold a run's folder, or say whether somebody does, without a trace; False: somebody does."""
    if dry_run:
        yield not locked(run_dir)
        return
    with held(run_dir) as ours:
        yield ours


def _reason(error: OSError) -> str:
    return f"{error.filename}: {error.strerror or error}"


def _done(run_dir: Path) -> bool:
    return read_status(run_dir).get("state") == "done"


def _remove(run_dir: Path, run: Planned, *, everything: bool, dry_run: bool) -> Cleaned:
    """Remove what is not kept, the oldest first. The caller holds the folder."""
    checkpoints = sorted(_checkpoints(run_dir / CHECKPOINTS))
    if links := [path.name for path in checkpoints if path.is_symlink()]:
        return Cleaned(run.id, run.label, problem=f"{CHECKPOINTS}/{links[0]} is a link to elsewhere")
    kept = None if everything else max(complete(run_dir), default=None)
    if kept is not None and (damage := _damage(kept)):
        problem = f"its newest checkpoint is damaged ({damage}), so that an older one may be needed"
        return Cleaned(run.id, run.label, kept=kept.name, problem=problem)
    removed, freed, problem = [], 0, ""
    for path in checkpoints:
        if path == kept:
            continue
        size = _size(path)
        if not dry_run:
            try:
                (path / MANIFEST).unlink(missing_ok=True)  # what is half removed is no checkpoint
                shutil.rmtree(path)
            except OSError as error:
                problem = _reason(error)
                size -= _size(path)
        freed += size
        if dry_run or not path.exists():
            removed.append(path.name)
    return Cleaned(run.id, run.label, tuple(removed), freed, kept.name if kept else "", problem)


def _checkpoints(folder: Path) -> list[Path]:
    """Checkpoints, also those that are not complete or were set aside as damaged."""
    try:
        with os.scandir(folder) as entries:
            return [Path(entry) for entry in entries if entry.name.startswith(("step-", "damaged-step-"))]
    except FileNotFoundError:
        return []


def _damage(checkpoint: Path) -> str:
    """What is wrong with a checkpoint, as far as its manifest and the sizes of its files tell; empty: nothing.

    Their checksums are not compared: that would read all bytes of all runs.
    """
    try:
        whole = json.loads((checkpoint / MANIFEST).read_text(encoding="utf-8"))
        manifest = whole["manifest"]
        if whole["crc32"] != zlib.crc32(json.dumps(manifest, sort_keys=True).encode()):
            return f"{MANIFEST} was altered"
        for name, entry in manifest["files"].items():
            if (size := (checkpoint / name).stat().st_size) != entry["size"]:
                return f"{name} has {size:,} bytes of {entry['size']:,}"
    except OSError as error:
        return _reason(error)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{MANIFEST} is none: {error!r}"
    return ""


def _size(folder: Path) -> int:
    """The bytes of all files in a folder, of links their own."""
    return sum(os.lstat(Path(where) / name).st_size for where, _, names in os.walk(folder) for name in names)


def _tell(
    path: Path, done: Sequence[Cleaned], problems: Sequence[Cleaned], others: int, *, everything: bool, dry_run: bool
) -> None:
    """What was done, for people."""
    count, runs = sum(len(each.removed) for each in done), sum(bool(each.removed) for each in done)
    freed = sum(each.bytes for each in done)
    would = "would free" if dry_run else "freed"
    say(f"{path}: {would} {_bytes(freed)}: {count:,} checkpoint(s) of {runs:,} run(s) that are done", sys.stdout)
    if everything and runs:
        can = "could not be exported any more" if dry_run else "cannot be exported any more"
        say(f"their networks {can}, only trained anew in another run_dir; their records stay", sys.stdout)
    elif any(each.kept for each in done):
        say("the last of each stays: structlearn export reads it (--all removes it, too)", sys.stdout)
    if others:
        say(f"not touched: {others:,} run(s) that are not done", sys.stdout)
    if problems:
        say(f"left: of {len(problems):,} run(s) that are done", sys.stdout)
    for each in problems[:SHOWN]:
        say(f"  {each.id}  {each.label}  {each.problem}", sys.stdout)
    if len(problems) > SHOWN:
        say(f"  and {len(problems) - SHOWN:,} more; --json names them all", sys.stdout)


def _bytes(count: int) -> str:
    """A number of bytes, for people."""
    size = float(count)
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:,.0f} {unit}" if unit == "bytes" else f"{size:,.1f} {unit}"
        size /= 1000
    return f"{size:,.1f} TB"
