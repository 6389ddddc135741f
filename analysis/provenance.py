"""Which runs a table or figure was made from, and with what: the way back from a number to its run."""

from __future__ import annotations

import hashlib
import json
import platform
from importlib import metadata
from typing import TYPE_CHECKING, Any

import yaml

from analysis.schema import VERSIONS

if TYPE_CHECKING:
    from pathlib import Path

    from analysis.load import Records

_TOOLS = ("structlearn", "h5py", "numpy", "pandas", "matplotlib", "jinja2")


def provenance(records: Records) -> dict[str, Any]:
    """Run ids, hashes of files and configs, and versions; nothing that changes from one call to the next."""
    return {
        "source": records.name,
        "runs": [_run(dict(zip(records.sources.columns, row, strict=True))) for row in _rows(records)],
        "problems": [str(problem) for problem in records.problems],
        "reader": {"schema_versions": list(VERSIONS), "tools": tools()},
    }


def write_provenance(records: Records, file: Path) -> Path:
    """Writes the provenance as JSON."""
    text = json.dumps(provenance(records), indent=2, sort_keys=True, ensure_ascii=False)
    file.write_text(text + "\n", encoding="utf-8", newline="\n")
    return file


def tools() -> dict[str, str]:
    """The versions of what reads and draws here."""
    found = {"python": platform.python_version()}
    for name in _TOOLS:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:  # from a source tree, without an installation
            continue
    return found


def _rows(records: Records) -> list[tuple[Any, ...]]:
    return list(records.sources.itertuples(index=False, name=None))


def _run(source: dict[str, Any]) -> dict[str, Any]:
    """One run's entry. `settings_sha256` is the same for runs that differ in seed and folder only."""
    config = yaml.safe_load(source["config"])
    same = {key: value for key, value in config.items() if key not in ("seed", "run_dir")}
    return {
        "run": source["run"],
        "run_id": source["run_id"],
        "file": source["file"],
        "bytes": int(source["bytes"]),
        "sha256": source["sha256"],
        "config_sha256": _hash(source["config"]),
        "settings_sha256": _hash(json.dumps(same, sort_keys=True, default=str)),
        "versions": json.loads(source["versions"]),
    }


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8")).hexdigest()
