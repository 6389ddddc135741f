"""``structlearn doctor``: ask this machine everything at once, and print what it said."""

import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Final

from rich.console import Console
from rich.table import Table
from rich.text import Text

from jobs import machine, site
from jobs.machine import Finding
from jobs.resources import Resources
from jobs.trial import trial

CHECKS: Final[dict[str, Callable[[], Iterator[Finding]]]] = {**machine.CHECKS, "slurm": site.slurm}
DEADLINE_S: Final = 100.0
"""For the whole examination; each question has a shorter one of its own."""


def doctor(*, as_json: bool, job: Resources | None = None, wait_s: float = 0.0) -> int:
    """Examine this machine and print what was found.

    Args:
        as_json: print one JSON object instead of a table.
        job: also make a test job of these resources; None: do not.
        wait_s: how long to wait for it.

    Returns:
        The exit code: 0 where one rank can train here, and the test job went well, else 1.
    """
    findings = examine()
    works = any(found.what == "training" and found.status == "ok" for found in findings)
    if not as_json:
        _show(findings)
        _say("One rank can train here." if works else "Training does not work here: see above what to do.")
    if job:
        tried = trial(job, wait_s)
        bad = any(found.status == "fail" for found in tried)
        works = works and not bad
        findings += tried
        if not as_json:
            _show(tried)
            _say("The test job has failed: see above what to do." if bad else "The test job worked.")
    if as_json:
        print(json.dumps({"works": works, "checks": [asdict(found) for found in findings]}))  # noqa: T201 - the answer
    return 0 if works else 1


def examine() -> list[Finding]:
    """All checks side by side, in the order of the table. Not one of them can hold up the answer."""
    answers: dict[str, list[Finding]] = {}

    def answer(what: str, check: Callable[[], Iterator[Finding]]) -> None:
        try:
            answers[what] = list(check())
        except Exception as error:  # noqa: BLE001 - the other checks are still worth reading
            answers[what] = [Finding(what, "fail", f"the check itself failed: {type(error).__name__}: {error}")]

    # Daemons: a thread that hangs on a dead file server does not keep the program from ending.
    threads = [threading.Thread(target=answer, args=pair, daemon=True) for pair in CHECKS.items()]
    until = time.monotonic() + DEADLINE_S
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0.0, until - time.monotonic()))
    silent = f"no answer within {DEADLINE_S:g} s"
    return [
        found
        for what in CHECKS
        for found in answers.get(what, [Finding(what, "fail", silent, "look for a disk or server that hangs")])
    ]


def _show(findings: list[Finding]) -> None:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("check", "", "finding", "what to do"):
        table.add_column(title, overflow="fold")
    styles = {"ok": "green", "warn": "yellow", "fail": "bold red"}
    for found in findings:
        table.add_row(found.what, Text(found.status, styles[found.status]), Text(found.finding), Text(found.remedy))
    _console().print(table)


def _say(text: str) -> None:
    _console().print(f"\n{text}")


def _console() -> Console:
    return Console(width=None if sys.stdout.isatty() else 120, highlight=False)
