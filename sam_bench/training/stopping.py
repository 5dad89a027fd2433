"""Being told to stop: a signal is remembered, and the loop looks at it between two steps."""

from __future__ import annotations

import enum
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any


class Notice(enum.IntEnum):
    """What a process has to tell the others after a step. All processes follow the largest one."""

    NOTHING = 0
    SAVE = 1
    INTERRUPTED = 2
    TERMINATED = 3
    DIVERGED = 4

    @property
    def signal(self) -> signal.Signals | None:
        """The signal behind it, if it was one."""
        return next((each for each, notice in _SIGNALS.items() if notice is self), None)


_SIGNALS = {signal.SIGTERM: Notice.TERMINATED, signal.SIGINT: Notice.INTERRUPTED}


class StopRequest:
    """Whether this process has been told to stop.

    Attributes:
        notice: The notice of the last signal; None before the first.
    """

    def __init__(self) -> None:
        self.notice: Notice | None = None

    def receive(self, number: int, frame: FrameType | None) -> None:
        """Remember a signal; a second Ctrl-C does not wait for the step."""
        if self.notice is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.notice = _SIGNALS[signal.Signals(number)]


@contextmanager
def listening() -> Iterator[StopRequest]:
    """Take SIGTERM and Ctrl-C as requests to stop, for the time of the block.

    Signals stay as they are outside the main thread, and where they are ignored on purpose.
    """
    request = StopRequest()
    before: dict[signal.Signals, Any] = {}
    if threading.current_thread() is threading.main_thread():
        for number in _SIGNALS:
            if signal.getsignal(number) not in (signal.SIG_IGN, None):
                before[number] = signal.signal(number, request.receive)
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
