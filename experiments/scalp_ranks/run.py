"""Prune on one rank and on four, and write down what each rank held.

    python experiments/scalp_ranks/run.py [FILE.yaml] [--work DIR]

For every run of the file, as ``experiments/run.py`` reads it: the record; ``ranks.csv``, what every rank held after
every epoch (``rank.py``); ``checkpoint.csv``, what its file in the last checkpoint holds. What is there is not run
again.
"""

import argparse
import json
import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.experiment import keep
from hpc import tensorfile
from hpc.config import yamls
from jobs.launch import command, environment, find_mpiexec
from structlearn.structure import Plan

HERE = Path(__file__).parent
TOOLS = runpy.run_path(str(HERE.parent / "run.py"))


def config_of(base: dict[str, Any], overrides: dict[str, Any], run_dir: Path) -> dict[str, Any]:
    """The configuration of one run."""
    values: dict[str, Any] = json.loads(json.dumps(base)) | {"run_dir": str(run_dir)}
    for key, value in overrides.items():
        *sections, last = key.split(".")
        place = values
        for section in sections:
            place = place.setdefault(section, {})
        place[last] = value
    return values


def in_checkpoint(run_dir: Path, ranks: int) -> list[dict[str, Any]]:
    """What the last checkpoint holds of each rank: the widths of its weights, and its mass; the digest of all cuts."""
    folder = max((run_dir / "checkpoints").iterdir())
    files = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["manifest"]["files"]
    shared = tensorfile.read(folder / "shared.h5", files["shared.h5"])
    rows = []
    for rank in range(ranks):
        name = f"rank-{rank:04d}.h5"
        own = tensorfile.read(folder / name, files[name])
        parameters: dict[str, Any] = (own if "network" in own else shared)["network"]["parameters"]
        shapes = [tuple(value.shape) for value in parameters.values() if value.dim() == 2]
        rows.append(
            {
                "checkpoint": folder.name,
                "rank": rank,
                "digest": Plan.from_dict(shared["pruning"]["plan"]).digest,
                "widths": "/".join(str(shape[0]) for shape in shapes[:-1]),
                "mass": repr(own["exchange"]["counters"]["mass"]),
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, nargs="?", default=HERE / "small.yaml")
    parser.add_argument("--work", type=Path, default=Path("runs"), help="where the run folders go")
    arguments = parser.parse_args()
    values = yamls.load(arguments.file)
    base = {key: value for key, value in values.items() if key not in {"sweep", "resources"}}
    work = (arguments.work / HERE.name).resolve()
    for name, ranks, overrides in TOOLS["expand"](values, arguments.file.stem):
        results, run_dir = HERE / "results" / name, work / name
        if (results / "checkpoint.csv").exists():
            continue
        shutil.rmtree(run_dir, ignore_errors=True)  # a run that goes on would not know what its ranks held before
        work.mkdir(parents=True, exist_ok=True)
        config = work / f"{name}.yaml"
        config.write_text(yamls.dump(config_of(base, overrides, run_dir)), encoding="utf-8")
        program = [sys.executable, str(HERE / "rank.py"), str(config), str(work / f"{name}.csv")]
        line = command(find_mpiexec(), ranks, program) if ranks > 1 else program
        paths = os.pathsep.join([str(HERE.parent.parent), *filter(None, [os.environ.get("PYTHONPATH")])])
        subprocess.run(line, check=True, env=environment(ranks) | {"PYTHONPATH": paths})
        results.mkdir(parents=True, exist_ok=True)
        shutil.copy(run_dir / "record.h5", results / "record.h5")
        shutil.copy(work / f"{name}.csv", results / "ranks.csv")
        rows = in_checkpoint(run_dir, ranks)
        keep({"checkpoint": pd.DataFrame(rows)}, results)
        print(f"{name}: {rows[0]['widths']}", flush=True)


if __name__ == "__main__":
    main()
