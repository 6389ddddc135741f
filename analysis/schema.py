"""What a run's record must hold, as this reader understands it.

The writer states the same on its side. The two are kept apart on purpose: a record written last year must
be readable without the program that wrote it, and a change on one side alone is a mistake to be found.

A run folder holds `config.yaml`, `status.json`, `record.h5`, `checkpoints/` and `logs/`; the reader needs
only `record.h5`. A collected file is laid out like a sweep's folder: `ID/record.h5` is then a group, and the
other files of a run are texts, an element a line. Columns and groups that are not named here are additions of a
later writer under the same version: they are left alone.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final, Literal

Kind = Literal["integer", "float"]

RECORD: Final = "record.h5"
STATUS: Final = "status.json"
VERSIONS: Final = (1,)
COLLECTED: Final = "collected_version"
"""The attribute by which a file is known that holds the records of many runs; its values are COLLECTED_VERSIONS."""
COLLECTED_VERSIONS: Final = (1,)
STATES: Final = ("running", "done", "stopped", "failed")
ENDINGS: Final = ("", "epochs", "early_stopping", "diverged", "pruned", "signal")
PHASES: Final = ("data", "forward", "backward", "optimizer", "exchange", "evaluate", "checkpoint")

ATTRIBUTES: Final[dict[str, type[int | str]]] = {
    "schema_version": int,
    "run_id": str,
    "config": str,  # YAML, resolved
    "versions": str,  # JSON
    "world_size": int,
    "state": str,
    "ended_by": str,
}

ANSWER: Final = "answer_epoch"
"""An attribute that older records have not: the epoch whose network the run answers with; 0 before the first."""

REQUIRED: Final[dict[str, dict[str, Kind]]] = {
    "epochs": {
        "epoch": "integer",  # from 1, increasing
        "step": "integer",
        "seconds": "float",  # training seconds since the start, over all resumptions
        "train_loss": "float",
        "valid_loss": "float",
        "valid_accuracy": "float",  # not a number where there is none: regression
        "test_loss": "float",
        "test_accuracy": "float",
        "parameters": "integer",
        "lr": "float",
    },
    "exchange": {  # one row a rank
        "rank": "integer",
        "sent": "integer",
        "received": "integer",
        "skipped": "integer",
        "bytes_sent": "integer",
        "mass": "float",
        "seconds_blocked": "float",
    },
    "profile": dict.fromkeys(PHASES, "float"),  # one row an epoch: seconds on rank 0
}

OPTIONAL: Final[dict[str, dict[str, Kind]]] = {
    "steps": {"step": "integer", "loss": "float"},
    "consensus": {"step": "integer", "error": "float"},
    "ranks": {  # the ranks' own networks, at the end
        "rank": "integer",
        "valid_loss": "float",
        "valid_accuracy": "float",
        "test_loss": "float",
        "test_accuracy": "float",
    },
    "resized": {"step": "integer", "ranks_before": "integer", "ranks": "integer"},
    "lost": {"step": "integer", "rank": "integer", "survivors": "integer", "mass": "float", "seconds": "float"},
}

# Groups that are no set of columns; `read.py` takes them apart.
#   /structure  widths [epochs, layers] integer, layers [layers] text; phase, digest [epochs] text, floor [epochs]
#               integer
#   /alrao      posterior [records, K] float; step, heads_lost, units_lost [records] integer; rates/LAYER [units] float

DTYPES: Final[dict[Kind, tuple[str, str]]] = {"integer": ("iu", "int64"), "float": ("f", "float64")}
"""For each kind: the numpy kinds that a file may hold, and the type that frames hold."""


class RecordError(ValueError):
    """A record that cannot be read: says which file, what was got, what is allowed, and what to do."""

    def __init__(self, path: Path | str, got: str, allowed: str, advice: str) -> None:
        super().__init__(f"{path}: {got}; allowed: {allowed}; {advice}")
        self.path = Path(path)
        self.got = got
        self.allowed = allowed
        self.advice = advice
