"""Run all sides, one after the other, seed by seed, in this process.

    python experiments/alrao_pendulum/run.py [FILE.yaml]

Writes to ``results``: ``runs.csv`` (one row a run: what its best network returns on test episodes, and whether it
diverged), ``validation.csv`` (returns along the way) and ``common.json`` (settings that all sides share). A run that
stands in ``runs.csv`` is not run again.
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from analysis.experiment import parser
from analysis.rows import Rows
from hpc.config import yamls

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent.parent / "examples"))

from deep_q_learning import Result, Settings, train  # noqa: E402

KEY = ["environment", "side", "seed"]
RUNS = [
    *KEY, "method", "lr", "episodes", "best", "validation_return", "test_return", "test_deviation", "failed", "lost",
]  # fmt: skip
VALIDATION = [*KEY, "episode", "return"]


def label(side: dict[str, Any]) -> str:
    """A side's name: alrao, alrao mean, adam, sgd 0.01."""
    name = str(side["method"])
    if name == "alrao":
        return " ".join([name, *([side["answer"]] if "answer" in side else [])])
    return name if name == "adam" else f"{name} {side['lr']:g}"


def rows(key: dict[str, Any], settings: Settings, result: Result) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """A run's row, and those of its validations."""
    lr = None if settings.method == "alrao" else settings.lr
    best = max((value for _, value in result.validation), default=None)
    deviation = np.std(result.test, ddof=1) if result.test else None
    facts = {"method": settings.method, "lr": digits(lr), "episodes": result.episodes, "best": result.best}
    facts |= {"validation_return": digits(best), "test_return": digits(result.test_return)}
    facts |= {"test_deviation": digits(deviation), "failed": result.failed, "lost": result.lost}
    return key | facts, [key | {"episode": number, "return": digits(value)} for number, value in result.validation]


def digits(value: float | None) -> str:
    """Six of them; nothing for no number."""
    return "" if value is None or np.isnan(value) else f"{value:.6g}"


def check_common(common: dict[str, Any], path: Path) -> None:
    """Runs of other settings must not stand beside each other."""
    if path.exists() and json.loads(path.read_text()) != common:
        raise SystemExit(f"{path} has other settings than this file; give --results another folder, or empty that one")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(common, indent=1) + "\n")


def main() -> None:
    arguments = parser(__doc__, HERE).parse_args()
    plan = yamls.load(arguments.file)
    check_common(plan["common"], arguments.results / "common.json")
    runs = Rows(arguments.results / "runs.csv", RUNS, KEY)
    validation = Rows(arguments.results / "validation.csv", VALIDATION, [*KEY, "episode"])
    places = [(name, seed, side) for name in plan["environments"] for seed in plan["seeds"] for side in plan["sides"]]
    for name, seed, side in places:
        key = dict(zip(KEY, (name, label(side), seed), strict=True))
        if runs.has(*key.values()):
            continue
        settings = Settings(environment=name, seed=seed, **plan["common"], **side)
        result = train(settings)
        row, validations = rows(key, settings, result)
        # The row comes last: what is broken off before it is run again, and gives the same validations.
        validation.append(*validations)
        runs.append(row)
        ending = f"{result.test_return:.1f}{', failed' if result.failed else ''}"
        print(f"{name}, {key['side']}, seed {seed}: {ending}", flush=True)


if __name__ == "__main__":
    main()
