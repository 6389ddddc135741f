"""The errors a user is meant to read: one message, no traceback, an exit code."""

from collections.abc import Sequence


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
