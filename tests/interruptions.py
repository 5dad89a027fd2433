"""Ctrl-C, or another signal, at a chosen moment of an evaluation."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from sam_bench.evaluation import Log


def tells_more_than_clean(entry: dict[str, Any]) -> bool:
    """Whether a line of a log says more than that an image is right without an attack."""
    return entry.get("verdict", "") is not None or bool(entry["withstood"])


@contextmanager
def interrupted_after(
    lines: int, monkeypatch: pytest.MonkeyPatch, number: signal.Signals = signal.SIGINT
) -> Iterator[None]:
    """Inside, the signal comes when so many lines of a log have been written, but for those of a clean image."""
    written = 0
    add = Log._write

    def counted(self: Log, entry: dict[str, Any]) -> None:
        nonlocal written
        if tells_more_than_clean(entry):
            if written == lines:
                if number != signal.SIGINT:
                    assert callable(signal.getsignal(number)), "it would end the tests"
                    signal.raise_signal(number)
                raise KeyboardInterrupt
            written += 1
        add(self, entry)

    with monkeypatch.context() as patched:
        patched.setattr(Log, "_write", counted)
        yield
