"""Are two runs bit-identical? Their last checkpoints and their records, all but the measured times.

python identical.py RUN_DIR OTHER_RUN_DIR
"""

import json
import sys
from pathlib import Path
from typing import Any

import h5py

TIMES = {"seconds", "seconds_blocked"}


def last_checkpoint(run_dir: Path) -> Path:
    return max((run_dir / "checkpoints").glob("step-*/manifest.json")).parent


def datasets(path: Path) -> dict[str, Any]:
    """Every dataset's bytes, shape and type by name; the skeleton without its times."""
    found: dict[str, Any] = {}

    def visit(name: str, item: Any) -> None:
        if not isinstance(item, h5py.Dataset) or name.rsplit("/", maxsplit=1)[-1] in TIMES or "profile/" in name:
            return
        if name == "skeleton":
            found[name] = without_times(json.loads(item[()].tobytes()))
        else:
            found[name] = (item.shape, item.dtype, item[()].tobytes())

    with h5py.File(path, "r") as file:
        file.visititems(visit)
    return found


def without_times(skeleton: Any) -> Any:
    if isinstance(skeleton, dict):
        if "dict" in skeleton:
            return {"dict": [[key, without_times(inner)] for key, inner in skeleton["dict"] if key not in TIMES]}
        return {key: without_times(inner) for key, inner in skeleton.items()}
    return [without_times(inner) for inner in skeleton] if isinstance(skeleton, list) else skeleton


def differences(one: Path, other: Path) -> list[str]:
    """What differs, by name; empty when the runs are bit-identical."""
    first, second = last_checkpoint(one), last_checkpoint(other)
    if first.name != second.name:
        return [f"{first.name} against {second.name}"]
    pairs = [(path, second / path.name) for path in sorted(first.glob("*.h5"))]
    found = []
    for path, twin in [*pairs, (one / "record.h5", other / "record.h5")]:
        a, b = datasets(path), datasets(twin)
        assert a, f"{path} holds nothing to compare"
        found += [f"{path.name}: {name}" for name in sorted(a.keys() | b.keys()) if a.get(name) != b.get(name)]
    return found


if __name__ == "__main__":
    differing = differences(Path(sys.argv[1]), Path(sys.argv[2]))
    print("\n".join(differing) or "identical")
    sys.exit(bool(differing))
