"""Telling a person how far things are: bars on a terminal, plain lines in a log, nothing when quiet.

Everything goes to stderr; stdout belongs to results.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import Protocol, TextIO

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
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

    def update(self, done: int, figures: str = "") -> None:
        """Say how much is done in all, and what the figures are now."""


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
    def update(self, done: int, figures: str = "") -> None:
        pass


class PlainReporter:
    """Whole lines with the time left, for pipes and log files."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def say(self, text: str) -> None:
        """One line; none any more once nobody reads them, which is no reason to stop working."""
        with suppress(BrokenPipeError):
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
        self._first: int | None = None
        self._last: tuple[int, str] = (0, "")
        self._said: tuple[int, str] | None = None

    def update(self, done: int, figures: str = "") -> None:
        if self._first is None:
            self._first = max(done - 1, 0)  # a resumed stage does not begin at zero
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
        gained = done - (self._first or 0)
        if gained > 0 and done < self._total:
            line += f", {_clock(elapsed / gained * (self._total - done))} left"
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
            yield _RichStage(progress, progress.add_task(name, total=total, figures=""))
        finally:
            self._open -= 1
            if not self._open:
                progress.stop()
                self._progress = None


def _columns() -> tuple[ProgressColumn, ...]:
    return (
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[figures]}", markup=False),
    )


class _RichStage:
    def __init__(self, progress: Progress, task: TaskID) -> None:
        self._progress, self._task = progress, task

    def update(self, done: int, figures: str = "") -> None:
        self._progress.update(self._task, completed=done, figures=figures)


def make_reporter(*, quiet: bool = False, stream: TextIO | None = None) -> Reporter:
    """Bars where a person looks at a terminal, lines elsewhere, silence when asked for."""
    if quiet:
        return SilentReporter()
    stream = stream or sys.stderr
    if stream.isatty():
        return RichReporter(Console(file=stream))
    return PlainReporter(stream)
