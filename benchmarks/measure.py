"""Two things measured side by side: interleaved, medians and spread, printed and written to a dated file."""

import datetime as dt
import os
import platform
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch

RESULTS = Path(__file__).parent / "results"


def interleave(sides: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Call each side once a round, in turn; each returns its own measure (seconds, say). The order alternates."""
    found: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(rounds):
        names = list(sides) if number % 2 == 0 else list(reversed(sides))
        for name in names:
            found[name].append(sides[name]())
    return found


def spread(values: Sequence[float]) -> str:
    """Median, and the quartiles beside it."""
    low, middle, high = statistics.quantiles(values, n=4)
    return f"{middle:.4g} [{low:.4g}, {high:.4g}]"


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> str:
    """The median of the ratios of each round, with quartiles: what is common to a round cancels."""
    return spread([a / b for a, b in zip(ours, theirs, strict=True)])


def publish(name: str, title: str, lines: Sequence[str]) -> None:
    """Print a table and write it to ``results/NAME-DATE.md`` with the machine it was measured on."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    machine = (
        f"{_processor()}, {len(os.sched_getaffinity(0))} cores, {torch.get_num_threads()} thread(s), {gpu}; "
        f"torch {torch.__version__}, Python {platform.python_version()}"
    )
    text = "\n".join([f"# {title}", "", machine, "", *lines, ""])
    print(text)
    RESULTS.mkdir(exist_ok=True)
    today = dt.datetime.now(tz=dt.UTC).date().isoformat()
    (RESULTS / f"{name}-{today}.md").write_text(text)


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()
