"""The end of a run that cannot go on: one rank says why, and all of them end."""

import sys
import time
import traceback
from pathlib import Path
from typing import Final

from hpc.comm import Communicator
from hpc.config.folder import LOGS, ended, resumable
from hpc.config.launcher import promise
from hpc.config.root import Config
from hpc.errors import ConfigError, RankTimeoutError, RunError
from hpc.heartbeat import last_seen

STOPPED: Final = 75
"""Exit code of a run that stopped early and can go on (EX_TEMPFAIL)."""


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
    code = error.exit_code if isinstance(error, RunError) else 1
    message = str(error) if isinstance(error, RunError) else f"{type(error).__name__}: {error}"
    if isinstance(error, RankTimeoutError):
        code = STOPPED if resumable(run_dir) else 1
        message += f". Last signs of life:\n  {last_seen(run_dir)}"
        message += "\nRun the same command again to go on from the last checkpoint." if code == STOPPED else ""
    if isinstance(error, RunError) and comm.rank > 0:
        time.sleep(0.5)  # what all ranks find, rank 0 says; it ends this one meanwhile
    prefix = f"rank {comm.rank}: " if comm.size > 1 else ""
    try:
        if holding and not isinstance(error, RunError):
            message += f" (traceback in {_keep_traceback(error, run_dir, comm.rank)})"
        if holding:
            ended(run_dir, "stopped" if code == STOPPED else "failed", f"{prefix}{message}", code)
    except OSError as trouble:  # a full disk, perhaps
        message += f"\n(and {run_dir} could not be written to: {trouble})"
    finally:
        if not isinstance(error, ConfigError) or comm.size > 1 or _speaks():
            print(f"structlearn: {prefix}{message}", file=sys.stderr, flush=True)  # noqa: T201 - the answer
        comm.abort(code)
    return code


def _keep_traceback(error: BaseException, run_dir: Path, rank: int) -> Path:
    (run_dir / LOGS).mkdir(exist_ok=True)
    log = run_dir / LOGS / f"rank-{rank:04d}.err"
    log.write_text("".join(traceback.format_exception(error)), encoding="utf-8")
    return log


def _speaks() -> bool:
    """Is this the launcher's first process? A wrong pairing with MPI makes each of them think it is alone."""
    made = promise()
    return made is None or not made.rank
