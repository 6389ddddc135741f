"""Commands of SLURM that are a few lines of shell each: for what a real one does not produce on demand."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

CONFIG = "Configuration data as of 2026-11-22T12:00:00\nMaxArraySize            = {limit}\nMaxJobCount = 10000\n"


class FakeSlurm:
    """Puts commands on the PATH; every call of them is written down.

    Args:
        path: a folder that is on the PATH.
    """

    def __init__(self, path: Path) -> None:
        self._path, self.calls = path, path / "calls"

    def __call__(self, **scripts: str) -> None:
        """Make commands, or replace them."""
        for name, script in scripts.items():
            file = self._path / name
            file.write_text(f'#!/bin/sh\necho "{name} $*" >> {self.calls}\n{script}\n')
            file.chmod(0o755)

    def called(self, name: str) -> list[str]:
        """The calls of a command, as they were written."""
        lines = self.calls.read_text().splitlines() if self.calls.exists() else []
        return [line for line in lines if line.startswith(f"{name} ")]


def slurm_config(limit: int) -> str:
    """A scontrol that knows the largest array."""
    return f"cat <<'E'\n{CONFIG.format(limit=limit)}E"
