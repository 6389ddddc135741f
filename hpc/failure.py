"""The end of a run that cannot go on: one rank says why, and all of them end."""

import sys
import time
import traceback
from pathlib import Path
from typing import Final

from hpc.communicator import Communicator
from hpc.config.folder import LOGS, ended, read_status, resumable, trained
from hpc.config.launcher import BrokenPromiseError, Promise, promise
from hpc.config.root import Config
from hpc.errors import LOST, ConfigError, RankTimeoutError, RunError
from hpc.heartbeat import GONE, last_seen
from hpc.output import say

STOPPED: Final = 75
"""Exit code of a run that stopped early and can go on (EX_TEMPFAIL)."""
GONE_S: Final = 0.3
"""How long a rank that MPI says is lost is looked for."""


def end_all(error: BaseException, config: Config, comm: Communicator, *, holding: bool) -> int:
    """Say what went wrong on this rank, and end all ranks, whatever else fails on the way.

    Args:
        error: what went wrong.
        config: the run.
        comm: the ranks.
        holding: this run holds its folder; one that does not must leave another's status alone.

    Returns:
        The exit code, where there are no other ranks to end.
    """
    run_dir = Path(config.run_dir)
    rank = _rank(comm)
    code = error.exit_code if isinstance(error, RunError) else 1
    message = str(error) if isinstance(error, RunError) else f"{type(error).__name__}: {error}"
    if lost := comm.lost(error):
        message = f"{LOST} ({message.strip()})"
    if isinstance(error, RankTimeoutError) or lost:
        code = STOPPED if resumable(run_dir) else 1
        message += f". Last signs of life:\n  {_last_seen(run_dir, lost=lost)}"
        message += "\nRun the same command again to go on from the last checkpoint." if code == STOPPED else ""
    if isinstance(error, RunError) and rank > 0:
        time.sleep(0.5)  # what all ranks find, rank 0 says; it ends this one meanwhile
    prefix = f"rank {rank}: " if _launched(comm) else ""
    try:
        if not isinstance(error, RunError):  # nobody foresaw it: whoever looks for the reason needs all of it
            where = f" (traceback in {_keep_traceback(error, run_dir, rank)})" if holding else f"\n{_traceback(error)}"
            message += where
        if holding and not _leaves_run_alone(error, run_dir):
            ended(run_dir, "stopped" if code == STOPPED else "failed", f"{prefix}{message}", code)
    except OSError as trouble:  # a full disk, perhaps
        message += f"\n(and {run_dir} could not be written to: {trouble})"
    finally:
        if not isinstance(error, BrokenPromiseError) or rank == 0:  # one of them is enough where all are alone
            say(f"structlearn: {prefix}{message}", sys.stderr)
        comm.abort(code)
    return code


def _last_seen(run_dir: Path, *, lost: bool) -> str:
    """A rank that is killed is gone for MPI before it is for the kernel, which first takes its memory back."""
    until = time.monotonic() + GONE_S
    while GONE not in (seen := last_seen(run_dir)) and lost and time.monotonic() < until:
        time.sleep(0.005)
    return seen


def _leaves_run_alone(error: BaseException, run_dir: Path) -> bool:
    """A run that is done stays done; a mistake in how it was started again says nothing about a run that has begun."""
    done = read_status(run_dir).get("state") == "done"
    return done or (isinstance(error, ConfigError) and trained(run_dir))


def _keep_traceback(error: BaseException, run_dir: Path, rank: int) -> Path:
    (run_dir / LOGS).mkdir(exist_ok=True)
    log = run_dir / LOGS / f"rank-{rank:04d}.err"
    log.write_text(_traceback(error), encoding="utf-8")
    return log


def _traceback(error: BaseException) -> str:
    return "".join(traceback.format_exception(error))


def _rank(comm: Communicator) -> int:
    """This rank's number; where the ranks have not met, the launcher's word on it."""
    made = _promise()
    return comm.rank if comm.size > 1 or made is None else made.rank or 0


def _launched(comm: Communicator) -> bool:
    """Are there other ranks, met or not?"""
    made = _promise()
    return comm.size > 1 or (made is not None and made.binding)


def _promise() -> Promise | None:
    try:
        return promise()
    except ConfigError:  # it cannot be understood, and the error says so
        return None
