"""What a run ends with: the JSON object and the table."""

import math
import time
from pathlib import Path
from typing import Any, Final

from rich import box
from rich.table import Table

from hpc.config.folder import RECORD
from hpc.engine import Engine
from hpc.progress import duration

_WHY: Final = {
    "early_stopping": ", the validation loss stopped improving",
    "diverged": ", the training loss was not finite any more",
    "pruned": ", pruned and fine-tuned",
    "signal": " by a signal; run the same command again to go on",
}
_PHASES: Final = {"pruning": "pruning", "fine_tuning": "fine-tuning"}


def summarise(engine: Engine, state: str) -> dict[str, Any]:
    """The JSON object of ``--json``, and the status."""
    parts, answer = engine.parts, engine.record.answer()
    rows, single = engine.record["exchange"].columns, engine.record["ranks"].columns["test_accuracy"]
    summary = {
        "run_dir": parts.config.run_dir,
        "state": state,
        "ended_by": engine.place.ended_by or "signal",
        "epochs": engine.place.epoch,
        **({"phase": phase} if (phase := engine.record.structure.phase) else {}),
        "steps": engine.place.step,
        "parameters": answer.get("parameters", sum(parameter.numel() for parameter in parts.model.parameters())),
        **{key: _number(answer.get(key)) for key in ("test_accuracy", "test_loss", "valid_accuracy")},
        **({"answer_epoch": engine.record.answer_epoch} if engine.record.answer_epoch else {}),
        **({"rank_accuracies": [_number(accuracy) for accuracy in single]} if single else {}),
        "seconds": round(engine.place.seconds, 3),
        "world_size": len(rows["rank"]),
        "exchange": {key: sum(rows[key]) for key in ("sent", "received", "skipped", "mass")},
    }
    if parts.comm.rank == 0:
        elsewhere = {"state", "run_dir", "epochs", "steps"}
        about = {key: value for key, value in summary.items() if key not in elsewhere}
        parts.heartbeat.status(state, heartbeat=time.time(), epoch=engine.place.epoch, step=engine.place.step, **about)
    return summary


def _number(value: float | None) -> float | None:
    """JSON knows no nan."""
    return value if value is not None and math.isfinite(value) else None


def closing_table(summary: dict[str, Any]) -> Table:
    """The table that a run ends with."""
    run_dir = Path(summary["run_dir"])
    rows = {
        "state": f"{summary['state']}{_WHY.get(summary['ended_by'], '')}",
        "epochs": f"{summary['epochs']} ({summary['steps']:,} steps in {duration(summary['seconds'])})",
        "phase": _PHASES.get(summary.get("phase", "")),
        "answer": f"the network of epoch {summary['answer_epoch']}" if "answer_epoch" in summary else None,
        "ranks": f"{summary['world_size']}",
        "parameters": f"{summary['parameters']:,}",
        "valid accuracy": _percent(summary["valid_accuracy"]),
        "test accuracy": _percent(summary["test_accuracy"]),
        "of single ranks": _single(summary.get("rank_accuracies", [])),
        "test loss": None if summary["test_loss"] is None else f"{summary['test_loss']:.4f}",
        "record": str(run_dir / RECORD),
    }
    table = Table(box=box.SIMPLE, show_header=False, pad_edge=False)
    for name, value in rows.items():
        if value is not None:
            table.add_row(name, value)
    return table


def _single(accuracies: list[float | None]) -> str | None:
    """The best and the mean of what the ranks' own networks reach."""
    known = [accuracy for accuracy in accuracies if accuracy is not None]
    return f"best {_percent(max(known))}, mean {_percent(sum(known) / len(known))}" if known else None


def _percent(share: float | None) -> str | None:
    return None if share is None else f"{100 * share:.2f} %"
