"""Output that may be gone: closed, full, or without a reader. None of that is a reason to end a run."""

import contextlib
import os
import sys
from pathlib import Path
from typing import TextIO


def stream(json_on_stdout: bool) -> TextIO | None:
    """Where people read: standard output, unless that is kept for JSON; None where it was closed from the start."""
    return sys.stderr if json_on_stdout else sys.stdout


def say(text: str, out: TextIO | None) -> None:
    """Print a line now, to whoever can still read it.

    A reader that has gone (``| head``), a full disk, an output that was closed: none of them is a reason to end a
    run. After the first failure the output leads nowhere.
    """
    if out is not None:
        _write(f"{text}\n", out)


class Unfailing:
    """As much of a file as rich needs, which can be written to whatever becomes of the output behind it."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self.encoding = out.encoding

    def write(self, text: str) -> None:
        """Write a text now."""
        _write(text, self._out)

    def flush(self) -> None:
        """Nothing is held back."""

    def isatty(self) -> bool:
        """The output's own."""
        return self._out.isatty()


def _write(text: str, out: TextIO) -> None:
    try:
        out.write(text)
        out.flush()
    except UnicodeEncodeError:  # the name of a folder, perhaps
        _write(text.encode(out.encoding, "backslashreplace").decode(out.encoding), out)
    except BlockingIOError:
        pass  # a terminal that is busy: this text is lost, the next may not be
    except (OSError, ValueError):  # ValueError: Python's own word for a file that was closed
        lead_nowhere(out)


def lead_nowhere(out: TextIO) -> None:
    """Send what an output still holds, and all that follows, to nobody.

    Python writes out the rest of its buffers at the end of the program: that would fail again, and make the exit
    code 120.
    """
    with contextlib.suppress(OSError, ValueError), Path(os.devnull).open("wb") as nowhere:
        os.dup2(nowhere.fileno(), out.fileno())
