"""How a run shows itself: a bar on a terminal, plain lines elsewhere."""

import math
import os
import sys
import time
from typing import Final, Protocol, TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

TERMINAL: Final = "STRUCTLEARN_TERMINAL"
"""Set by the launcher to the width of the terminal that the ranks' output ends on, or to 0 where it ends on none.

The ranks cannot see: MPICH gives them a pipe in front of a terminal, Open MPI a terminal of its own in front of a file.
"""

LINE_EVERY_S: Final = 30.0
BAR_EVERY_S: Final = 0.3


class Shown(Protocol):
    """What the engine tells the user. Only rank 0 shows anything."""

    def due(self) -> bool:
        """Is it time to show the step? Asking is cheap; the loss of a step is only fetched when it is."""
        ...

    def step(self, epoch: int, step: int, loss: float) -> None:
        """Show a step: epoch from 1, step of the run, its loss."""
        ...

    def epoch(self, line: str, epoch: int, step: int) -> None:
        """Show the line of a finished epoch."""
        ...

    def tell(self, text: str) -> None:
        """Show a sentence the user should read."""
        ...

    def close(self) -> None:
        """Leave the terminal as it was."""
        ...


class Silent:
    """Shows nothing: the other ranks."""

    def due(self) -> bool:
        """Never."""
        return False

    def step(self, epoch: int, step: int, loss: float) -> None:
        """Nothing."""

    def epoch(self, line: str, epoch: int, step: int) -> None:
        """Nothing."""

    def tell(self, text: str) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


class Rate:
    """Samples a second and time left, over the steps since the last reading."""

    def __init__(self, steps: int, samples_per_step: int, first_step: int) -> None:
        self._steps, self._samples, self._first = steps, samples_per_step, first_step
        self._start = self._last_time = time.monotonic()
        self._last_step = first_step
        self._rate = 0.0

    def read(self, step: int) -> tuple[float, float]:
        """(samples per second lately, seconds left at the pace so far)."""
        now = time.monotonic()
        if step > self._last_step and now > self._last_time:
            self._rate = (step - self._last_step) * self._samples / (now - self._last_time)
            self._last_time, self._last_step = now, step
        pace = (now - self._start) / max(step - self._first, 1)
        return self._rate, pace * (self._steps - step)


class Lines:
    """One line an epoch, and one every so often within a long one."""

    def __init__(self, out: TextIO, rate: Rate, epochs: int) -> None:
        self._out, self._rate, self._epochs = out, rate, epochs
        self._next = time.monotonic() + LINE_EVERY_S

    def due(self) -> bool:
        """Every half minute."""
        return time.monotonic() >= self._next

    def step(self, epoch: int, step: int, loss: float) -> None:
        """A line with the step's loss."""
        rate, left = self._rate.read(step)
        self.tell(
            f"epoch {epoch}/{self._epochs}  step {step}  loss {loss:.4f}  {rate:,.0f} samples/s  {duration(left)} left"
        )

    def epoch(self, line: str, epoch: int, step: int) -> None:
        """The epoch's line."""
        _, left = self._rate.read(step)
        self.tell(f"{line}  {duration(left)} left" if epoch < self._epochs else line)

    def tell(self, text: str) -> None:
        """Print a line now."""
        print(text, file=self._out, flush=True)
        self._next = time.monotonic() + LINE_EVERY_S

    def close(self) -> None:
        """Nothing to put back."""


class Bar:
    """A progress bar over all steps of the run; finished epochs scroll away above it."""

    def __init__(self, console: Console, rate: Rate, epochs: int, steps: int, first_step: int) -> None:
        self._rate, self._epochs = rate, epochs
        self._progress = Progress(
            TextColumn("epoch {task.fields[epoch]}/{task.fields[epochs]}"),
            BarColumn(bar_width=None),
            TextColumn("{task.percentage:>3.0f}%"),
            TextColumn("step {task.completed:.0f}"),
            TextColumn("loss {task.fields[loss]}"),
            TextColumn("{task.fields[rate]} samples/s"),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]} left"),
            console=console,
            transient=True,
            auto_refresh=False,  # no thread beside the training: the loop refreshes
        )
        self._task: TaskID = self._progress.add_task(
            "", total=steps, completed=first_step, epoch=1, epochs=epochs, loss="-", rate="-", left="-"
        )
        self._progress.start()
        self._next = 0.0

    def due(self) -> bool:
        """A few times a second."""
        return time.monotonic() >= self._next

    def step(self, epoch: int, step: int, loss: float) -> None:
        """Move the bar."""
        rate, left = self._rate.read(step)
        self._progress.update(
            self._task,
            completed=step,
            epoch=epoch,
            loss=f"{loss:.4f}",
            rate=f"{rate:,.0f}",
            left=duration(left),
        )
        self._progress.refresh()
        self._next = time.monotonic() + BAR_EVERY_S

    def epoch(self, line: str, epoch: int, step: int) -> None:
        """The epoch's line, above the bar."""
        self.tell(line)

    def tell(self, text: str) -> None:
        """A line above the bar."""
        self._progress.console.print(text, highlight=False, markup=False, emoji=False)

    def close(self) -> None:
        """Take the bar away."""
        self._progress.stop()


def show(style: str, *, epochs: int, steps: int, first_step: int, samples_per_step: int, out: TextIO) -> Shown:
    """What a run's rank 0 shows.

    Args:
        style: auto (a bar on a terminal, lines elsewhere), bar, plain or none.
        epochs: of the run.
        steps: of the run.
        first_step: steps done before.
        samples_per_step: of all ranks together.
        out: where to.
    """
    width = os.environ.get(TERMINAL, "")
    on_terminal = width != "0" if width else out.isatty()
    rate = Rate(steps, samples_per_step, first_step)
    if style == "none":
        return Silent()
    if style == "bar" or (style == "auto" and on_terminal):
        console = Console(file=out, force_terminal=True, width=(int(width) or None) if width.isdigit() else None)
        return Bar(console, rate, epochs, steps, first_step)
    return Lines(out, rate, epochs)


def duration(seconds: float) -> str:
    """Seconds as a person writes them: 45 s, 3:20, 2:05:09."""
    if not math.isfinite(seconds):
        return "?"
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    hours, rest = divmod(whole, 3600)
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d}" if hours else f"{rest // 60}:{rest % 60:02d}"


def stream(json_on_stdout: bool) -> TextIO:
    """Where people read: standard output, unless that is kept for JSON."""
    return sys.stderr if json_on_stdout else sys.stdout
