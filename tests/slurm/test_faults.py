"""What clusters do to runs, on a real SLURM: each ends done, bit-identical to a run that was never disturbed."""

import random
import runpy
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from jobs.attempts import history

pytestmark = [pytest.mark.slurm, pytest.mark.slow]
faults = runpy.run_path(str(Path(__file__).parent / "faults.py"))

RUN = {"epochs": 30, "data": {"name": "digits"}, "checkpoint": {"every_steps": 7}}
RESOURCES = {"ranks": 2, "nodes": 2, "timeout_min": 10, "signal_s": 20}
AT_ONCE = 4
"""Faults, each on a cluster of its own: most of their time is spent waiting."""
DEADLINE_S = 600.0


@dataclass(frozen=True)
class Case:
    """One fault, and what the history of the run that it meets says before "done".

    Attributes:
        fault: of ``faults.py``.
        before: how the starts ended that the run's job could note.
        early: it comes when the ranks have just been started, not while they train.
        deadline_s: longest wait for another rank.
        resources: that differ.
        seeds: runs of the sweep; the last one meets the fault.
    """

    fault: str
    before: tuple[str, ...]
    early: bool = False
    deadline_s: float = 60
    resources: dict[str, Any] = field(default_factory=dict)
    seeds: int = 1


CASES = {  # those that wait longest come first
    "rank killed while slurmctld is away": Case("rank_killed_without_controller", ("failed",)),
    "told to stop while slurmctld is away": Case("stopped_without_controller", ("stopped",)),
    "other node failed": Case("other_node_failed", ("failed",), deadline_s=20),
    "other node failed at the start": Case("other_node_failed", ("failed",), early=True, deadline_s=20),
    "batch node failed": Case("batch_node_failed", ()),
    "other node away": Case("other_node_away", ("stopped",)),
    "time limit": Case("limit_reached", ("stopped",), deadline_s=600),
    "told to stop": Case("told_to_stop", ("stopped",), seeds=2),
    "told to stop at the start": Case("told_to_stop", ("stopped",), early=True),
    "preempted": Case("preempted", ("stopped",), resources={"partition": "low"}),
    "rank killed": Case("rank_killed", ("failed",)),
    "slurmd killed": Case("daemon_killed", ()),
    "slurmctld restarted": Case("controller_restarted", ()),
    "slurmctld killed": Case("controller_killed", ()),
}


def suffer(case: Case, cluster: Any, folder: Path) -> Any:
    """A sweep that the fault has met, and that is over."""
    exchange, sweep = {"name": "persyn", "tau": 5}, {"seeds": case.seeds}
    values = RUN | {"exchange": exchange, "compute": {"deadline_s": case.deadline_s}, "sweep": sweep}
    with cluster() as started:
        made = faults["Sweep"](started, folder / "sweep", random.Random(case.fault))
        made.submit(values | {"resources": RESOURCES | case.resources})
        victim = list(made.runs)[-1]

        def due() -> bool:
            if case.early:
                return len(made.ranks(victim)) == 2
            return made.step(victim) >= 40 and made.ages().get(victim, 0) > 7

        started.wait(due, "the run does not come so far", DEADLINE_S)
        faults[case.fault](made, [victim])
        started.wait(made.over, "not all runs are done, and all jobs gone", DEADLINE_S)
        made.ended = made.states()
    return made


@pytest.fixture(scope="module")
def suffered(request, cluster, tmp_path_factory):
    """For each case that is asked for: what became of it, as soon as that is known."""
    mine = [item for item in request.session.items if item.path == request.path]
    names = [name for name in CASES if any(item.callspec.params["name"] == name for item in mine)]
    pool = ThreadPoolExecutor(AT_ONCE)
    yield {name: pool.submit(suffer, CASES[name], cluster, tmp_path_factory.mktemp("sweep")) for name in names}
    pool.shutdown(cancel_futures=True)


@pytest.mark.parametrize("name", CASES)
def test_a_run_that_is_disturbed_ends_with_the_same_bits(name, suffered, differences):
    sweep, case = suffered[name].result(), CASES[name]
    *others, victim = sweep.ended
    assert victim["kind"] == "done"
    hows = [each.how for each in history(sweep.folder / victim["id"])]
    assert hows == [*case.before, "done"], history(sweep.folder / victim["id"])
    assert victim["stops"] == hows.count("stopped")
    assert differences(sweep.folder / victim["id"]) == []
    for other in others:  # they were let be
        assert (other["kind"], other["starts"], other["stops"]) == ("done", 1, 0)
