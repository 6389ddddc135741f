"""Checkpoints: each rank its own file, the manifest last.

    checkpoints/step-000000120-epoch-00004/shared.h5       what all ranks hold alike, written by rank 0
    checkpoints/step-000000120-epoch-00004/rank-0000.h5    what one rank holds
    checkpoints/step-000000120-epoch-00004/manifest.json   written last: where it is, the checkpoint is complete

Names sort as they were written: where another number of ranks has gone on, so that steps may begin at a lower number
again, they are step-r00001-..., the second time step-r00002-..., and so on.

A file is written under a temporary name, waited for (fsync), renamed, and the rename waited for. The manifest
holds the checksums of every byte of the others and one of itself. Loading takes the newest checkpoint that
every rank finds whole, and says which ones it passed over and why.
"""

import errno
import json
import shutil
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from hpc import tensorfile
from hpc.communicator import Communicator
from hpc.config.folder import MANIFEST, sync_folder, write_atomically
from hpc.errors import RunError
from hpc.tensorfile import FORMAT, VERSION, DamagedFileError

SHARED: Final = "shared.h5"


@dataclass(frozen=True)
class Loaded:
    """What came back from a checkpoint."""

    step: int
    shared: Any
    own: Any
    """This rank's state; None where another number of ranks wrote it."""
    world_size: int
    """How many did."""
    read: Callable[[int], Any]
    """Reads the state of one of them."""
    passed_over: tuple[str, ...] = ()
    """Newer checkpoints that were damaged, one sentence each."""


class Checkpoints:
    """The checkpoints of one run. Every method is collective.

    Args:
        folder: the run's ``checkpoints`` folder.
        comm: the ranks.
        run_id: names the configuration; a checkpoint of another one is refused.
        keep: how many of the newest complete checkpoints stay.
        tell: called on rank 0 with a sentence the user should read.
    """

    def __init__(self, folder: Path, comm: Communicator, run_id: str, keep: int, tell: Callable[[str], None]) -> None:
        self._folder, self._comm, self._run_id, self._keep, self._tell = folder, comm, run_id, keep, tell

    def save(self, step: int, epoch: int, shared: Any, own: Any, resized: int = 0) -> None:
        """Write a checkpoint; returns when it is on the disk and complete on every rank.

        Args:
            step: steps made.
            epoch: epochs finished, evaluation included.
            shared: state that all ranks hold alike; rank 0 writes it.
            own: this rank's state.
            resized: how often another number of ranks has gone on.

        Raises:
            RunError: on every rank, when one of them could not write. Older checkpoints are untouched.
        """
        again = f"r{resized:05d}-" if resized else ""
        folder = self._folder / f"step-{again}{step:09d}-epoch-{epoch:05d}"
        files: dict[str, Any] = {}
        problem = None
        try:
            folder.mkdir(parents=True, exist_ok=True)
            files[f"rank-{self._comm.rank:04d}.h5"] = self._write(folder / f"rank-{self._comm.rank:04d}.h5", own)
            if self._comm.rank == 0:
                files[SHARED] = self._write(folder / SHARED, shared)
        except OSError as error:
            problem = f"rank {self._comm.rank}: {_reason(error, folder)}"
        gathered = self._comm.gather([problem, files], "write a checkpoint")
        problems = [trouble for trouble, _ in gathered if trouble]
        if not problems and self._comm.rank == 0:
            everything = {name: entry for _, entries in gathered for name, entry in entries.items()}
            problems += self._commit(folder, step, everything)
        problems = self._comm.gather(problems, "complete a checkpoint")[0] or problems
        if problems:
            self._discard(folder)
            raise RunError(self._cannot_write(step, problems))
        if self._comm.rank == 0:
            self._prune()

    def load(self) -> Loaded | None:
        """The newest checkpoint that every rank finds whole; None where no complete one was ever written.

        Raises:
            RunError: there are checkpoints, but none is whole, or they belong to another run.
        """
        names = self._comm.gather(sorted(path.parent.name for path in self._committed()), "list checkpoints")[0]
        passed_over: list[str] = []
        for name in reversed(names):
            loaded, problem = self._try(self._folder / name)
            problems = [text for text in self._comm.gather(problem, "check a checkpoint") if text]
            if loaded is not None and not problems:
                self._set_aside(name, names)
                return replace(loaded, passed_over=tuple(passed_over))
            passed_over.append(f"checkpoint {name} is passed over: {'; '.join(dict.fromkeys(problems))}")
        if names:
            raise RunError(self._none_whole(names, passed_over))
        self._set_aside("", names)
        return None

    def read_shared(self) -> tuple[Any, tuple[str, ...]] | None:
        """What all ranks held alike, in the newest checkpoint where that is whole; None where there is none at all.

        For readers: it asks no other rank, and changes nothing in the folder.

        Returns:
            The state, and the newer checkpoints that are damaged, one sentence each.

        Raises:
            RunError: there are checkpoints, but none is whole, or they belong to another run.
        """
        names, passed_over = [path.parent.name for path in self._committed()], list[str]()
        for name in reversed(names):
            folder = self._folder / name
            try:
                manifest = _read_manifest(folder / MANIFEST)
                self._refuse_foreign(manifest, folder)
                return tensorfile.read(folder / SHARED, manifest["files"][SHARED]), tuple(passed_over)
            except DamagedFileError as error:
                passed_over.append(f"checkpoint {name} is passed over: {error}")
        if names:
            raise RunError(self._none_whole(names, passed_over))
        return None

    # --- one rank's part -------------------------------------------------------------------------------

    def _write(self, path: Path, state: Any) -> dict[str, Any]:
        temporary = path.with_name(f".{path.name}.tmp")
        temporary.unlink(missing_ok=True)
        try:
            entry = tensorfile.write(temporary, state)
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        sync_folder(path.parent)
        return entry

    def _commit(self, folder: Path, step: int, files: dict[str, Any]) -> list[str]:
        if missing := sorted(name for name in files if not (folder / name).exists()):
            return [f"rank 0: does not see {missing} in {folder}, which other ranks wrote"]
        manifest = {
            "format": FORMAT,
            "version": VERSION,
            "run_id": self._run_id,
            "world_size": self._comm.size,
            "step": step,
            "files": files,
        }
        text = json.dumps(manifest, sort_keys=True)
        try:
            write_atomically(folder / MANIFEST, f'{{"crc32": {zlib.crc32(text.encode())}, "manifest": {text}}}\n')
            sync_folder(self._folder)
        except OSError as error:
            return [f"rank 0: {_reason(error, folder)}"]
        return []

    def _try(self, folder: Path) -> tuple[Loaded | None, str | None]:
        """A checkpoint, or what is wrong with this rank's part of it. A foreign run is an error, not a fallback."""
        try:
            manifest = _read_manifest(folder / MANIFEST)
            self._refuse_foreign(manifest, folder)
            before = manifest["world_size"]

            def read(rank: int) -> Any:
                name = f"rank-{rank:04d}.h5"
                return tensorfile.read(folder / name, manifest["files"][name])

            shared = tensorfile.read(folder / SHARED, manifest["files"][SHARED])
            own = read(self._comm.rank) if before == self._comm.size else None
            for rank in range(before) if own is None else ():
                read(rank)  # verifies it; there may be many, so none is kept
        except DamagedFileError as error:
            return None, str(error)
        return Loaded(manifest["step"], shared, own, before, read), None

    def _refuse_foreign(self, manifest: dict[str, Any], folder: Path) -> None:
        if manifest["run_id"] != self._run_id:
            raise RunError(
                f"{folder}: belongs to run {manifest['run_id']}, but this is run {self._run_id}; "
                f"each run needs a run_dir of its own"
            )

    # --- the folder ------------------------------------------------------------------------------------

    def _committed(self) -> list[Path]:
        return sorted(self._folder.glob(f"step-*/{MANIFEST}"))

    def _prune(self) -> None:
        """Remove all but the newest, the manifest first: what is half removed is not complete."""
        for manifest in self._committed()[: -self._keep]:
            manifest.unlink(missing_ok=True)
            shutil.rmtree(manifest.parent, ignore_errors=True)

    def _set_aside(self, chosen: str, names: list[str]) -> None:
        """Newer checkpoints are damaged: keep them for whoever wants to look, out of the way of new ones."""
        if self._comm.rank == 0:
            for path in self._folder.glob("step-*"):
                if path.name in names and path.name > chosen:
                    path.rename(_free_name(path.with_name(f"damaged-{path.name}")))
                elif path.name not in names:  # never completed
                    shutil.rmtree(path, ignore_errors=True)
        self._comm.barrier("set damaged checkpoints aside")

    def _discard(self, folder: Path) -> None:
        self._comm.barrier("give up a checkpoint")
        if self._comm.rank == 0:
            shutil.rmtree(folder, ignore_errors=True)

    def _none_whole(self, names: list[str], passed_over: list[str]) -> str:
        listed = "\n  ".join(passed_over)
        return (
            f"{self._folder}: none of {len(names)} checkpoint(s) can be used:\n  {listed}\n"
            f"Restore one, or remove the folder to start the run from the beginning."
        )

    def _cannot_write(self, step: int, problems: list[str]) -> str:
        last = self._committed()
        good = f"the last good one is {last[-1].parent.name}" if last else "none was written before"
        return (
            f"the checkpoint of step {step} could not be written ({'; '.join(problems)}); {good}. "
            f"Make room and run the same command again to go on from there."
        )


def _read_manifest(path: Path) -> dict[str, Any]:
    try:
        whole = json.loads(path.read_text(encoding="utf-8"))
        manifest = whole["manifest"]
        checksum = zlib.crc32(json.dumps(manifest, sort_keys=True).encode())
        if whole["crc32"] != checksum:
            raise DamagedFileError(f"{path.name}: altered since it was written (its checksum differs)")
        if (manifest["format"], manifest["version"]) != (FORMAT, VERSION):
            raise DamagedFileError(
                f"{path.name}: format {manifest['format']!r}, version {manifest['version']}; "
                f"this structlearn reads {FORMAT!r}, version {VERSION}"
            )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DamagedFileError(f"{path.name}: not a manifest ({error})") from error
    return dict(manifest)


def _reason(error: OSError, folder: Path) -> str:
    """What went wrong, and on a full disk how much room there is."""
    if error.errno == errno.ENOSPC:
        nearest = next(path for path in (folder, *folder.absolute().parents) if path.exists())
        free = shutil.disk_usage(nearest).free / 2**20
        return f"no space left on the disk of {folder} ({free:.0f} MiB free)"
    return f"{folder}: {error.strerror or error}"


def _free_name(path: Path) -> Path:
    candidates = (path, *(path.with_name(f"{path.name}.{count}") for count in range(1, 1000)))
    return next(candidate for candidate in candidates if not candidate.exists())
