"""Measure the consensus error of PerSyn and gossip under noise, without MPI (B fig. 2.3, A.1-A.3).

    python experiments/consensus/run.py [FILE.yaml]

Writes to ``results``: ``steps.csv`` (eps by step), ``averages.csv`` (its mean over the second half of the steps),
``levels.csv`` (the same from dense matrices, for other clocks and rates), ``late.csv`` (by step, from dense matrices:
gossip whose messages are mixed one step later) and ``scale.csv`` (by number of workers). Every eps is divided by the
number of coordinates.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from analysis.experiment import keep, parser
from hpc.config import yamls
from hpc.exchange.matrices import UNITS, Floats, Gossip, Ints, Mixing, PerSyn, Strategy, Tick
from hpc.exchange.simulator import expected, persyn_moments, simulate
from hpc.seeding import generator

HERE = Path(__file__).parent


class LateGossip(Strategy):
    """Gossip as the engine does it in training, if every message is there within a step.

    A rank makes its local update, mixes what came since its last step, and pushes what it then has. So a message that
    was sent after step t is mixed after its receiver's step t + 1, not before it. Messages under way have rows of W of
    their own: row M + s holds what worker s last sent.

    Args:
        rho: probability of a push, for each worker and step.
    """

    def __init__(self, workers: int, rho: float, draw: np.random.Generator, trials: int) -> None:
        super().__init__(workers, trials, 2 * workers, 0, 1)
        self.rho, self._draw = rho, draw

    def ticks(self) -> Iterator[Tick]:
        """What was sent a step ago is mixed; then those that push copy their rows."""
        masses = np.full(self.trials * self.size, UNITS, np.int64)
        everyone = self._everyone
        sender = receiver = np.empty(0, np.int64)
        sent = np.empty(0, np.int64)
        while True:
            mix = self._mix(masses, sender, receiver, sent)
            sender = everyone[self._draw.random(everyone.size) < self.rho]
            place = sender % self.size
            peer = (place + 1 + self._draw.integers(self.workers - 1, size=sender.size)) % self.workers
            receiver = sender - place + peer
            sent = masses[sender] // 2
            masses[sender] -= sent
            push = self._mixing(sender + self.workers, sender, np.ones(sender.size))
            yield Tick(everyone, (mix, push))

    def _mix(self, masses: Ints, sender: Ints, receiver: Ints, sent: Ints) -> Mixing:
        own = masses.copy()
        np.add.at(masses, receiver, sent)
        reached = np.unique(receiver)
        return self._mixing(
            np.concatenate([reached, receiver]),
            np.concatenate([reached, sender + self.workers]),
            np.concatenate([own[reached] / masses[reached], sent / masses[receiver]]),
        )


def mean(values: Floats) -> tuple[Any, Any]:
    """Mean over the last axis, trials, and its standard error; a single one is exact."""
    trials = values.shape[-1]
    error = values.std(axis=-1, ddof=1) / np.sqrt(trials) if trials > 1 else np.zeros(values.shape[:-1])
    return values.mean(axis=-1), error


def curves(plan: dict[str, Any]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Eps by step, and over the second half of the steps; each drawn with noise, and from its reference.

    PerSyn's reference is the closed form, which also says the standard error that its trials have. Gossip's is the mean
    of dense matrices over schedules of their own. ``spread`` is a run's standard deviation over time, the mean over
    runs; ``above`` the part of all steps at which eps is above the highest that PerSyn's expectation gets.
    """
    workers, dim, trials = plan["workers"], plan["dim"], plan["trials"]
    pairs = zip(plan["rho"], plan["steps"], strict=True)
    cases = [(rho, number, variance) for rho, number in pairs for variance in plan["variance"]]
    steps, averages = [], []
    for place, (rho, number, variance) in enumerate(cases):
        schedule, noise, other = (generator(plan["seed"], "exchange", place, stream) for stream in range(3))
        closed, deviation = (moment / dim for moment in persyn_moments(number, workers, 1 / rho, dim, variance))
        dense = expected(Gossip(workers, rho, other, plan["schedules"]), number, variance)
        gossip = simulate(Gossip(workers, rho, schedule, trials), number, dim, variance, noise) / dim
        persyn = simulate(PerSyn(workers, 1 / rho, trials), number, dim, variance, noise) / dim
        for name, drawn, right in (("gossip", gossip, dense), ("persyn", persyn, closed[:, None])):
            found, error = mean(drawn)
            reference, reference_error = mean(right)
            facts = {"strategy": name, "rho": rho, "variance": variance}
            by_step = {"step": np.arange(1, number + 1), "one": drawn[:, 0], "mean": found}
            by_step["error"] = error if name == "gossip" else deviation / np.sqrt(trials)
            by_step |= {"reference": reference, "reference_error": reference_error}
            steps.append(pd.DataFrame({**facts, **by_step}))
            late = drawn[number // 2 :]
            whole = dict(zip(("mean", "error"), mean(late.mean(axis=0)), strict=True))
            whole |= dict(zip(("reference", "reference_error"), mean(right[number // 2 :].mean(axis=0)), strict=True))
            whole |= {"spread": late.std(axis=0).mean(), "above": (late > closed.max()).mean()}
            averages.append({**facts, **whole})
            print(f"{name}, rho {rho}, variance {variance}: {whole['mean']:.5g}, {whole['reference']:.5g}", flush=True)
    return pd.concat(steps), pd.DataFrame(averages)


def levels(plan: dict[str, Any]) -> pd.DataFrame:
    """The mean of eps over the second half for variance 1: both clocks of gossip, and gossip with as many messages."""
    rows = []
    for place, (rho, number) in enumerate(zip(plan["rho"], plan["steps"], strict=True)):
        closed = persyn_moments(number, plan["workers"], 1 / rho, 1, 1.0)[0]
        row = {"rho": rho, "persyn": closed[number // 2 :].mean(), "persyn_highest": closed.max()}
        row["persyn_before"] = (plan["workers"] - 1) * np.ceil(1 / rho)
        kinds = {"rounds": (rho, "rounds"), "universal": (rho, "universal"), "doubled": (2 * rho, "rounds")}
        for stream, (kind, (rate, clock)) in enumerate(kinds.items()):
            draw = generator(plan["seed"], "exchange", 100 + place, stream)
            dense = expected(Gossip(plan["workers"], rate, draw, plan["schedules"], clock), number, 1.0)
            row[kind], row[f"{kind}_error"] = mean(dense[number // 2 :].mean(axis=0))
        draw = generator(plan["seed"], "exchange", 100 + place, 3)
        row["share"], row["share_error"] = mean(shares(plan, rho, number, draw))
        rows.append(row)
    return pd.DataFrame(rows)


def shares(plan: dict[str, Any], rho: float, steps: int, draw: np.random.Generator) -> Floats:
    """For each schedule, the mean share c of a message in its receiver's new weights, over the second half."""
    gossip = Gossip(plan["workers"], rho, draw, plan["schedules"] // 10, "universal")
    total, messages = np.zeros(gossip.trials), np.zeros(gossip.trials)
    for number, tick in zip(range(steps * gossip.ticks_per_step), gossip.ticks(), strict=False):
        if number >= steps * gossip.ticks_per_step // 2:
            kept = tick.dense(gossip.trials, gossip.size).diagonal(axis1=1, axis2=2)
            total += (1.0 - kept).sum(axis=1)
            messages += (kept < 1.0).sum(axis=1)
    return total / messages


def late(plan: dict[str, Any]) -> pd.DataFrame:
    """Eps by step for variance 1, of gossip whose messages are mixed a step later: the mean over schedules."""
    rows = []
    for place, (rho, number) in enumerate(zip(plan["rho"], plan["steps"], strict=True)):
        draw = generator(plan["seed"], "exchange", 600 + place)
        found, error = mean(expected(LateGossip(plan["workers"], rho, draw, plan["schedules"]), number, 1.0))
        facts = {"strategy": "gossip", "rho": rho, "step": np.arange(1, number + 1)}
        rows.append(pd.DataFrame({**facts, "reference": found, "reference_error": error}))
    return pd.concat(rows)


def scale(plan: dict[str, Any]) -> pd.DataFrame:
    """Eps / (M - 1) on average over the second half, for gossip with M workers and variance 1."""
    rows, asked = [], plan["scale"]
    for place, workers in enumerate(asked["workers"]):
        trials = asked["rows"] // workers
        schedule, noise = (generator(plan["seed"], "exchange", 200 + place, stream) for stream in range(2))
        drawn = simulate(Gossip(workers, asked["rho"], schedule, trials), asked["steps"], asked["dim"], 1.0, noise)
        late = drawn[asked["steps"] // 2 :].mean(axis=0) / asked["dim"] / (workers - 1)
        found, error = mean(late)
        rows.append({"rho": asked["rho"], "workers": workers, "trials": trials, "mean": found, "error": error})
        print(f"gossip, {workers} workers: {found:.5g}", flush=True)
    return pd.DataFrame(rows)


def main() -> None:
    arguments = parser(__doc__, HERE).parse_args()
    plan = yamls.load(arguments.file)
    steps, averages = curves(plan)
    frames = {"steps": steps, "averages": averages, "levels": levels(plan), "late": late(plan), "scale": scale(plan)}
    keep(frames, arguments.results)


if __name__ == "__main__":
    main()
