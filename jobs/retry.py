"""``structlearn retry``, ``cancel`` and ``logs``: what is done to the runs of a sweep by hand."""

import contextlib
import os
import sys
import time
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Final, cast

from hpc.config.folder import CONFIG, LOGS
from hpc.errors import ConfigError, RunError
from hpc.output import say
from jobs.attempts import CANCELLED, RETRIED, mark
from jobs.clusters import CLUSTERS, Name, states_of
from jobs.controller import OUTPUT
from jobs.states import log_of, newest_jobs
from jobs.submit import MISSING, hand_over
from jobs.sweepfolder import Submission, SweepFolder

FOLLOW_S: Final = 1.0
"""How often a run that is followed is looked at."""


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
    folder = SweepFolder.existing(path.absolute())
    with folder.locked():
        chosen = [state for state in states_of(folder) if (state.kind == "failed" if failed else state.kind in MISSING)]
        if not chosen:
            say(f"nothing to retry: no run is {'failed' if failed else 'stopped, lost or new'}", sys.stdout)
            return 0
        if lacking := [state.id for state in chosen if not (folder.run_dir(state.id) / CONFIG).exists()]:
            raise ConfigError(
                f"{path}: the folders of {len(lacking)} run(s) are gone ({', '.join(lacking[:3])}); submit the sweep's "
                f"file again, which makes them anew"
            )
        known = folder.runs()
        last = folder.submissions()[-1:]
        if not last and cluster is None:
            raise ConfigError(f"{path}: was never handed to a cluster; say which one with --cluster")
        where = cluster or cast("Name", last[0].cluster)
        for state in chosen:
            mark(folder.run_dir(state.id), RETRIED)
        with _as_before(last):
            jobs = hand_over(folder, [(state.id, known[state.id].resources) for state in chosen], where)
    say(f"submitted {len(chosen)} run(s) in {len(jobs)} job(s) to {where}", sys.stdout)
    return 0


def _as_before(last: Sequence[Submission]) -> contextlib.AbstractContextManager[None]:
    """In the folder that the sweep was submitted from: what its configurations name without a root lies there."""
    folder = Path(str(last[0].origin.get("folder", ""))) if last else Path()
    return contextlib.chdir(folder) if folder.is_absolute() and folder.is_dir() else contextlib.nullcontext()


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
        if folder.run_dir(run).is_dir():
            mark(folder.run_dir(run), CANCELLED)  # its job is not to go back into the queue, or to come to it
    needed = {jobs[run] for run in live.difference(ending)}
    over = dict.fromkeys(jobs[run] for run in ending if jobs[run] not in needed)
    refusals = []
    for cluster in dict.fromkeys(cluster for cluster, _ in over):
        try:
            CLUSTERS[cast("Name", cluster)].cancel([job for where, job in over if where == cluster])
        except RunError as error:  # the other clusters' jobs are to end all the same
            refusals.append(str(error))
    if refusals:
        raise RunError("; ".join(refusals))
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
        _, job = newest_jobs(folder.submissions()).get(run_dir.name, ("", ""))
        output = log_of(folder, job) or output  # its job ended before the run began
    if not output.exists() and not follow:
        raise ConfigError(f"{output}: not there yet; the run has not started (structlearn status {path})")
    place, over = 0, not follow
    while True:
        if output.exists():
            with output.open("rb") as file:
                file.seek(place)
                while text := file.read(1 << 16):
                    os.write(1, text)
                    place += len(text)
        if over:
            return 0
        time.sleep(FOLLOW_S)
        states = {state.id: state.kind for state in states_of(folder)}
        over = states.get(run_dir.name) not in {"pending", "running"}  # and once more: what it said before that


def _only(known: Collection[str], run: str) -> str:
    """The run whose id begins so. Raises ConfigError where there is none, or several."""
    names = [name for name in known if name.startswith(run)]
    if len(names) == 1:
        return names[0]
    few = f"; it begins {len(names)} of them: {', '.join(names[:3])}" if names else ""
    raise ConfigError(f"{run}: no run of this sweep is called that{few}; structlearn status lists their ids")
