"""Telling a person how far things are: bars on a terminal, plain lines in a log, nothing when quiet.

Everything goes to stderr; stdout belongs to results.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import Any, Protocol, TextIO, cast

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

_PLAIN_INTERVAL = 10.0  # seconds between two lines of the same stage in a log


class Stage(Protocol):
    """One piece of work with a known size."""

    def update(self, done: int, figures: str = "", share: float | None = None) -> None:
        """Say how far it is.

        Args:
            done: How many units are done in all.
            figures: What is shown beside them.
            share: How much of the work that is, 0 to 1, where units are not alike: the time left comes from it.
        """


class Reporter(Protocol):
    """Where progress goes."""

    def say(self, text: str) -> None:
        """One line that stays."""

    def stage(self, name: str, total: int) -> AbstractContextManager[Stage]:
        """A piece of work of `total` units."""


class SilentReporter:
    """Says nothing."""

    def say(self, text: str) -> None:
        """Nothing."""

    @contextmanager
    def stage(self, name: str, total: int) -> Iterator[Stage]:
        """A stage nobody sees."""
        yield _SilentStage()


class _SilentStage:
    def update(self, done: int, figures: str = "", share: float | None = None) -> None:
        pass


class PlainReporter:
    """Whole lines with the time left, for pipes and log files."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def say(self, text: str) -> None:
        """One line; none any more once nobody reads them, which is no reason to stop working."""
        with suppress(OSError):
            print(text, file=self._stream, flush=True)

    @contextmanager
    def stage(self, name: str, total: int) -> Iterator[Stage]:
        """Lines `name 12/20, 0:34 elapsed, 0:20 left, figures`, every ten seconds and at the end."""
        stage = _PlainStage(self, name, total)
        yield stage
        stage.close()


class _PlainStage:
    def __init__(self, reporter: PlainReporter, name: str, total: int) -> None:
        self._reporter, self._name, self._total = reporter, name, total
        self._started = self._spoken = time.monotonic()
        self._first: float | None = None
        self._share = 0.0
        self._last: tuple[int, str] = (0, "")
        self._said: tuple[int, str] | None = None

    def update(self, done: int, figures: str = "", share: float | None = None) -> None:
        self._share = done / max(self._total, 1) if share is None else share
        if self._first is None:
            # A resumed stage does not begin at zero.
            self._first = max(done - 1, 0) / max(self._total, 1) if share is None else share
        self._last = (done, figures)
        if time.monotonic() - self._spoken >= _PLAIN_INTERVAL:
            self._speak()

    def close(self) -> None:
        if self._said != self._last:
            self._speak()

    def _speak(self) -> None:
        self._spoken = now = time.monotonic()
        self._said = done, figures = self._last
        elapsed = now - self._started
        line = f"{self._name} {done}/{self._total}, {_clock(elapsed)} elapsed"
        gained = self._share - (self._first or 0)
        if gained > 0 and done < self._total:
            line += f", {_clock(elapsed / gained * (1 - self._share))} left"
        self._reporter.say(line + (f", {figures}" if figures else ""))


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


class RichReporter:
    """A bar a stage, with elapsed time and time left; stages that overlap stand below each other."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._progress: Progress | None = None
        self._open = 0

    def say(self, text: str) -> None:
        """One line above the bars."""
        self._console.print(text, highlight=False, markup=False)

    @contextmanager
    def stage(self, name: str, total: int) -> Iterator[Stage]:
        """A progress bar that stays when it is full."""
        # A terminal holds one live display: stages that are open together share it.
        if self._progress is None:
            self._progress = Progress(*_columns(), console=self._console)
            self._progress.start()
        progress = self._progress
        self._open += 1
        try:
            task = progress.add_task(name, total=1.0, count=f"0/{total}", figures="")
            yield _RichStage(progress, task, total)
        finally:
            self._open -= 1
            if not self._open:
                progress.stop()
                self._progress = None


def _columns() -> tuple[ProgressColumn, ...]:
    return (
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        TextColumn("{task.fields[count]}", style="progress.download"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[figures]}", markup=False),
    )


class _RichStage:
    def __init__(self, progress: Progress, task: TaskID, total: int) -> None:
        self._progress, self._task, self._total = progress, task, total

    def update(self, done: int, figures: str = "", share: float | None = None) -> None:
        share = done / max(self._total, 1) if share is None else share
        self._progress.update(self._task, completed=share, count=f"{done}/{self._total}", figures=figures)


def make_reporter(*, quiet: bool = False, stream: TextIO | None = None) -> Reporter:
    """Bars where a person looks at a terminal, lines elsewhere, silence when asked for."""
    if quiet:
        return SilentReporter()
    stream = stream or sys.stderr
    if stream is None:  # closed by whoever started this program
        return SilentReporter()
    if stream.isatty():
        return RichReporter(Console(file=cast("TextIO", _Lasting(stream))))
    return PlainReporter(stream)


class _Lasting:
    """A terminal that drops what it does not take once it is closed."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        with suppress(OSError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError):
            self._stream.flush()
