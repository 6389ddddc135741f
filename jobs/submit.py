"""``structlearn submit``: what of a sweep is missing goes to a cluster."""

import contextlib
import itertools
import json
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

from hpc.config.folder import freeze
from hpc.errors import RunError
from hpc.output import say
from jobs import sweep
from jobs.attempts import RETRIED, cancelled, history, mark
from jobs.clusters import CLUSTERS, Name, states_of
from jobs.origin import origin
from jobs.resources import Resources
from jobs.states import State, counts
from jobs.sweep import Expanded, Run
from jobs.sweepfolder import Submission, SweepFolder

MISSING: Final = frozenset({"new", "stopped", "lost"})
"""Of runs in these states a submission makes jobs; one that failed waits for ``structlearn retry --failed``."""

_WRITERS: Final = 16
"""Folders are made by so many threads: each waits for the disk, or for a server."""


def submit(path: Path, overrides: Sequence[str], cluster: Name, *, dry_run: bool, as_json: bool) -> int:
    """Hand over the runs that are missing: never submitted, stopped or lost. Those that failed wait for ``retry``.

    Raises:
        ConfigError: the sweep file has mistakes.
        RunError: the cluster does not take them. What it had taken before is noted.
    """
    expanded = sweep.read(path, overrides)
    folder = SweepFolder(expanded.folder)
    if dry_run:
        missing, states = _missing(folder, expanded.runs)
        _tell(_about(folder, expanded, missing, states, cluster), as_json=as_json)
        if not as_json:
            _preview(folder, missing, cluster)
        return 0
    with folder.locked():
        folder.add(expanded.runs)
        missing, states = _missing(folder, expanded.runs)
        with ThreadPoolExecutor(_WRITERS) as pool:
            for _ in pool.map(lambda run: _prepare(folder, run), missing):
                pass
        # With --cluster debug the runs print, too; --json promises one object.
        with contextlib.redirect_stdout(sys.stderr) if as_json else contextlib.nullcontext():
            jobs = hand_over(folder, [(run.id, run.resources) for run in missing], cluster)
    unfinished = missing and cluster == "debug" and any(state.kind != "done" for state in _missing(folder, missing)[1])
    _tell(_about(folder, expanded, missing, states, cluster) | {"jobs": jobs}, as_json=as_json)
    return 1 if unfinished else 0


def _prepare(folder: SweepFolder, run: Run) -> None:
    """Make a run's folder, in which its job finds all that it needs."""
    freeze(run.config)
    if cancelled(history(folder.run_dir(run.id))):
        mark(folder.run_dir(run.id), RETRIED)


def hand_over(folder: SweepFolder, runs: Sequence[tuple[str, Resources]], cluster: Name) -> list[str]:
    """Submit runs, those with equal needs in one array; the jobs' names. The folder is locked by the caller."""
    made = []
    for resources, group in groups(runs):
        packs = [group[start : start + resources.pack] for start in range(0, len(group), resources.pack)]
        run_dirs = [[folder.run_dir(run).absolute() for run in pack] for pack in packs]
        waiting, name = iter(packs), folder.path.absolute().name or "structlearn"
        try:
            for names in CLUSTERS[cluster].submit(run_dirs, resources, folder.logs.absolute(), name):
                jobs = dict(zip(names, itertools.islice(waiting, len(names)), strict=True))
                folder.note(Submission(time.time(), cluster, jobs, origin()))
                made += names
        except RunError as error:
            before = f"; {len(made)} job(s) were taken before, and go on: submit again for the rest" if made else ""
            raise RunError(f"{error}{before}") from None
    return made


def groups(runs: Sequence[tuple[str, Resources]]) -> list[tuple[Resources, list[str]]]:
    """Runs by what they need, in the order in which each need comes first."""
    found: list[tuple[Resources, list[str]]] = []
    for run, resources in runs:
        known = next((group for needs, group in found if needs == resources), None)
        if known is None:
            found.append((resources, known := []))
        known.append(run)
    return found


def _missing(folder: SweepFolder, runs: Sequence[Run]) -> tuple[list[Run], list[State]]:
    """(the runs that are to be handed over; the states of all)."""
    states = {state.id: state for state in states_of(folder)}
    mine = [states.get(run.id) or State(run.id, run.label, "new") for run in runs]
    return [run for run, state in zip(runs, mine, strict=True) if state.kind in MISSING], mine


def _about(
    folder: SweepFolder, expanded: Expanded, missing: Sequence[Run], states: Sequence[State], cluster: Name
) -> dict[str, Any]:
    """What is said of a submission, as plain values."""
    return {
        "folder": str(folder.path),
        "cluster": cluster,
        "runs": len(expanded.runs),
        "repeated": expanded.repeated,
        "submitted": len(missing),
        "before": counts(states),
        "ranks": sum(run.resources.ranks for run in missing),
        # Only SLURM ends a run when its time is over.
        "gpu_hours": _hours(missing, "gpus_per_rank") if cluster == "slurm" else None,
        "core_hours": _hours(missing, "cpus_per_rank") if cluster == "slurm" else None,
    }


def _hours(runs: Sequence[Run], each: str) -> float:
    """Of so many devices of each rank, if every job takes all of its time once."""
    needs = [run.resources for run in runs]
    minutes = sum(every.ranks * getattr(every, each) * every.timeout_min / every.pack for every in needs)
    return float(round(minutes / 60, 2))


def _say(text: str) -> None:
    say(text, sys.stdout)


def _tell(about: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        _say(json.dumps(about))
        return
    before = about["before"]
    kept = ", ".join(f"{count} {kind}" for kind, count in before.items() if kind not in MISSING)
    _say(f"{about['folder']}: {about['runs']} run(s)" + (f" ({kept})" if kept else ""))
    if about["repeated"]:
        _say(f"{about['repeated']} combination(s) of the sweep are runs that it has already")
    if not about["submitted"]:
        _say(
            "nothing is to be submitted"
            + ("; structlearn retry --failed starts what failed" if "failed" in before else "")
        )
        return
    needs = f"{about['ranks']} rank(s)"
    needs += f", at most {about['core_hours']:g} core hours" if about["core_hours"] else ""
    needs += f" and {about['gpu_hours']:g} GPU hours" if about["gpu_hours"] else ""
    if "jobs" in about:
        first, last = about["jobs"][0], about["jobs"][-1]
        names = first if first == last else f"{first} to {last}"
        count = len(about["jobs"])
        _say(f"submitted {about['submitted']} run(s), {needs}: {count} job(s) of {about['cluster']}, {names}")
        _say(f"structlearn status {about['folder']}   says how they are doing")
    else:
        _say(f"to be submitted: {about['submitted']} run(s), {needs}")


def _preview(folder: SweepFolder, missing: Sequence[Run], cluster: Name) -> None:
    for run in missing:
        _say(f"  {run.id}  {run.label}  ({folder.run_dir(run.id)})")
    for resources, group in groups([(run.id, run.resources) for run in missing]):
        count = -(-len(group) // resources.pack)
        _say(f"\n--- {count} job(s) of {min(resources.pack, len(group))} run(s), {resources.ranks} rank(s) each")
        _say(CLUSTERS[cluster].preview(resources, folder.logs.absolute(), folder.path.name, count))
