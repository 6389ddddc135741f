"""How a run shows itself: a bar on a terminal, plain lines elsewhere. Output that nobody can read ends no run."""

import math
import os
import time
from typing import Final, Protocol, TextIO, cast

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from hpc.output import Unfailing, say

TERMINAL: Final = "STRUCTLEARN_TERMINAL"
"""Set by the launcher to the width of the terminal that the ranks' output ends on, or to 0 where it ends on none.

The ranks cannot see: MPICH gives them a pipe in front of a terminal, Open MPI a terminal of its own in front of a file.
"""

LINE_EVERY_S: Final = 30.0
BAR_EVERY_S: Final = 0.3
EPOCHS_SHOWN: Final = 50
"""So many epochs have their line however short they are; after them, one ..."""
EPOCH_EVERY_S: Final = 1.0
"""... in so many seconds."""
STEPS_TO_SAY: Final = 10
"""A pace is of at least so many steps, or ..."""
SECONDS_TO_SAY: Final = 10.0
"""... of one or more in so many seconds."""
STEP_COLUMN_FROM: Final = 100
"""Characters from which on the bar has room for the number of the step."""


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
    """Samples a second and time left, over the steps since the last reading; nan until there is enough to say.

    A first reading after a few steps only starts the clock again: loading libraries and choosing kernels made these
    steps many times slower than those to come.
    """

    def __init__(self, steps: int, samples_per_step: int, first_step: int) -> None:
        self._steps, self._samples = steps, samples_per_step
        self._start = self._last_time = time.monotonic()
        self._first = self._last_step = first_step
        self._read = False
        self._rate = math.nan

    def read(self, step: int) -> tuple[float, float]:
        """(samples per second lately, seconds left at the pace so far)."""
        now = time.monotonic()
        if not self._read and step > self._first:
            self._read = True
            if step - self._first < STEPS_TO_SAY:
                self._start = self._last_time = now
                self._first = self._last_step = step
        if step > self._last_step and now > self._last_time:
            self._rate = (step - self._last_step) * self._samples / (now - self._last_time)
            self._last_time, self._last_step = now, step
        steps, seconds = step - self._first, now - self._start
        enough = steps >= STEPS_TO_SAY or (steps > 0 and seconds >= SECONDS_TO_SAY)
        return self._rate, seconds / steps * (self._steps - step) if enough else math.nan


class Sparing:
    """Which lines of epochs are shown: all of a short run, one a second of a long run of short epochs.

    The last one withheld is kept, so that whatever is said next stands below the epoch it is about.
    """

    def __init__(self) -> None:
        self._shown, self._next, self._withheld = 0, 0.0, ""

    def offer(self, line: str) -> str:
        """The line if it is to be shown, or nothing."""
        now = time.monotonic()
        if self._shown >= EPOCHS_SHOWN and now < self._next:
            self._withheld = line
            return ""
        self._shown, self._next, self._withheld = self._shown + 1, now + EPOCH_EVERY_S, ""
        return line

    def rest(self) -> str:
        """The last line, if it was withheld, or nothing."""
        line, self._withheld = self._withheld, ""
        return line


class Lines:
    """One line an epoch (see :class:`Sparing`), and one every so often within a long one."""

    def __init__(self, out: TextIO, rate: Rate, epochs: int) -> None:
        self._out, self._rate, self._epochs = out, rate, epochs
        self._sparing = Sparing()
        self._next = time.monotonic() + LINE_EVERY_S

    def due(self) -> bool:
        """Every half minute."""
        return time.monotonic() >= self._next

    def step(self, epoch: int, step: int, loss: float) -> None:
        """A line with the step's loss."""
        rate, left = self._rate.read(step)
        line = f"epoch {epoch}/{self._epochs}  step {step}  loss {loss:.4f}"
        pace = "" if math.isnan(rate) else f"  {rate:,.0f} samples/s"
        self.tell(f"{line}{pace}{_left(left)}")

    def epoch(self, line: str, epoch: int, step: int) -> None:
        """The epoch's line."""
        _, left = self._rate.read(step)
        self._print(self._sparing.offer(f"{line}{_left(left)}" if epoch < self._epochs else line))

    def tell(self, text: str) -> None:
        """Print a line now."""
        self._print(self._sparing.rest())
        self._print(text)

    def close(self) -> None:
        """The last epoch's line, where it was withheld."""
        self._print(self._sparing.rest())

    def _print(self, text: str) -> None:
        if text:
            say(text, self._out)
            self._next = time.monotonic() + LINE_EVERY_S


class Bar:
    """A progress bar over all steps of the run; finished epochs scroll away above it."""

    def __init__(self, console: Console, rate: Rate, epochs: int, steps: int, first_step: int) -> None:
        self._rate, self._epochs = rate, epochs
        self._sparing = Sparing()
        number = [TextColumn("step {task.completed:.0f}")] if console.width >= STEP_COLUMN_FROM else []
        self._progress = Progress(
            TextColumn("epoch {task.fields[epoch]}/{task.fields[epochs]}"),
            BarColumn(bar_width=None),
            TextColumn("{task.percentage:>3.0f}%"),
            *number,
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
            rate="?" if math.isnan(rate) else f"{rate:,.0f}",
            left=duration(left),
        )
        self._progress.refresh()
        self._next = time.monotonic() + BAR_EVERY_S

    def epoch(self, line: str, epoch: int, step: int) -> None:
        """The epoch's line, above the bar."""
        self._print(self._sparing.offer(line))

    def tell(self, text: str) -> None:
        """A line above the bar."""
        self._print(self._sparing.rest())
        self._print(text)

    def close(self) -> None:
        """Take the bar away."""
        self._print(self._sparing.rest())
        self._progress.stop()

    def _print(self, text: str) -> None:
        if text:
            console = self._progress.console
            console.print(fold(text, console.width), highlight=False, markup=False, emoji=False)


def show(style: str, *, epochs: int, steps: int, first_step: int, samples_per_step: int, out: TextIO | None) -> Shown:
    """What a run's rank 0 shows.

    Args:
        style: auto (a bar on a terminal, lines elsewhere), bar, plain or none.
        epochs: of the run.
        steps: of the run.
        first_step: steps done before.
        samples_per_step: of all ranks together.
        out: where to; None where there is no such output.
    """
    if style == "none" or out is None:
        return Silent()
    width = os.environ.get(TERMINAL, "")
    theirs = "OMPI_COMM_WORLD_SIZE" in os.environ  # Open MPI's own launcher: what it shows the ranks says nothing
    on_terminal = width != "0" if width else out.isatty() and not theirs
    rate = Rate(steps, samples_per_step, first_step)
    if style == "bar" or (style == "auto" and on_terminal):
        file = cast("TextIO", Unfailing(out))  # rich would end the program over a closed pipe
        console = Console(file=file, force_terminal=True, width=(int(width) or None) if width.isdigit() else None)
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


def _left(seconds: float) -> str:
    """The end of a line: what is left, where that is known."""
    return "" if math.isnan(seconds) else f"  {duration(seconds)} left"


def fold(line: str, width: int) -> str:
    """A line cut into rows of a width, between its fields: two spaces stand there, and no number is torn."""
    first, *fields = line.split("  ")
    rows = [first]
    for field in fields:
        if len(rows[-1]) + 2 + len(field) <= width:
            rows[-1] += f"  {field}"
        else:
            rows.append(f"    {field}")
    return "\n".join(rows)
