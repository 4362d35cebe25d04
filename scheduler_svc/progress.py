"""Progress of slow starts, on stderr: a bar where it is a terminal, plain lines otherwise, nothing when quiet;
where the log is JSON, lines of the log.

A `Progress` is told a stage and a fraction; a new stage begins a new bar. It knows nothing of what is loading.
"""

import logging
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, TextIO

from pagewire.wire.log_lines import LogFormat

if TYPE_CHECKING:
    from rich.progress import Progress as RichBars
    from rich.progress import TaskID

_log = logging.getLogger(__name__)
_PLAIN_INTERVAL_S = 5.0


class Progress(Protocol):
    """Shows how far a start is."""

    def report(self, stage: str, fraction: float) -> None:
        """Say how much of `stage` is done, 0 … 1."""

    def close(self) -> None:
        """End the display; a later report begins it anew."""


class QuietProgress:
    """Shows nothing."""

    def report(self, stage: str, fraction: float) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


class PlainProgress:
    """A line when a stage begins, one every few seconds while it lasts, and one when it is done."""

    def __init__(self, out: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        self._out = out
        self._clock = clock
        self._stage = ""
        self._next_line_s = 0.0

    def report(self, stage: str, fraction: float) -> None:
        """Print a line where one is due."""
        now = self._clock()
        begins = stage != self._stage
        done = fraction >= 1
        if begins and done:
            self._stage = ""
            self._line(f"{stage}: done")
        elif begins or now >= self._next_line_s or done:
            self._stage = "" if done else stage
            self._next_line_s = now + _PLAIN_INTERVAL_S
            self._line(f"{stage}: {'done' if done else f'{fraction:.0%}'}")

    def close(self) -> None:
        """Forget the stage."""
        self._stage = ""

    def _line(self, text: str) -> None:
        with suppress(OSError):  # nobody watches any more, or the disk is full: no reason to end a start
            print(text, file=self._out, flush=True)


class LoggedProgress(PlainProgress):
    """The same lines in the log."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(sys.stderr, clock)

    def _line(self, text: str) -> None:
        _log.info("%s", text)


class BarProgress:
    """A rich progress bar per stage; imports rich when the first is shown."""

    def __init__(self) -> None:
        self._bars: RichBars | None = None
        self._tasks: dict[str, TaskID] = {}

    def report(self, stage: str, fraction: float) -> None:
        """Move the stage's bar."""
        if self._bars is None:
            from rich.console import Console
            from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn
            from rich.progress import Progress as RichBars

            self._bars = RichBars(
                TextColumn("{task.description}"),
                BarColumn(),
                TaskProgressColumn(),
                TimeElapsedColumn(),
                console=Console(stderr=True),
                transient=True,
            )
            with suppress(OSError):  # a terminal that was hung up
                self._bars.start()
        if stage not in self._tasks:
            self._tasks[stage] = self._bars.add_task(stage, total=1.0)
        self._bars.update(self._tasks[stage], completed=min(1.0, fraction))

    def close(self) -> None:
        """Take the bars off the screen."""
        if self._bars is not None:
            with suppress(OSError):
                self._bars.stop()
            self._bars = None
            self._tasks = {}


class closing_progress(AbstractContextManager[Progress]):
    """Closes a progress display however the block ends."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress

    def __enter__(self) -> Progress:
        return self._progress

    def __exit__(self, *args: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._progress.close()


def make_progress(quiet: bool, log_format: LogFormat = "text") -> Progress:
    """Choose the display that suits stderr."""
    if quiet or sys.stderr is None:
        return QuietProgress()
    if log_format == "json":
        return LoggedProgress()
    return BarProgress() if sys.stderr.isatty() else PlainProgress(sys.stderr)
