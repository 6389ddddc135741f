"""Prune networks, export them and the whole ones, and have each file answer where nothing of structlearn is installed.

    python experiments/export/run.py [--pt2 PYTHON] [--onnx PYTHON] [--safetensors PYTHON]

The Pythons are those of fresh environments with only torch, onnxruntime, or safetensors and numpy in them. What is done
is not done again: a row goes to results/runs.csv when its network has answered.
"""

import argparse
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from analysis.rows import Rows
from hpc import data, export
from hpc.alone import Alone
from hpc.checkpoint import Checkpoints
from hpc.config import yamls
from hpc.config.folder import CHECKPOINTS, frozen
from hpc.config.read import run_id
from hpc.data import Feed

HERE = Path(__file__).parent
KINDS = ("pt2", "onnx", "safetensors")
COLUMNS = [
    "case",
    "part",
    "parameters",
    "format",
    "bytes",
    "largest_difference",
    "test_accuracy",
    "widths",
    "installed",
]
IMAGES = 256
WHOLE: dict[str, Any] = {"epochs": 1, "pruning": {"name": "none"}, "optimizer": {"name": "sgd"}}


def trained(case: dict[str, Any], folder: Path) -> None:
    """Train a run to its end."""
    folder.mkdir(parents=True, exist_ok=True)
    config = folder / "config.yaml"
    config.write_text(yamls.dump(case), encoding="utf-8")
    command = [sys.executable, "-m", "jobs", "train", str(config), "--run_dir", str(folder / "run")]
    subprocess.run(command, check=True)


def answers(run: Path) -> tuple[torch.Tensor, torch.Tensor, float]:
    """Images, what the network answers as it was trained, and its test accuracy in percent."""
    config = frozen(run)
    assert config is not None
    found = Checkpoints(run / CHECKPOINTS, Alone(), run_id(config), 1, print).read_shared()
    assert found is not None
    model = export.built(config, found[0]).eval()
    dataset = data.load(config.data, config.seed)
    feed = Feed(dataset, config.data, torch.device("cpu"), seed=0, rank=0, world_size=1)
    first, right, count = None, 0, 0
    with torch.no_grad():
        for x, y in feed.evaluation("test"):
            first = x[:IMAGES] if first is None else first
            right += int((model(x).argmax(1) == y).sum())
            count += len(y)
        assert first is not None
        return first, model(first), 100 * right / count


def check(kind: str, python: str, file: Path, x: torch.Tensor, expected: np.ndarray) -> tuple[float, str]:
    """(the largest difference of what another Python answers with the file; the packages that it has)."""
    inputs, outputs = file.with_suffix(".in"), file.with_suffix(".out")
    x.numpy().tofile(inputs)
    reader = (HERE / f"read_{kind}.py").resolve()
    command = [python, "-I", str(reader), str(file), str(inputs), str(outputs), *map(str, x.shape)]
    subprocess.run(command, check=True, cwd=file.parent)
    listed = (
        "import importlib.metadata as m; found = {d.name: d.version for d in m.distributions()}; "
        "print(*(f'{name} {found[name]}' for name in sorted(found)), sep='; ')"
    )
    installed = subprocess.run([python, "-I", "-c", listed], check=True, capture_output=True, text=True).stdout.strip()
    found = np.fromfile(outputs, np.float32).reshape(expected.shape)
    return float(np.abs(found - expected).max()), installed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=HERE / "results")
    parser.add_argument("--work", type=Path, default=Path("runs/export"), help="where the run folders go")
    for kind in KINDS:
        parser.add_argument(f"--{kind}", default=sys.executable, metavar="PYTHON")
    arguments = parser.parse_args()
    plan = yamls.load(HERE / "small.yaml")
    rows = Rows(arguments.results / "runs.csv", COLUMNS, key=("case", "part", "format"))
    for number, (case, sections) in enumerate(plan["cases"].items()):
        pruned = plan["base"] | sections
        for part, config in (("whole", pruned | WHOLE), ("pruned", pruned)):
            if all(rows.has(case, part, kind) for kind in KINDS):
                continue
            folder = (arguments.work / f"{number}-{part}").resolve()
            trained(config, folder)
            x, y, accuracy = answers(folder / "run")
            for kind in KINDS:
                if rows.has(case, part, kind):
                    continue
                out = folder / f"network.{kind}"
                wrote = export.export(folder / "run", kind, out)
                loaded = export.load(folder / "run")
                expected = y.numpy()
                if kind == "safetensors" and config["model"]["name"] != "mlp":
                    tensors = loaded.model.state_dict()
                    expected = np.array([tensors[name].double().sum() for name in sorted(tensors)], np.float32)
                difference, installed = check(kind, getattr(arguments, kind), out, x, expected)
                row = {
                    "case": case, "part": part, "parameters": wrote.parameters, "format": kind, "bytes": wrote.bytes,
                    "largest_difference": f"{difference:.2g}", "test_accuracy": f"{accuracy:.2f}",
                    "widths": " ".join(map(str, loaded.about["widths"].values())), "installed": installed,
                }  # fmt: skip
                rows.append(row)
                print(row, flush=True)


if __name__ == "__main__":
    main()
