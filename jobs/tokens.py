"""The CPU cores and GPUs of this machine, shared out among the jobs of a user: a token for each, held by one job.

FOLDER/lock      one process at a time takes tokens, or changes what waits
FOLDER/cpu-N     the token of a CPU core
FOLDER/gpu-X     the token of a GPU; X as CUDA_VISIBLE_DEVICES names it

Holding is flock: the kernel takes a token back when the process that holds it dies, however it dies, and when the
machine starts anew. A file that says who holds it would be left behind by whoever is killed.
"""

import contextlib
import errno
import fcntl
import os
import stat
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from hpc.config.devices import cuda_devices
from hpc.errors import RunError

FOLDER: Final = "STRUCTLEARN_LOCAL"
"""The variable that names another folder."""
PATIENCE_S: Final = 60.0
"""Nobody holds the lock for longer than it takes to start a process."""


@dataclass(frozen=True)
class Need:
    """So many tokens of each kind."""

    cpus: int
    gpus: int


@dataclass(frozen=True)
class Held:
    """Tokens that this process holds, as long as their descriptors are open here or in a process that has got them."""

    descriptors: tuple[int, ...]
    cpus: tuple[str, ...]
    gpus: tuple[str, ...]

    def close(self) -> None:
        """Leave them to the processes that have got them; where there are none, give them back."""
        for descriptor in self.descriptors:
            os.close(descriptor)


class Tokens:
    """The tokens of one user on this machine.

    Not in XDG_RUNTIME_DIR, which is emptied when the user logs out, and not where TMPDIR leads, which may be another
    folder in another shell: all jobs have to see the same tokens.

    Args:
        path: their folder; None: that which STRUCTLEARN_LOCAL names, else /tmp/structlearn-UID.

    Raises:
        RunError: the folder cannot be made, or belongs to somebody else, or is open to others.
    """

    def __init__(self, path: Path | None = None) -> None:
        named = os.environ.get(FOLDER)
        self.path = (path or Path(named or f"/tmp/structlearn-{os.geteuid()}")).absolute()  # noqa: S108 - checked
        remedy = f"remove it, or name another folder with {FOLDER}"
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            found = self.path.lstat()
        except OSError as error:
            raise RunError(f"{self.path}: cannot be made a folder ({error.strerror}); {remedy}") from None
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
            raise RunError(f"{self.path}: is no folder of this user, whose tokens belong there; {remedy}")
        if found.st_mode & 0o077:
            raise RunError(f"{self.path}: is open to other users (mode {found.st_mode & 0o777:o}); chmod 700 it")

    @contextlib.contextmanager
    def locked(self, patience_s: float = PATIENCE_S) -> Iterator[None]:
        """One process at a time. Raises RunError where another does not leave."""
        until = time.monotonic() + patience_s
        while (descriptor := hold(self.path / "lock")) is None:
            if time.monotonic() > until:
                raise RunError(
                    f"{self.path / 'lock'}: held by another process for {patience_s:g} s; see which with fuser, "
                    f"and end it if it hangs"
                )
            time.sleep(0.01)
        try:
            yield
        finally:
            os.close(descriptor)

    def take(self, need: Need, earlier: Sequence[Need] = ()) -> Held | None:
        """All tokens that a job needs, or None: never some of them. The caller has the lock.

        Args:
            need: at most what the machine has.
            earlier: what jobs need that have waited for longer.
        """
        cpus, cards = self._free("cpu", cores()), self._free("gpu", gpus())
        try:
            if not leaves_enough(Need(len(cpus), len(cards)), need, earlier):
                return None
            mine = list(cpus)[: need.cpus], list(cards)[: need.gpus]
            descriptors = [cpus.pop(name) for name in mine[0]] + [cards.pop(name) for name in mine[1]]
            return Held((*descriptors, self.kept()), tuple(mine[0]), tuple(mine[1]))
        finally:
            for descriptor in (*cpus.values(), *cards.values()):
                os.close(descriptor)

    def kept(self) -> int:
        """A descriptor that keeps the folder: systemd-tmpfiles leaves alone what is old and locked."""
        descriptor = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        return descriptor

    def _free(self, kind: str, names: Iterable[str]) -> dict[str, int]:
        """Tokens that nobody else holds, each with its descriptor."""
        tried = {
            name: hold(self.path / f"{kind}-{name.replace('/', '_')}") for name in names
        }  # a part of a GPU: GPU-x/1
        return {name: descriptor for name, descriptor in tried.items() if descriptor is not None}


def hold(path: Path) -> int | None:
    """The descriptor of a file that is locked as long as this is open; None where it is locked already."""
    return _lock(os.open(path, os.O_RDWR | os.O_CREAT, 0o600), fcntl.LOCK_EX)


def held(path: Path) -> bool:
    """Does a living process hold this file? The caller has the lock: looking disturbs whoever wants to hold it."""
    try:
        descriptor = _lock(os.open(path, os.O_RDWR), fcntl.LOCK_SH)
    except FileNotFoundError:
        return False
    if descriptor is not None:
        os.close(descriptor)
    return descriptor is None


def _lock(descriptor: int, how: int) -> int | None:
    try:
        fcntl.flock(descriptor, how | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        if error.errno in {errno.EWOULDBLOCK, errno.EACCES}:
            return None
        raise
    return descriptor


def cores() -> list[str]:
    """The CPU cores that this process may use, by number: those of another mask are other tokens."""
    numbers = sorted(os.sched_getaffinity(0)) if sys.platform == "linux" else range(os.cpu_count() or 1)
    return [str(number) for number in numbers]


def gpus(environ: Mapping[str, str] = os.environ) -> list[str]:
    """The GPUs that a process started here would see, as CUDA_VISIBLE_DEVICES names them."""
    count, visible = cuda_devices(environ), environ.get("CUDA_VISIBLE_DEVICES")
    names = map(str, range(count)) if visible is None else [name.strip() for name in visible.split(",")][:count]
    return list(dict.fromkeys(names))


def leaves_enough(free: Need, need: Need, earlier: Sequence[Need]) -> bool:
    """May a job take what it needs of the free tokens?

    Of a kind that it takes, it leaves as many as each job needs that has waited for longer. So the one that has waited
    longest gets its tokens as soon as enough are back, however many small jobs come after it; and one that waits for a
    GPU does not keep those from starting that need none.
    """
    kinds = [
        (free.cpus, need.cpus, max((other.cpus for other in earlier), default=0)),
        (free.gpus, need.gpus, max((other.gpus for other in earlier), default=0)),
    ]
    return all(not mine or mine + theirs <= have for have, mine, theirs in kinds)


def machine() -> Need:
    """All tokens that there are here."""
    return Need(len(cores()), len(gpus()))
