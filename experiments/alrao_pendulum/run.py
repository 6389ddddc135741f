"""Run all sides, one after the other, seed by seed, in this process.

    python experiments/alrao_pendulum/run.py [FILE.yaml]

Writes to ``results``: ``runs.csv`` (one row a run: what its best network returns on test episodes, and whether it
diverged), ``validation.csv`` (returns along the way) and ``common.json`` (settings that all sides share). A run that
stands in ``runs.csv`` is not run again.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from hpc.config import yamls

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent.parent / "examples"))

from deep_q_learning import Result, Settings, train  # noqa: E402

KEY = ["environment", "side", "seed"]


def label(side: dict[str, Any]) -> str:
    """A side's name: alrao, alrao mean, adam, sgd 0.01."""
    name = str(side["method"])
    if name == "alrao":
        return " ".join([name, *([side["answer"]] if "answer" in side else [])])
    return name if name == "adam" else f"{name} {side['lr']:g}"


def rows(key: dict[str, Any], settings: Settings, result: Result) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """A run's row, and those of its validations."""
    lr = None if settings.method == "alrao" else settings.lr
    facts = {"method": settings.method, "lr": lr, "episodes": result.episodes, "best": result.best}
    facts |= {"validation_return": max((value for _, value in result.validation), default=None)}
    facts |= {"test_return": result.test_return, "test_deviation": np.std(result.test, ddof=1) if result.test else None}
    facts |= {"failed": result.failed, "lost": result.lost}
    return {**key, **facts}, [{**key, "episode": number, "return": value} for number, value in result.validation]


def read(path: Path) -> pd.DataFrame:
    """What is there already."""
    return pd.read_csv(path) if path.exists() else pd.DataFrame(columns=KEY)


def append(path: Path, new: list[dict[str, Any]], key: list[str]) -> None:
    """Add rows to a file, each key once."""
    if new:
        frame = pd.DataFrame([*read(path).to_dict("records"), *new]).drop_duplicates(key)
        frame.to_csv(path, index=False, float_format="%.6g", lineterminator="\n")


def check_common(common: dict[str, Any], path: Path) -> None:
    """Runs of other settings must not stand beside each other."""
    if path.exists() and json.loads(path.read_text()) != common:
        raise SystemExit(f"{path} has other settings than this file; give --results another folder, or empty that one")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(common, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, nargs="?", default=HERE / "small.yaml")
    parser.add_argument("--results", type=Path, default=HERE / "results")
    arguments = parser.parse_args()
    plan = yamls.parse(arguments.file.read_text(encoding="utf-8"), str(arguments.file))
    check_common(plan["common"], arguments.results / "common.json")
    paths = [arguments.results / f"{name}.csv" for name in ("runs", "validation")]
    done = set(read(paths[0])[KEY].itertuples(index=False, name=None))
    places = [(name, seed, side) for name in plan["environments"] for seed in plan["seeds"] for side in plan["sides"]]
    for name, seed, side in places:
        key = dict(zip(KEY, (name, label(side), seed), strict=True))
        if tuple(key.values()) in done:
            continue
        settings = Settings(environment=name, seed=seed, **plan["common"], **side)
        row, validations = rows(key, settings, train(settings))
        # The row comes last: what is broken off before it is run again, and gives the same validations.
        append(paths[1], validations, [*KEY, "episode"])
        append(paths[0], [row], KEY)
        ending = f"{row['test_return']:.1f}{', failed' if row['failed'] else ''}"
        print(f"{name}, {key['side']}, seed {seed}: {ending}", flush=True)


if __name__ == "__main__":
    main()
