"""``structlearn retry``, ``cancel`` and ``logs``: what is done to the runs of a sweep by hand."""

import os
import sys
import time
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import cast

from hpc.config.folder import LOGS, read_status
from hpc.errors import ConfigError
from hpc.output import say
from jobs.attempts import CANCELLED, RETRIED, mark
from jobs.clusters import CLUSTERS, Name, states_of
from jobs.controller import OUTPUT
from jobs.states import newest_jobs
from jobs.submit import MISSING, hand_over
from jobs.sweepfolder import SweepFolder


def retry(path: Path, cluster: Name | None, *, failed: bool) -> int:
    """Make new jobs for the runs that failed, or for those that are stopped, lost or new.

    Args:
        path: the sweep's folder.
        cluster: None: the one that the sweep was last given to.
        failed: those that failed, and no others.

    Raises:
        ConfigError: the folder holds no sweep.
        RunError: the cluster does not take them.
    """
    folder = SweepFolder.existing(path)
    with folder.locked():
        chosen = [state for state in states_of(folder) if (state.kind == "failed" if failed else state.kind in MISSING)]
        if not chosen:
            say(f"nothing to retry: no run is {'failed' if failed else 'stopped, lost or new'}", sys.stdout)
            return 0
        known = folder.runs()
        where = cluster or next((cast("Name", each.cluster) for each in reversed(folder.submissions())), None)
        if where is None:
            raise ConfigError(f"{path}: was never handed to a cluster; say which one with --cluster")
        for state in chosen:
            mark(folder.run_dir(state.id), RETRIED)
        jobs = hand_over(folder, [(state.id, known[state.id].resources) for state in chosen], where)
    say(f"submitted {len(chosen)} run(s) in {len(jobs)} job(s) to {where}", sys.stdout)
    return 0


def cancel(path: Path, runs: Sequence[str]) -> int:
    """End the jobs of a sweep, or those of some of its runs; what trains stops at a checkpoint.

    A job that makes other runs too goes on with those.

    Raises:
        ConfigError: the folder holds no sweep, or not these runs.
        RunError: the cluster does not answer.
    """
    folder = SweepFolder.existing(path)
    states = {state.id: state for state in states_of(folder)}
    wanted = [states[_only(states, run)] for run in runs] if runs else list(states.values())
    jobs = newest_jobs(folder.submissions())
    live = {state.id for state in states.values() if state.kind in {"pending", "running"} and state.id in jobs}
    ending = [state.id for state in wanted if state.id in live]
    for run in ending:
        mark(folder.run_dir(run), CANCELLED)  # its job is not to go back into the queue, or to come to it
    needed = {jobs[run] for run in live.difference(ending)}
    over = dict.fromkeys(jobs[run] for run in ending if jobs[run] not in needed)
    for cluster in dict.fromkeys(cluster for cluster, _ in over):
        CLUSTERS[cast("Name", cluster)].cancel([job for where, job in over if where == cluster])
    say(f"cancelled {len(ending)} run(s)" if ending else "nothing to cancel: no run waits or is made", sys.stdout)
    return 0


def logs(path: Path, run: str, *, follow: bool) -> int:
    """Print what a run's ranks have printed, of all its starts; with `follow` until it ends.

    Raises:
        ConfigError: the folder holds no sweep, or not this run, or it has not printed anything.
    """
    folder = SweepFolder.existing(path)
    known = folder.runs()
    run_dir = folder.run_dir(_only(known, run))
    output = run_dir / LOGS / OUTPUT
    if not output.exists() and not follow:
        raise ConfigError(f"{output}: not there yet; the run has not started (structlearn status {path})")
    place = 0
    while True:
        if output.exists():
            with output.open("rb") as file:
                file.seek(place)
                while text := file.read(1 << 16):
                    os.write(1, text)
                    place += len(text)
        if not follow or read_status(run_dir).get("state") in {"done", "failed"}:
            return 0
        time.sleep(0.5)


def _only(known: Collection[str], run: str) -> str:
    """The run whose id begins so. Raises ConfigError where there is none, or several."""
    names = [name for name in known if name.startswith(run)]
    if len(names) == 1:
        return names[0]
    few = f"; it begins {len(names)} of them: {', '.join(names[:3])}" if names else ""
    raise ConfigError(f"{run}: no run of this sweep is called that{few}; structlearn status lists their ids")
