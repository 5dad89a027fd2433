"""Ctrl-C at a chosen moment of an evaluation."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from sam_bench.evaluation import Log


@contextmanager
def interrupted_after(lines: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Inside, Ctrl-C is pressed when so many lines of a log have been written."""
    written = 0
    add = Log._write

    def counted(self: Log, entry: dict[str, Any]) -> None:
        nonlocal written
        if written == lines:
            raise KeyboardInterrupt
        written += 1
        add(self, entry)

    with monkeypatch.context() as patched:
        patched.setattr(Log, "_write", counted)
        yield
