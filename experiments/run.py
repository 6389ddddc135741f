"""Run an experiment's runs on this machine, one after the other.

    python experiments/run.py experiments/exchange_lenet/small.yaml

The file is a configuration with two further sections: ``resources: {ranks: N}`` and ``sweep``, whose ``zip`` lists
values that go together (run i takes the i-th of each; null: the key is left out) and whose ``seeds`` repeats all of it
under seeds 0, 1, ..., one seed after the other: what is broken off leaves whole seeds behind.
Records of runs that are done are copied to the experiment's ``results``; what is there is not run again.
"""

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import h5py

from hpc.config import yamls


def expand(values: dict[str, Any], name: str) -> list[tuple[str, int, dict[str, Any]]]:
    """Every run of a sweep: (name, ranks, overrides)."""
    sweep = values["sweep"]
    columns: dict[str, list[Any]] = sweep["zip"]
    lengths = {len(column) for column in columns.values()}
    assert len(lengths) == 1, f"sweep.zip: the lists have different lengths {sorted(lengths)}"
    runs = []
    for seed in range(sweep.get("seeds", 1)):
        for index in range(len(next(iter(columns.values())))):
            chosen = {key: column[index] for key, column in columns.items() if column[index] is not None}
            ranks = int(chosen.pop("resources.ranks", values.get("resources", {}).get("ranks", 1)))
            label = "-".join(str(value) for key, value in chosen.items() if key.endswith(".name"))
            runs.append((f"{name}-{index}-{label}-x{ranks}-seed{seed}", ranks, {**chosen, "seed": seed}))
    return runs


def done(record: Path) -> bool:
    """Is there the record of a run that is done?"""
    if not record.exists():
        return False
    with h5py.File(record) as file:
        return bool(file.attrs["state"] == b"done")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--work", type=Path, default=Path("runs"), help="where the run folders go")
    arguments = parser.parse_args()
    values = yamls.load(arguments.file)
    base = {key: value for key, value in values.items() if key not in {"sweep", "resources"}}
    experiment = arguments.file.parent
    results = experiment / "results"
    work = arguments.work / experiment.name
    work.mkdir(parents=True, exist_ok=True)
    config = work / "base.yaml"
    config.write_text(yamls.dump(base), encoding="utf-8")
    for name, ranks, overrides in expand(values, arguments.file.stem):
        if done(results / name / "record.h5"):
            continue
        run_dir = work / name
        words = [word for key, value in overrides.items() for word in (f"--{key}", json.dumps(value))]
        command = [sys.executable, "-m", "jobs", "train", str(config), "--ranks", str(ranks), *words]
        subprocess.run([*command, "--run_dir", str(run_dir)], check=True)
        (results / name).mkdir(parents=True, exist_ok=True)
        shutil.copy(run_dir / "record.h5", results / name / "record.h5")


if __name__ == "__main__":
    main()
