"""The run folder: the names of its files, the frozen configuration, the status.

config.yaml     the resolved configuration, frozen when the run first starts
status.json     state, epoch, step, heartbeat; replaced atomically
record.h5       what the run measured
checkpoints/    what the run resumes from
logs/           one file a rank: its last sign of life, and its traceback if it failed
"""

import errno
import fcntl
import json
import os
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from hpc.config import yamls
from hpc.config.read import differences, to_yaml, validate
from hpc.config.root import Config
from hpc.errors import ConfigError, RunError

CONFIG: Final = "config.yaml"
STATUS: Final = "status.json"
RECORD: Final = "record.h5"
CHECKPOINTS: Final = "checkpoints"
MANIFEST: Final = "manifest.json"
"""Written last: where it is, a checkpoint is complete."""
LOGS: Final = "logs"
LOCK: Final = ".lock"


def write_atomically(path: Path, content: str | bytes, *, durable: bool = True) -> None:
    """Replace a file in one step: a reader sees the old content or the new, never half of one.

    ``durable`` also waits until it is on the disk; a heartbeat need not.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if durable:
        sync_folder(path.parent)


def append_line(path: Path, line: str) -> None:
    """Add a line to a file, in one piece; on the disk when this returns. One that was broken off before is ended first.

    Raises:
        OSError: it cannot be written, or not all of it.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        size = os.fstat(descriptor).st_size
        broken = size > 0 and os.pread(descriptor, 1, size - 1) != b"\n"
        content = f"{chr(10) if broken else ''}{line}\n".encode()
        if os.write(descriptor, content) < len(content):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_folder(folder: Path) -> None:
    """Make renames in a folder survive a power failure."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def frozen(run_dir: Path) -> Config | None:
    """The configuration frozen in a run folder, or None where there is none."""
    path = run_dir / CONFIG
    if not path.exists():
        return None
    try:
        return validate(yamls.load(path))
    except (ConfigError, OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{path}: the folder's configuration cannot be used ({error}); restore the file, or start in a new run_dir"
        ) from None


def check_folder(config: Config) -> None:
    """Refuse a run folder that cannot be written or that holds a run of another configuration.

    A run that failed before its first checkpoint (a mistake in the configuration, say) holds nothing yet: mended,
    it starts again in the same folder.
    """
    run_dir = Path(config.run_dir)
    try:
        nearest = next(path for path in (run_dir, *run_dir.absolute().parents) if path.exists())
    except OSError as error:  # a name that no file system takes
        given = config.run_dir if len(config.run_dir) <= 60 else f"{config.run_dir[:57]}..."
        raise ConfigError(f"run_dir: got {given!r}: {error.strerror}; choose another run_dir") from None
    if not nearest.is_dir():
        raise ConfigError(f"run_dir: {nearest} is a file, but a folder is needed; choose another run_dir")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise ConfigError(f"run_dir: {nearest} cannot be written to; choose another run_dir or mend its permissions")
    if frozen(run_dir) is not None and _begun(run_dir):
        check_same(config)


def check_same(config: Config) -> None:
    """Refuse a folder whose frozen configuration differs; names the keys."""
    run_dir = Path(config.run_dir)
    before = frozen(run_dir)
    if before is not None and (keys := differences(before, config)):
        listed = "\n  ".join(keys)
        raise ConfigError(
            f"run_dir: {run_dir} holds a run of another configuration; choose another run_dir, "
            f"or give the same values:\n  {listed}"
        )


def _begun(run_dir: Path) -> bool:
    """Is there anything of a run in a folder: a checkpoint, a record, or a process that trains?"""
    return trained(run_dir) or locked(run_dir)


def trained(run_dir: Path) -> bool:
    """Is there anything that a run has measured or saved: a checkpoint, a record?"""
    return resumable(run_dir) or (run_dir / RECORD).exists()


def locked(run_dir: Path) -> bool:
    """Does a process hold the folder? Asking changes nothing in it."""
    try:
        descriptor = os.open(run_dir / LOCK, os.O_RDWR)
    except OSError:
        return False
    try:
        return not _lock(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def held(run_dir: Path) -> Iterator[bool]:
    """Hold a run's folder, as a run does that trains there; False: another process does.

    Raises:
        OSError: nobody may write in it.
    """
    descriptor = os.open(run_dir / LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
    try:
        yield _lock(descriptor)
    finally:
        os.close(descriptor)


def _lock(descriptor: int) -> bool:
    """Is it ours now?"""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks: nothing can be said
        return True
    return True


def freeze(config: Config) -> Path:
    """Make the run folder and write the resolved configuration into it; the folder's path.

    :func:`check_folder` has compared it with one that is there already: what may differ takes the new value.

    Raises:
        RunError: the folder cannot be written, though :func:`check_folder` found no reason (a full disk, say).
    """
    run_dir = Path(config.run_dir)
    try:
        for folder in (run_dir, run_dir / CHECKPOINTS, run_dir / LOGS):
            folder.mkdir(parents=True, exist_ok=True)
        if frozen(run_dir) != config:
            write_atomically(run_dir / CONFIG, to_yaml(config))
    except OSError as error:
        raise RunError(f"run_dir: {run_dir} cannot be written to ({error.strerror}); choose another run_dir") from error
    return run_dir


def read_status(run_dir: Path) -> dict[str, Any]:
    """What ``status.json`` says; empty where there is none or it cannot be read."""
    try:
        status = json.loads((run_dir / STATUS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return status if isinstance(status, dict) else {}


def ended(run_dir: Path, state: str, error: str, exit_code: int) -> None:
    """Add how a run ended to whatever its status said last. Any rank may be the one that fails, or the launcher."""
    how = {"state": state, "error": error, "exit_code": exit_code, "heartbeat": time.time()}
    before = {key: value for key, value in read_status(run_dir).items() if key != "ended_by"}
    status = {**before, **how}
    write_atomically(run_dir / STATUS, json.dumps(status, indent=1) + "\n")


def resumable(run_dir: Path) -> bool:
    """Is there a complete checkpoint to go on from?"""
    return any(complete(run_dir))


def complete(run_dir: Path) -> Iterator[Path]:
    """The folders of a run's complete checkpoints; their names go by step."""
    return (path.parent for path in (run_dir / CHECKPOINTS).glob(f"step-*/{MANIFEST}"))
