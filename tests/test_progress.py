"""Progress: lines with the time left in a log, a bar on a terminal, nothing when quiet; never on stdout."""

from __future__ import annotations

import errno
import io
import os
import pty
import threading
from collections.abc import Iterator
from contextlib import suppress

import pytest

from sam_bench import progress
from sam_bench.progress import PlainReporter, RichReporter, SilentReporter, make_reporter


class _Clock:
    """A clock that goes when it is told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> _Clock:
    clock = _Clock()
    monkeypatch.setattr(progress, "time", clock)
    return clock


def test_a_log_gets_whole_lines_with_the_time_left_every_ten_seconds_and_at_the_end(clock: _Clock) -> None:
    stream = io.StringIO()
    with PlainReporter(stream).stage("train", 20) as stage:
        for done in range(1, 21):
            clock.now += 3.0
            stage.update(done, f"loss {done}")
    assert stream.getvalue().splitlines() == [
        "train 4/20, 0:12 elapsed, 0:48 left, loss 4",
        "train 8/20, 0:24 elapsed, 0:36 left, loss 8",
        "train 12/20, 0:36 elapsed, 0:24 left, loss 12",
        "train 16/20, 0:48 elapsed, 0:12 left, loss 16",
        "train 20/20, 1:00 elapsed, loss 20",
    ]


def test_work_goes_on_when_nobody_reads_the_log_any_more() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w", encoding="utf-8") as stream:
        reporter = PlainReporter(stream)
        with reporter.stage("train", 2) as stage:
            stage.update(1)
            reporter.say("more")
            stage.update(2)
        with suppress(BrokenPipeError):  # what was not written is lost; the file is closed all the same
            stream.close()


class _FullDisk(io.StringIO):
    def write(self, text: str) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_work_goes_on_when_the_disk_of_the_log_is_full() -> None:
    with PlainReporter(_FullDisk()).stage("train", 2) as stage:
        stage.update(2)


def test_work_goes_on_when_its_terminal_is_closed() -> None:
    master, ours = pty.openpty()
    stream = os.fdopen(ours, "w", encoding="utf-8")
    reporter = make_reporter(stream=stream)
    assert isinstance(reporter, RichReporter)
    os.close(master)
    with reporter.stage("train", 2) as stage:
        stage.update(2)
        reporter.say("more")
    with suppress(OSError):
        stream.close()


def test_work_goes_on_without_a_stderr(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stderr", None)
    assert isinstance(make_reporter(), SilentReporter)


def test_the_time_left_of_a_resumed_stage_counts_what_this_process_did(clock: _Clock) -> None:
    stream = io.StringIO()
    with PlainReporter(stream).stage("train", 110) as stage:
        stage.update(100)
        for done in (101, 102, 103):
            clock.now += 60.0
            stage.update(done)
    # At a minute a step ten steps are left; what is estimated must not be the second that 100 done would give.
    first = stream.getvalue().splitlines()[0]
    assert first.startswith("train 101/110, 1:00 elapsed, ")
    minutes, _ = first.split(", ")[2].removesuffix(" left").split(":")
    assert 4 <= int(minutes) <= 10


def test_hours_are_shown_as_hours(clock: _Clock) -> None:
    stream = io.StringIO()
    with PlainReporter(stream).stage("train", 3) as stage:
        clock.now += 3723.0
        stage.update(1)
    assert stream.getvalue().splitlines()[0] == "train 1/3, 1:02:03 elapsed, 2:04:06 left"


def test_a_failing_stage_is_not_reported_as_done() -> None:
    stream = io.StringIO()
    with pytest.raises(ValueError), PlainReporter(stream).stage("train", 3):
        raise ValueError
    assert stream.getvalue() == ""


def test_quiet_says_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    reporter = make_reporter(quiet=True)
    reporter.say("something")
    with reporter.stage("train", 2) as stage:
        stage.update(1, "loss 1")
    assert isinstance(reporter, SilentReporter)
    assert capfd.readouterr() == ("", "")


def test_progress_goes_to_stderr_as_lines_where_that_is_no_terminal(capfd: pytest.CaptureFixture[str]) -> None:
    reporter = make_reporter()
    reporter.say("first [bold]as it is[/bold]")
    with reporter.stage("train", 2) as stage:
        stage.update(2, "loss 1")
    out, err = capfd.readouterr()
    assert isinstance(reporter, PlainReporter)
    assert out == ""
    assert err == "first [bold]as it is[/bold]\ntrain 2/2, 0:00 elapsed, loss 1\n"


class _Terminal:
    """A pseudo-terminal: what is written to `stream` is what a person would see as `shown`."""

    def __init__(self) -> None:
        self._theirs, ours = pty.openpty()
        self.stream = os.fdopen(ours, "w")
        self._parts: list[bytes] = []
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        while True:
            try:
                part = os.read(self._theirs, 4096)
            except OSError:  # how Linux says that the other side has hung up
                return
            if not part:
                return
            self._parts.append(part)

    def close(self) -> str:
        if not self.stream.closed:
            self.stream.close()
            self._reader.join()
            os.close(self._theirs)
        return b"".join(self._parts).decode()


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[_Terminal]:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "120")
    for name in ("NO_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    terminal = _Terminal()
    yield terminal
    terminal.close()


def test_a_terminal_gets_a_bar_with_the_time_left_and_text_as_it_is(terminal: _Terminal) -> None:
    reporter = make_reporter(stream=terminal.stream)
    assert isinstance(reporter, RichReporter)
    reporter.say("rates [0.1, 0.2]")
    with reporter.stage("train [sam]", 3) as stage:
        for done in (1, 2, 3):
            stage.update(done, f"loss [{done}]")
    shown = terminal.close()
    assert "rates [0.1, 0.2]" in shown
    assert all(part in shown for part in ("train [sam]", "━", "3/3", "left", "loss [3]", "\x1b["))


def test_the_time_left_comes_from_the_work_where_units_are_not_alike(clock: _Clock, terminal: _Terminal) -> None:
    stream, far = io.StringIO(), [(0, 0.0), (1, 0.25), (1, 0.5), (4, 1.0)]
    bars = make_reporter(stream=terminal.stream)
    with PlainReporter(stream).stage("apgd-t", 4) as stage, bars.stage("square", 4) as bar:
        for done, share in far:
            stage.update(done, "", share)
            bar.update(done, "", share)
            clock.now += 30.0
    # One of four is done, the easiest; in as much time as it took, as much is done of the others.
    assert stream.getvalue().splitlines() == [
        "apgd-t 1/4, 0:30 elapsed, 1:30 left",
        "apgd-t 1/4, 1:00 elapsed, 1:00 left",
        "apgd-t 4/4, 1:30 elapsed",
    ]
    assert "4/4" in terminal.close()
