"""The errors a user is meant to read: one message, no traceback, an exit code."""

from collections.abc import Sequence
from typing import Final

LOST: Final = "another rank, or the network to it, is gone"
"""How the message of a rank begins that was told so by MPI, which does not say which one."""


class RunError(Exception):
    """Something the user can mend. The message says what was got, what is allowed and what to do."""

    exit_code = 1


class ConfigError(RunError):
    """A bad configuration or usage, found before any rank started."""

    exit_code = 2

    def __init__(self, problems: str | Sequence[str]) -> None:
        self.problems = (problems,) if isinstance(problems, str) else tuple(problems)
        super().__init__("\n".join(self.problems))


class RankTimeoutError(RunError):
    """Another rank did not come in time. Exit code 75 where a checkpoint makes the run resumable."""

    exit_code = 75
