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


def end_all(error: BaseException, config: Config, comm: Communicator) -> int:
    """Say what went wrong on this rank, and end all ranks."""
    run_dir = Path(config.run_dir)
    code = error.exit_code if isinstance(error, RunError) else 1
    message = str(error) if isinstance(error, RunError) else f"{type(error).__name__}: {error}"
    if isinstance(error, RankTimeoutError):
        code = STOPPED if resumable(run_dir) else 1
        message += f". Last signs of life:\n  {last_seen(run_dir)}"
        message += "\nRun the same command again to go on from the last checkpoint." if code == STOPPED else ""
    if not isinstance(error, RunError) and run_dir.is_dir():
        (run_dir / LOGS).mkdir(exist_ok=True)
        log = run_dir / LOGS / f"rank-{comm.rank:04d}.err"
        log.write_text("".join(traceback.format_exception(error)), encoding="utf-8")
        message += f" (traceback in {log})"
    if isinstance(error, RunError) and comm.rank > 0:
        time.sleep(0.5)  # what all ranks find, rank 0 says; it ends this one meanwhile
    prefix = f"rank {comm.rank}: " if comm.size > 1 else ""
    if not isinstance(error, ConfigError) or _speaks():
        print(f"structlearn: {prefix}{message}", file=sys.stderr, flush=True)  # noqa: T201 - the answer
    if not isinstance(error, ConfigError) and run_dir.is_dir():
        try:
            ended(run_dir, "stopped" if code == STOPPED else "failed", f"{prefix}{message}")
        except OSError as trouble:  # a full disk, perhaps: the message above is what counts
            print(f"structlearn: status.json could not be written ({trouble})", file=sys.stderr, flush=True)  # noqa: T201
    comm.abort(code)
    return code


def _speaks() -> bool:
    """Is this the launcher's first process? A wrong pairing with MPI makes each of them think it is alone."""
    made = promise()
    return made is None or not made.rank
